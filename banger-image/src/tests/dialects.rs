//! What writers of archives and of images write besides the plain cases, and every engine reads.

use super::super::ImageError;
use super::maker::{Item, Oci, Tar, fsck, gzip, import_bytes, import_error, item, pack, record, sha256, tool};
use serde_json::{Value, json};

fn stat(archive: &[u8], path: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(archive, dir.path()).unwrap();
    fsck(&result.rootfs_path);
    tool("debugfs", &["-R", &format!("stat {path}"), result.rootfs_path.to_str().unwrap()])
}

fn global(records: &[u8]) -> Tar {
    Tar::default().add(&Item { data: records, ..item(b'g', "g") })
}

#[test]
fn global_headers_count_in_a_root_file_system_and_not_in_a_layer() {
    let records = [record("uid", b"4242"), record("gid", b"4243")].concat();
    let own = Item { pax: vec![("gid", b"7")], ..item(b'0', "etc/own") };
    let taken_back = Item { pax: vec![("uid", b""), ("gid", b"")], owner: (5, 6), ..item(b'0', "etc/back") };
    let tar = global(&records).dir("etc").file("etc/x", b"1").add(&own).add(&taken_back).end();
    for (path, owner) in [("etc/x", ["4242", "4243"]), ("etc/own", ["4242", "7"]), ("etc/back", ["5", "6"])] {
        let Some(text) = stat(&tar, path) else { continue };
        let words: Vec<&str> = text.split_whitespace().collect();
        let after = |key: &str| words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1)).copied();
        assert_eq!([after("User:"), after("Group:")], owner.map(Some), "{path}: {text}");
    }
    let named = [records, record("path", b"everywhere")].concat();
    let layer = global(&named).dir("etc").file("etc/x", b"1").end();
    if let Some(text) = stat(&Oci::new(&[layer]).tar(), "etc/x") {
        assert!(text.contains("User:     0"), "{text}");
    }
}

#[test]
fn a_layer_may_be_empty_in_every_way() {
    let base = Tar::default().file("a/x", b"1").end();
    let oci = Oci::new(&[base, Vec::new(), vec![0; 512], vec![0; 1024]]);
    let dir = tempfile::tempdir().unwrap();
    import_bytes(&oci.tar(), dir.path()).unwrap();
    assert!(matches!(import_error(&gzip(b"")), ImageError::NoEntries { .. }));
}

/// An image as `docker save` writes it: `layers` and `diff_ids` as they stand in the JSON.
fn saved(layers: &Value, diff_ids: &Value) -> Vec<u8> {
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": layers}]);
    pack(&[("c.json".to_owned(), config.to_string().into()), ("manifest.json".to_owned(), manifest.to_string().into())])
}

#[test]
fn an_image_without_layers_may_say_null() {
    let made = [json!([]), Value::Null].map(|none| {
        let dir = tempfile::tempdir().unwrap();
        let imported = import_bytes(&saved(&none, &none), dir.path()).unwrap();
        (imported.build_size, imported.content_bytes, imported.entries)
    });
    assert_eq!(made[0], made[1]);
    assert_eq!((made[0].1, made[0].2), (0, 0), "there is nothing in it");
}

/// The layout with another manifest, which `change` makes of the usual one.
fn with_manifest(change: impl Fn(&mut Value), keep: impl Fn(&str) -> bool) -> Vec<u8> {
    let (mut blobs, old) = Oci::new(&[Tar::default().file("a", b"1").end()]).blobs();
    let path = format!("blobs/sha256/{old}");
    let manifest = &blobs.iter().find(|(name, _)| *name == path).unwrap().1;
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().replace(':', "/");
    change(&mut manifest);
    let manifest = manifest.to_string().into_bytes();
    let digest = sha256(&manifest);
    let index =
        json!({"manifests": [{"digest": format!("sha256:{digest}"), "size": manifest.len(), "annotations": null}]});
    blobs.retain(|(name, _)| {
        *name != path && name != "index.json" && (*name != format!("blobs/{layer}") || keep("layer"))
    });
    blobs.push((format!("blobs/sha256/{digest}"), manifest));
    blobs.push(("index.json".to_owned(), index.to_string().into()));
    pack(&blobs)
}

#[test]
fn an_image_may_have_an_artifact_type_and_what_is_attached_to_one_is_none() {
    let typed = |manifest: &mut Value| manifest["artifactType"] = json!("application/vnd.example.machine");
    import_bytes(&with_manifest(typed, |_| true), tempfile::tempdir().unwrap().path()).unwrap();
    let attached = |manifest: &mut Value| {
        typed(manifest);
        manifest["subject"] = json!({"digest": format!("sha256:{}", sha256(b"x")), "size": 1});
    };
    let error = import_error(&with_manifest(attached, |_| true));
    assert!(error.to_string().contains("names no image"), "{error}");
}

#[test]
fn what_an_archive_cannot_have_is_named() {
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let foreign = |manifest: &mut Value| manifest["layers"][0]["mediaType"] = json!(kind);
    import_bytes(&with_manifest(foreign, |_| true), tempfile::tempdir().unwrap().path()).unwrap();
    let error = import_error(&with_manifest(foreign, |_| false));
    assert!(error.to_string().contains("foreign layer"), "{error}");
    let old = |manifest: &mut Value| *manifest = json!({"schemaVersion": 1, "name": "app", "fsLayers": []});
    let error = import_error(&with_manifest(old, |_| true));
    assert!(error.to_string().contains("schema 1"), "{error}");
}
