//! OCI images: selection, verification, whiteouts.

use super::super::{ImageError, Limits, SourceKind, digest_of, import};
use super::maker::{Oci, SIZE, Tar, file_of, fsck, gzip, hasher, import_bytes, import_error, pack, sha256, tool};

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
    assert_eq!(result.manifest().unwrap().to_string(), oci.blobs().1);
    assert_eq!(digest_of(&result.source_digest, SIZE), Some(result.digest), "known before");
    if let Some(names) = listing(&layers, "/a") {
        assert_eq!(names, ["one", "two"]);
    }
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    let base = Tar::default().file("d/old", b"").file("d/gone", b"").file("e/x", b"").file("e/sub/y", b"").end();
    // The opaque mark comes after the layer's own file, the whiteout before the file of the same
    // name.
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
}

#[test]
fn bookkeeping_of_aufs_is_left_out_and_links_into_it_are_files() {
    let layer = Tar::default()
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/12.34", b"linked")
        .file(".wh..wh.aufs", b"")
        .hardlink("a/file", ".wh..wh.plnk/12.34")
        .file("a/.wh..wh.orph", b"")
        .end();
    if let Some(names) = listing(std::slice::from_ref(&layer), "/") {
        assert_eq!(names, ["a"]);
        assert_eq!(listing(&[layer], "/a").unwrap(), ["file"]);
    }
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

/// It is decompressed while its digest is computed, and the decoder's word is not the last one.
#[test]
fn a_damaged_blob_is_called_that_whatever_its_decoder_says() {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let noise: Vec<u8> =
        std::iter::successors(Some(1_u32), next).take(1_000_000).map(|state| state.to_be_bytes()[0]).collect();
    let honest = Oci::new(&[Tar::default().file("a", &noise).end()]);
    let (blobs, _) = honest.blobs();
    let layer = blobs.iter().position(|(_, data)| data == &honest.layers[0].0).unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, &str); 4] = [
        // A kind of block that there is not, in the first one.
        (|blob| blob[10] |= 6, "cannot be decompressed"),
        (|blob| blob.truncate(500_000), "is truncated"),
        (|blob| blob[..4].copy_from_slice(b"PK\x03\x04"), "is compressed with zip"),
        (|blob| *blob = gzip(&vec![0; 65 << 20]), "expands to more than"),
    ];
    for (damage, words) in damages {
        let mut meant = Oci::new(&[Tar::default().file("a", &noise).end()]);
        damage(&mut meant.layers[0].0);
        let error = import_error(&meant.tar()).to_string();
        assert!(error.contains(words), "{error}");
        // The same bytes under the digest, and of the size, of what they are not.
        let mut damaged = blobs.clone();
        damage(&mut damaged[layer].1);
        damaged[layer].1.resize(blobs[layer].1.len(), 0);
        let error = import_error(&pack(&damaged));
        assert!(matches!(error, ImageError::Blob { what: "digest", .. }), "{words}: {error}");
    }
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

/// `docker save` since 1.10: its files, with a second name for the first layer.
fn saved(images: &[(&str, &[Vec<u8>])]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut manifest = Vec::new();
    for (tag, layers) in images {
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let name = format!("{}.json", sha256(&config));
        let paths: Vec<String> = layers.iter().map(|layer| format!("{}/layer.tar", &sha256(layer)[..12])).collect();
        files.extend(paths.iter().cloned().zip(layers.iter().cloned()));
        manifest.push(serde_json::json!({"Config": name, "RepoTags": [tag], "Layers": paths}));
        files.push((name, config));
    }
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()));
    files
}

fn two_layers() -> [Vec<u8>; 2] {
    [Tar::default().file("d/old", b"1").end(), Tar::default().file("d/.wh.old", b"").file("d/new", b"2").end()]
}

#[test]
fn what_docker_save_writes_is_an_image() {
    let layers = two_layers();
    let files = saved(&[("app:1", &layers)]);
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(&pack(&files), dir.path()).unwrap();
    assert_eq!((result.source, result.manifest()), (SourceKind::Docker, None));
    if let Some(text) = tool("debugfs", &["-R", "ls -p /d", result.rootfs_path.to_str().unwrap()]) {
        assert!(text.contains("/new/") && !text.contains("old"), "{text}");
    }
    // A layer that is a link to another one's file, and a layer that is not what the configuration
    // says.
    let first = files[0].0.clone();
    let linked = files[1..]
        .iter()
        .fold(Tar::default().file("shared/layer.tar", &files[0].1), |tar, (name, data)| tar.file(name, data));
    let linked = linked.symlink(&first, "../shared/layer.tar").end();
    let same = import_bytes(&linked, tempfile::tempdir().unwrap().path()).unwrap();
    assert_eq!(same.source_digest, result.source_digest);
    let mut flipped = files;
    flipped[0].1[600] ^= 1;
    assert!(matches!(import_error(&pack(&flipped)), ImageError::Blob { what: "diff id", .. }));
}

#[test]
fn several_images_are_listed_and_one_can_be_named() {
    let (one, two) = (two_layers(), [Tar::default().file("other", b"").end()]);
    let tar = pack(&saved(&[("app:1", &one), ("app:2", &two)]));
    let error = import_error(&tar).to_string();
    assert!(error.contains("app:1, app:2") && error.contains("--ref"), "{error}");
    let named = |reference: &str| {
        let dir = tempfile::tempdir().unwrap();
        import(file_of(&tar), dir.path(), SIZE, Some(reference), Limits::for_build_size(SIZE), &hasher(), &())
            .map(|image| image.entries)
    };
    assert_eq!(named("app:2").unwrap(), 1);
    assert_eq!(named("1").unwrap(), 3);
    let error = named("app:3").unwrap_err().to_string();
    assert!(error.contains("app:3") && error.contains("app:1, app:2"), "{error}");
}

/// Before 1.10 there was no manifest, but a chain of layers.
#[test]
fn a_chain_of_layers_is_an_image() {
    let [below, above] = two_layers();
    let id = |letter: &str| letter.repeat(64);
    let files = |parent: &str| {
        pack(&[
            ("repositories".to_owned(), format!(r#"{{"app": {{"1": "{}"}}}}"#, id("b")).into_bytes()),
            (format!("{}/json", id("a")), br#"{"id": "a", "architecture": "amd64", "os": "linux"}"#.to_vec()),
            (format!("{}/layer.tar", id("a")), below.clone()),
            (format!("{}/json", id("b")), format!(r#"{{"id": "b", "parent": "{}"}}"#, id(parent)).into_bytes()),
            (format!("{}/layer.tar", id("b")), above.clone()),
        ])
    };
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(&files("a"), dir.path()).unwrap();
    if let Some(text) = tool("debugfs", &["-R", "ls -p /d", result.rootfs_path.to_str().unwrap()]) {
        assert!(text.contains("/new/") && !text.contains("old"), "{text}");
    }
    assert!(import_error(&files("b")).to_string().contains("their own parents"));
    assert!(import_error(&files("c")).to_string().contains("missing"));
}

/// A root file system may have files of such names.
#[test]
fn a_root_file_system_with_a_manifest_is_one() {
    let tar = Tar::default().file("manifest.json", b"[]").file("repositories", b"{}").file("etc/x", b"").end();
    let result = import_bytes(&tar, tempfile::tempdir().unwrap().path()).unwrap();
    assert_eq!(result.source, SourceKind::Tar);
}

/// Signatures, bills of material and attestations stand beside the one image.
#[test]
fn artifacts_beside_an_image_are_passed_over() {
    let oci = Oci::new(&[Tar::default().file("a", b"1").end()]);
    let (mut blobs, digest) = oci.blobs();
    let mut descriptors = Vec::new();
    let mut add = |data: Vec<u8>, platform: Option<&str>| {
        let mut descriptor = serde_json::json!({"digest": format!("sha256:{}", sha256(&data)), "size": data.len()});
        if let Some(platform) = platform {
            descriptor["platform"] = serde_json::json!({"os": platform, "architecture": platform});
        }
        blobs.push((format!("blobs/sha256/{}", sha256(&data)), data));
        descriptor
    };
    let empty = add(b"{}".to_vec(), None);
    let odd = serde_json::json!({"config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty["digest"], "size": 2}, "layers": []});
    descriptors.push(add(serde_json::to_vec(&odd).unwrap(), None));
    let plain = serde_json::json!({"config": {"digest": empty["digest"], "size": 2}, "layers": []});
    descriptors.push(add(serde_json::to_vec(&plain).unwrap(), None));
    descriptors.push(add(b"{\"layers\": []}".to_vec(), Some("unknown")));
    let index = blobs.iter().position(|(name, _)| name == "index.json").unwrap();
    let mut top: serde_json::Value = serde_json::from_slice(&blobs[index].1).unwrap();
    top["manifests"].as_array_mut().unwrap().extend(descriptors);
    blobs[index].1 = serde_json::to_vec(&top).unwrap();
    let result = import_bytes(&pack(&blobs), tempfile::tempdir().unwrap().path()).unwrap();
    assert_eq!(result.source_digest.to_string(), digest);
}

/// An index that names one foreign index over and over, and indexes that name each other: little to
/// store, much to read. Each blob is looked at once, and all of them together are bounded.
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
    // Each names the next one.
    let mut top = serde_json::json!({"manifests": []});
    let mut below = Vec::new();
    for _ in 0..6 {
        below.push(serde_json::to_vec(&top).unwrap());
        top = serde_json::json!({"manifests": [reference(&below[below.len() - 1], INDEX)]});
    }
    let error = import_error(&layout(&top, &below)).to_string();
    assert!(error.contains("nested too deeply"), "{error}");
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
    // Unpacked for each of them, it would be more than an image may come to.
    let large = Tar::default().file("a/large", &vec![0; 22 << 20]).end();
    let layers = vec![large; 3];
    assert!(layers.iter().map(Vec::len).sum::<usize>() as u64 > SIZE);
    import_bytes(&Oci::new(&layers).tar(), tempfile::tempdir().unwrap().path()).unwrap();
}
