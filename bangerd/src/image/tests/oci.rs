//! OCI images: selection, verification, whiteouts.

use super::super::{ImageError, SourceKind};
use super::maker::{Oci, Tar, fsck, import_bytes, import_error, pack, sha256, tool};

fn listing(layers: &[Vec<u8>], folder: &str) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(&Oci::new(layers).tar(), dir.path()).unwrap();
    fsck(&result.rootfs_path);
    let text = tool("debugfs", &["-R", &format!("ls -p {folder}"), result.rootfs_path.to_str().unwrap()])?;
    let names = text.lines().filter_map(|line| line.split('/').nth(5)).map(str::to_owned);
    Some(names.filter(|name| !["", ".", "..", "lost+found"].contains(&name.as_str())).collect())
}

#[test]
fn layers_are_merged_and_the_manifest_names_the_image() {
    let layers = [Tar::default().file("a/one", b"1").end(), Tar::default().file("a/two", b"2").end()];
    let oci = Oci::new(&layers);
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(&oci.tar(), dir.path()).unwrap();
    assert_eq!(result.source, SourceKind::Oci);
    assert_eq!(result.source_digest.to_string(), oci.blobs().1);
    if let Some(names) = listing(&layers, "/a") {
        assert_eq!(names, ["one", "two"]);
    }
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    let base = Tar::default().file("d/old", b"").file("d/gone", b"").file("e/x", b"").file("e/sub/y", b"").end();
    // The opaque mark comes after the layer's own file, the whiteout before the file of the same name.
    let top = Tar::default()
        .file("d/.wh.gone", b"")
        .file("d/gone", b"new")
        .file("d/.wh.never-was", b"")
        .file("e/mine", b"")
        .file("e/sub/z", b"")
        .file("e/.wh..wh..opq", b"")
        .end();
    let layers = [base, top];
    if let Some(names) = listing(&layers, "/d") {
        assert_eq!(names, ["gone", "old"]);
        assert_eq!(listing(&layers, "/e").unwrap(), ["mine", "sub"]);
        assert_eq!(listing(&layers, "/e/sub").unwrap(), ["z"]);
    }
}

#[test]
fn hostile_whiteouts_are_refused() {
    let base = Tar::default().file("d/x", b"").end();
    for name in ["d/.wh.", "d/.wh...", ".wh.."] {
        let layers = [base.clone(), Tar::default().file(name, b"").end()];
        match import_error(&Oci::new(&layers).tar()) {
            ImageError::Name { layer, entry, .. } => {
                assert!(layer.starts_with("layer 2 of 2 (sha256:") && entry == name, "{layer} {entry}");
            }
            other => unreachable!("{name}: {other}"),
        }
    }
    let aufs = [Tar::default().dir(".wh..wh.plnk").end()];
    assert!(matches!(import_error(&Oci::new(&aufs).tar()), ImageError::Unsupported { .. }));
}

#[test]
fn a_plain_root_file_system_may_have_such_names() {
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(&Tar::default().file("x", b"").file(".wh.x", b"1").end(), dir.path()).unwrap();
    if let Some(text) = tool("debugfs", &["-R", "ls -p /", result.rootfs_path.to_str().unwrap()]) {
        assert!(text.contains("/.wh.x/") && text.contains("/x/"), "{text}");
    }
}

#[test]
fn every_blob_is_verified() {
    let oci = Oci::new(&[Tar::default().file("a", b"1").end(), Tar::default().file("b", b"2").end()]);
    let (blobs, _) = oci.blobs();
    for number in 0..blobs.len() {
        let (name, data) = &blobs[number];
        if !name.starts_with("blobs/") {
            continue;
        }
        let mut flipped = blobs.clone();
        let middle = data.len() / 2;
        flipped[number].1[middle] ^= 1;
        let error = import_error(&pack(&flipped));
        assert!(matches!(error, ImageError::Blob { what: "digest", .. }), "{name}: {error}");
        let mut longer = blobs.clone();
        longer[number].1.push(0);
        assert!(matches!(import_error(&pack(&longer)), ImageError::Blob { what: "size", .. }), "{name}");
        let mut missing = blobs.clone();
        missing.remove(number);
        assert!(matches!(import_error(&pack(&missing)), ImageError::Oci { .. }), "{name}");
    }
    let mut lying = Oci::new(&[Tar::default().file("a", b"1").end()]);
    lying.layers[0].1 = sha256(b"something else");
    assert!(matches!(import_error(&lying.tar()), ImageError::Blob { what: "diff id", .. }));
}

/// A download that was cut to nothing: a cache would go on serving it.
#[test]
fn a_blob_of_no_bytes_is_refused_and_nothing_of_it_is_kept() {
    let oci = Oci::new(&[Tar::default().file("a", b"1").end()]);
    let (blobs, _) = oci.blobs();
    let dir = tempfile::tempdir().unwrap();
    for (number, (name, _)) in blobs.iter().enumerate().filter(|(_, (name, _))| name.starts_with("blobs/")) {
        let mut empty = blobs.clone();
        empty[number].1.clear();
        let error = import_bytes(&pack(&empty), dir.path()).unwrap_err();
        assert!(matches!(error, ImageError::Blob { what: "size", .. }), "{name}: {error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
    }
    import_bytes(&oci.tar(), dir.path()).unwrap();
}

#[test]
fn the_wrong_platform_is_named() {
    let mut oci = Oci::new(&[Tar::default().file("a", b"1").end()]);
    oci.platform = ("linux", "arm64");
    let error = import_error(&oci.tar());
    assert!(error.to_string().contains("it is for linux/arm64; an image for linux/amd64 is needed"), "{error}");
}

#[test]
fn an_index_of_platforms_is_searched() {
    let ours = Oci::new(&[Tar::default().file("a", b"ours").end()]);
    let mut other = Oci::new(&[Tar::default().file("a", b"other").end()]);
    other.platform = ("linux", "s390x");
    let (mut blobs, digest) = ours.blobs();
    let (other_blobs, other_digest) = other.blobs();
    let size = |blobs: &[(String, Vec<u8>)], digest: &str| {
        blobs.iter().find(|(name, _)| name.ends_with(digest)).map(|(_, data)| data.len()).unwrap()
    };
    let inner = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"digest": format!("sha256:{other_digest}"), "size": size(&other_blobs, &other_digest), "platform": {"os": "linux", "architecture": "s390x"}},
        {"digest": format!("sha256:{digest}"), "size": size(&blobs, &digest), "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": "sha256:00", "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]});
    let inner = serde_json::to_vec(&inner).unwrap();
    let outer = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": format!("sha256:{}", sha256(&inner)), "size": inner.len()},
    ]});
    blobs.retain(|(name, _)| name != "index.json");
    blobs.extend(other_blobs.into_iter().filter(|(name, _)| name.starts_with("blobs/")));
    blobs.push((format!("blobs/sha256/{}", sha256(&inner)), inner));
    blobs.push(("index.json".to_owned(), serde_json::to_vec(&outer).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(import_bytes(&pack(&blobs), dir.path()).unwrap().source_digest.to_string(), digest);
}

#[test]
fn the_old_format_of_docker_save_is_named() {
    let manifest = br#"[{"Config":"c.json","RepoTags":["x"],"Layers":["l/layer.tar"]}]"#;
    let tar = Tar::default().file("manifest.json", manifest).file("l/layer.tar", b"").file("c.json", b"{}").end();
    let error = import_error(&tar);
    assert!(error.to_string().contains("skopeo copy docker-archive:"), "{error}");
}

/// An index that names one foreign index over and over, and indexes that name each other: little to store, much to
/// read. Each blob is looked at once, and all of them together are bounded.
#[test]
fn a_labyrinth_of_indexes_is_walked_once() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let reference = |data: &[u8], media_type: &str| serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(data)), "size": data.len()});
    let layout = |top: &serde_json::Value, blobs: &[Vec<u8>]| {
        let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        files.extend(blobs.iter().map(|blob| (format!("blobs/sha256/{}", sha256(blob)), blob.clone())));
        files.push(("index.json".to_owned(), serde_json::to_vec(top).unwrap()));
        pack(&files)
    };
    // A platform of a megabyte, named a thousand times.
    let wide = "x".repeat(1 << 20);
    let foreign = serde_json::json!({"manifests": [{"digest": format!("sha256:{}", "0".repeat(64)), "size": 1,
        "platform": {"os": "plan9", "architecture": wide}}]});
    let foreign = serde_json::to_vec(&foreign).unwrap();
    let top = serde_json::json!({"manifests": vec![reference(&foreign, INDEX); 1_000]});
    let error = import_error(&layout(&top, std::slice::from_ref(&foreign))).to_string();
    assert!(error.contains("plan9/xxxx") && error.contains("linux/amd64 is needed"), "{error}");
    assert!(error.len() < 400, "{} bytes", error.len());
    // More descriptors than any image has.
    let top = serde_json::json!({"manifests": vec![reference(&foreign, INDEX); 5_000]});
    let error = import_error(&layout(&top, &[foreign]));
    assert!(matches!(error, ImageError::TooMuchIndex { what: "entries", .. }), "{error}");
    // Twenty different indexes of a megabyte each.
    let blobs: Vec<Vec<u8>> = (0..20)
        .map(|number| {
            serde_json::to_vec(&serde_json::json!({"manifests": [], "pad": format!("{number}{wide}")})).unwrap()
        })
        .collect();
    let top = serde_json::json!({"manifests": blobs.iter().map(|blob| reference(blob, INDEX)).collect::<Vec<_>>()});
    let error = import_error(&layout(&top, &blobs));
    assert!(matches!(error, ImageError::TooMuchIndex { what: "bytes", .. }), "{error}");
}

/// What the parser quotes of an image is cut.
#[test]
fn no_message_is_as_long_as_the_image_wants() {
    let wide = "x".repeat(1 << 20);
    for index in [
        serde_json::json!({"manifests": wide}),
        serde_json::json!({"manifests": [{"digest": wide, "size": 1}]}),
        serde_json::json!({"manifests": [{"digest": wide, "size": 1_u64 << 40}]}),
    ] {
        let files = [
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
        ];
        let error = import_error(&pack(&files)).to_string();
        assert!(error.len() < 400, "{} bytes", error.len());
    }
}

/// The empty layer stands in many images several times.
#[test]
fn one_blob_may_be_several_layers() {
    let empty = Tar::default().end();
    let layers = [Tar::default().file("a/one", b"1").end(), empty.clone(), empty.clone(), empty];
    if let Some(names) = listing(&layers, "/a") {
        assert_eq!(names, ["one"]);
    }
}
