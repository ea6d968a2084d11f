//! Archives of people that readers of archives have stumbled over: each kind that no other test
//! makes. `banger-image/tests/README.md` lists all kinds.

use super::super::layers::{Layer, apply};
use super::super::source::Budget;
use super::super::tree::{NodeId, NodeKind, Tree};
use super::super::work_disk::{self, WorkDisk};
use super::super::{ImageError, ImportedRootfs, SourceKind};
use super::maker::{Item, Tar, fsck, import_bytes, import_error, item, pack, sha256, window_of};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;

/// What a root file system comes to: each path, and what is there.
fn tree(archive: &[u8]) -> BTreeMap<String, String> {
    let layer = Layer::root(window_of(archive));
    let mut tree = Tree::new();
    apply(&mut tree, &layer, 0, &mut Budget::new(u64::MAX, u64::MAX), &()).unwrap();
    let mut found = BTreeMap::new();
    let mut todo: Vec<(NodeId, String)> = vec![(Tree::ROOT, String::new())];
    while let Some((id, path)) = todo.pop() {
        let node = tree.node(id);
        let what = match &node.kind {
            NodeKind::Dir(names) => {
                todo.extend(names.iter().map(|(name, child)| {
                    let name = String::from_utf8_lossy(name);
                    (child.id, if path.is_empty() { name.to_string() } else { format!("{path}/{name}") })
                }));
                format!("folder {:o} {}", node.meta.mode & 0o7777, node.meta.uid)
            }
            NodeKind::File(content) => {
                let data = layer.window.part(content.offset, content.size).unwrap().read_all().unwrap();
                format!("file {}", String::from_utf8_lossy(&data))
            }
            NodeKind::Symlink(target) => format!("link {}", String::from_utf8_lossy(target)),
            other => format!("{other:?}"),
        };
        found.insert(path, what);
    }
    found
}

/// The archive with another size in the header of the entry that begins at `at`.
fn resized(mut archive: Vec<u8>, at: usize, size: u64) -> Vec<u8> {
    let raw: [u8; 512] = archive[at..at + 512].try_into().unwrap();
    let mut header = tar::Header::new_gnu();
    *header.as_mut_bytes() = raw;
    header.set_size(size);
    header.set_cksum();
    archive[at..at + 512].copy_from_slice(header.as_bytes());
    archive
}

#[test]
fn a_type_without_data_has_none_whatever_its_size_says() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let odd = Item { link: b"target", ..item(kind, "etc/odd") };
        let plain = Tar::default().file("target", b"").add(&odd).file("etc/next", b"1").end();
        // The last one is not even a size.
        for size in [1024, u64::MAX] {
            assert_eq!(tree(&resized(plain.clone(), 512, size)), tree(&plain), "type {}, {size}", char::from(kind));
        }
    }
}

#[test]
fn a_long_name_ends_at_its_first_nul() {
    let long = "n".repeat(180);
    let padded = [long.as_bytes(), &[0; 40]].concat();
    let tar = Tar::default().gnu_long(b'L', &padded).file("short", b"1").gnu_long(b'K', &padded).symlink("l", "x");
    let found = tree(&tar.end());
    assert_eq!((found[&long].as_str(), &found["l"]), ("file 1", &format!("link {long}")));
}

#[test]
fn an_entry_for_the_root_is_its_metadata() {
    for name in ["/", "./", ".", "//./"] {
        let root = Item { mode: 0o711, owner: (7, 7), ..item(b'5', name) };
        let found = tree(&Tar::default().add(&root).file("etc/x", b"1").end());
        assert_eq!((found[""].as_str(), found["etc/x"].as_str(), found.len()), ("folder 711 7", "file 1", 3), "{name}");
    }
}

#[test]
fn absolute_names_and_targets_of_hard_links_are_below_the_root() {
    let tar = Tar::default().dir("/etc/").file("//etc/x", b"1").hardlink("/etc/y", "/etc/x").symlink("/z", "/etc/x");
    let found = tree(&tar.end());
    assert_eq!(["etc/x", "etc/y", "z"].map(|path| found[path].as_str()), ["file 1", "file 1", "link /etc/x"]);
}

/// A header and a PAX record that disagree: what a reader takes for data is an entry for another
/// one.
#[test]
fn of_two_sizes_that_of_the_pax_record_counts() {
    let inside = Tar::default().file("etc/inside", b"").0;
    let (hides, shows) =
        (Item { data: &inside, pax: vec![("size", b"512")], ..item(b'0', "etc/outer") }, item(b'0', ""));
    let hidden = Tar::default().add(&hides).file("etc/next", b"").end();
    let found = tree(&resized(hidden, 1024, 0));
    assert!(!found.contains_key("etc/inside") && found["etc/outer"].len() > 500 && found.contains_key("etc/next"));
    let empty = Item { name: b"etc/outer", pax: vec![("size", b"0")], ..shows };
    let shown = Tar::default().add(&empty).file("etc/inside", b"").end();
    let found = tree(&resized(shown, 1024, 512));
    assert_eq!((found["etc/outer"].as_str(), found["etc/inside"].as_str()), ("file ", "file "));
}

/// `docker save` of an image without a tag: an index that says nothing, beside a manifest.json
/// whose layers are blobs of the layout.
#[test]
fn an_image_that_only_the_old_manifest_names_is_found_in_a_layout() {
    let layer = Tar::default().file("etc/x", b"1").end();
    let config =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [format!("sha256:{}", sha256(&layer))]}});
    let config = config.to_string().into_bytes();
    let [of_config, of_layer] = [&config, &layer].map(|blob| format!("blobs/sha256/{}", sha256(blob)));
    let manifest = json!([{"Config": of_config, "RepoTags": null, "Layers": [of_layer]}]).to_string();
    for manifests in [Value::Null, json!([])] {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        let archive = pack(&[
            (of_config.clone(), config.clone()),
            (of_layer.clone(), layer.clone()),
            ("index.json".to_owned(), index.into_bytes()),
            ("manifest.json".to_owned(), manifest.clone().into_bytes()),
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ]);
        let imported = import_bytes(&archive, tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!((imported.source, imported.entries), (SourceKind::Docker, 1));
    }
}

#[test]
fn what_is_known_to_be_something_else_is_named_with_what_to_do() {
    let bootstrap = Tar::default().file("pkglist.txt", b"").file("root.x86_64/usr/bin/sh", b"").end();
    let incus = Tar::default().file("metadata.yaml", b"").file("rootfs/usr/bin/sh", b"").end();
    for (archive, found, advice) in
        [(bootstrap, "\"root.x86_64\"", "tar -C \"root.x86_64\""), (incus, "Incus", "tar -C rootfs")]
    {
        let error = import_error(&archive);
        assert!(matches!(error, ImageError::NotARoot { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(found) && text.contains(advice), "{text}");
    }
    // Another file system in a folder of a root is one in a folder.
    let whole = Tar::default().file("etc/x", b"").file("srv/usr/bin/sh", b"").end();
    import_bytes(&whole, tempfile::tempdir().unwrap().path()).unwrap();
}

#[test]
fn what_ext4_had_found_again_is_kept() {
    let tar = Tar::default().dir("lost+found").file("lost+found/#1234", b"found").file("etc/x", b"").end();
    assert_eq!(tree(&tar)["lost+found/#1234"], "file found");
    let folder = tempfile::tempdir().unwrap();
    fsck(&import_bytes(&tar, folder.path()).unwrap().rootfs_path);
}

#[test]
fn root_may_be_whatever_it_is() {
    for root in [Tar::default().symlink("root", "var/nowhere"), Tar::default().file("root", b""), Tar::default()] {
        let folder = tempfile::tempdir().unwrap();
        let archive = root.file("etc/x", b"").end();
        let ImportedRootfs { rootfs_path, seed_path, .. } = import_bytes(&archive, folder.path()).unwrap();
        fsck(&rootfs_path);
        let seed = Some(File::open(seed_path).unwrap());
        let disk = folder.path().join("work.ext4");
        work_disk::create(WorkDisk { size: 64 << 20, seed, uuid: [1; 16] }, &disk, &()).unwrap();
        fsck(&disk);
    }
}
