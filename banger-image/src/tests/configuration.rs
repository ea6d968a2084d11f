//! The configuration comes with the image, whatever the archive's form is.

use super::super::{ImageConfig, ImageError, ImportedRootfs, Limits, import};
use super::maker::{Oci, SIZE, Tar, file_of, hasher, import_bytes, import_error, pack, sha256};
use serde_json::{Value, json};

fn said() -> Value {
    json!({"Env": ["PATH=/opt/bin:/usr/bin", "GREETING=a\nb"], "WorkingDir": "/srv", "User": "app",
        "Entrypoint": ["/entry"], "Cmd": ["serve"], "Labels": {"org": "x"}})
}

fn expected() -> ImageConfig {
    ImageConfig {
        env: vec!["PATH=/opt/bin:/usr/bin".into(), "GREETING=a\nb".into()],
        working_dir: Some("/srv".into()),
        user: Some("app".into()),
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
    }
}

fn layer() -> Vec<u8> {
    Tar::default().file("a", b"1").end()
}

fn imported(files: &[(String, Vec<u8>)]) -> ImportedRootfs {
    import_bytes(&pack(files), tempfile::tempdir().unwrap().path()).unwrap()
}

/// `manifest.json` with one image for each configuration, called `app:0` and so on, all with the
/// same layer.
fn saved(configs: &[Value]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("layer.tar".to_owned(), layer())];
    let mut manifest = Vec::new();
    for (number, config) in configs.iter().enumerate() {
        let diff_ids = [format!("sha256:{}", sha256(&layer()))];
        let whole = json!({"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"diff_ids": diff_ids}});
        let name = format!("{number}.json");
        files.push((name.clone(), serde_json::to_vec(&whole).unwrap()));
        manifest.push(json!({"Config": name, "RepoTags": [format!("app:{number}")], "Layers": ["layer.tar"]}));
    }
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()));
    files
}

/// `docker save` before 1.10: the image, made from another one.
fn chain(above: &Value, below: &Value) -> Vec<(String, Vec<u8>)> {
    let id = |letter: &str| letter.repeat(64);
    let described = |value: Value| serde_json::to_vec(&value).unwrap();
    vec![
        ("repositories".to_owned(), described(json!({"app": {"1": id("b")}}))),
        (format!("{}/json", id("a")), described(json!({"id": id("a"), "config": below}))),
        (format!("{}/layer.tar", id("a")), layer()),
        (
            format!("{}/json", id("b")),
            described(json!({"id": id("b"), "parent": id("a"), "config": above, "container_config": below})),
        ),
        (format!("{}/layer.tar", id("b")), Tar::default().file("b", b"2").end()),
    ]
}

#[test]
fn every_form_of_an_image_brings_it() {
    let oci = Oci { config: said(), ..Oci::new(&[layer()]) };
    assert_eq!(imported(&oci.blobs().0).config, expected());
    assert_eq!(imported(&saved(&[said()])).config, expected());
    assert_eq!(imported(&chain(&said(), &json!({"User": "other"}))).config, expected());
    assert_eq!(imported(&Oci::new(&[layer()]).blobs().0).config, ImageConfig::default());
}

#[test]
fn a_root_file_system_has_none() {
    let tar = Tar::default().file("etc/passwd", b"").file("config.json", b"{\"config\": {\"User\": \"app\"}}").end();
    assert_eq!(import_bytes(&tar, tempfile::tempdir().unwrap().path()).unwrap().config, ImageConfig::default());
}

/// The content is one, and each name of it has a configuration of its own.
#[test]
fn the_same_content_may_come_with_another_configuration() {
    let (one, other) = (imported(&chain(&said(), &Value::Null)), imported(&chain(&Value::Null, &Value::Null)));
    assert_eq!(one.digest, other.digest);
    assert_eq!((one.config, other.config), (expected(), ImageConfig::default()));
}

#[test]
fn of_several_images_the_chosen_one_speaks() {
    // What the other one says would end the import.
    let tar = pack(&saved(&[json!({"User": "a\0"}), said()]));
    let named = |reference: &str| {
        let dir = tempfile::tempdir().unwrap();
        import(file_of(&tar), dir.path(), SIZE, Some(reference), Limits::for_build_size(SIZE), &hasher(), &())
    };
    assert_eq!(named("app:1").unwrap().config, expected());
    assert!(matches!(named("app:0"), Err(ImageError::Config { .. })));
}

#[test]
fn what_no_process_can_be_given_is_refused_before_anything_is_written() {
    for config in [json!({"Env": ["A=\0"]}), json!({"WorkingDir": "/\u{7}"}), json!({"Cmd": ["x".repeat(30_000)]})] {
        let oci = Oci { config, ..Oci::new(&[layer()]) };
        let error = import_error(&oci.tar());
        assert!(matches!(error, ImageError::Config { .. }), "{error}");
    }
}
