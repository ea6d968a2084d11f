//! Archives of people that readers of archives have stumbled over: each kind that no other test
//! makes. `banger-image/tests/README.md` lists all kinds.

use super::super::layers::{Layer, apply};
use super::super::source::{Budget, Progress};
use super::super::tree::{Node, NodeId, NodeKind, Tree};
use super::super::work_disk::{self, WorkDisk};
use super::super::xattr::Xattr;
use super::super::{ImageError, ImportedRootfs, SourceKind};
use super::maker::{Item, Tar, fsck, gzip, import_bytes, import_error, item, pack, sha256, window_of};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Mutex;

pub(super) fn applied(layer: &Layer, progress: &dyn Progress) -> Result<Tree, ImageError> {
    let mut tree = Tree::new();
    apply(&mut tree, layer, 0, &mut Budget::new(u64::MAX, u64::MAX), progress).map(|()| tree)
}

/// What a root file system comes to: each path, and what is there.
pub(super) fn tree(archive: &[u8]) -> BTreeMap<String, String> {
    tree_of(&Layer::root(window_of(archive)), &()).unwrap()
}

/// The same of a layer of an image.
pub(super) fn layer(archive: &[u8]) -> Result<BTreeMap<String, String>, ImageError> {
    tree_of(&Layer { whiteouts: true, ..Layer::root(window_of(archive)) }, &())
}

fn tree_of(layer: &Layer, progress: &dyn Progress) -> Result<BTreeMap<String, String>, ImageError> {
    let tree = applied(layer, progress)?;
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
    Ok(found)
}

/// What an entry is, with its metadata.
fn node(archive: &[u8], path: &str) -> Node {
    node_of(&Layer::root(window_of(archive)), path)
}

pub(super) fn node_of(layer: &Layer, path: &str) -> Node {
    let tree = applied(layer, &()).unwrap();
    let id = path.split('/').fold(Tree::ROOT, |id, name| tree.child(id, name.as_bytes()).unwrap());
    tree.node(id).clone()
}

/// Remembers warnings.
#[derive(Default)]
struct Warned(Mutex<Vec<String>>);

impl Progress for Warned {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// The root file system of what GNU tar reads with a warning.
pub(super) fn warned(archive: &[u8], words: &str) -> BTreeMap<String, String> {
    let warned = Warned::default();
    let found = tree_of(&Layer::root(window_of(archive)), &warned).unwrap();
    let said = warned.0.lock().unwrap();
    assert!(said.iter().any(|text| text.contains(words)), "{words}: {said:?}");
    found
}

/// The archive with another header for the entry that begins at `at`.
pub(super) fn changed(mut archive: Vec<u8>, at: usize, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let header = &mut archive[at..at + 512];
    change(header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive
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
    let mut ext4 = vec![0; 1 << 20];
    ext4[0x438..0x43a].copy_from_slice(b"\x53\xef");
    let qcow2 = [&b"QFI\xfb"[..], &[0; 2000]].concat();
    for (disk, found, advice) in [
        (gzip(&ext4), "an ext4 file system", "decompress it"),
        (ext4, "an ext4 file system", "banger image register --rootfs FILE NAME"),
        (qcow2, "a qcow2 disk", "qemu-img convert"),
    ] {
        let error = import_error(&disk);
        assert!(matches!(error, ImageError::Disk { .. }), "{error}");
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

/// It takes the place of the umask in that folder, as it is; the access ACL of three entries is the
/// mode.
#[test]
fn a_default_acl_of_three_entries_is_kept() {
    let binary: Vec<u8> = [(1_u16, 7_u16), (4, 5), (32, 0)]
        .into_iter()
        .flat_map(|(tag, allowed)| [&tag.to_le_bytes()[..], &allowed.to_le_bytes(), &[0xff; 4]].concat())
        .collect();
    let binary = [&2_u32.to_le_bytes()[..], &binary].concat();
    let text = &b"user::rwx,group::r-x,other::---"[..];
    let stored = vec![1, 0, 0, 0, 1, 0, 7, 0, 4, 0, 5, 0, 32, 0, 0, 0];
    for pax in [
        vec![("SCHILY.acl.default", text), ("SCHILY.acl.access", text)],
        vec![
            ("SCHILY.xattr.system.posix_acl_default", &binary[..]),
            ("SCHILY.xattr.system.posix_acl_access", &binary[..]),
        ],
    ] {
        let tar = Tar::default().add(&Item { pax, ..item(b'5', "etc/shared") }).end();
        let kept = node(&tar, "etc/shared").xattrs.into_vec();
        assert_eq!(kept, [Xattr { name: "system.posix_acl_default".to_owned(), value: stored.clone() }]);
    }
}

/// Writers pad numbers with NULs on either side.
#[test]
fn a_number_may_have_nuls_before_its_digits() {
    let mut archive = Tar::default().dir("etc").file("etc/next", b"1").end();
    for (field, raw) in [(100..108, b"\0\x0000711\0"), (108..116, b"\x001750\0\0\0"), (116..124, b" \x0001750 ")] {
        archive[field].copy_from_slice(raw);
    }
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..156].copy_from_slice(format!("\0{sum:06o} ").as_bytes());
    let found = tree(&archive);
    assert_eq!((found["etc"].as_str(), found["etc/next"].as_str()), ("folder 711 1000", "file 1"));
}

/// Before 1.8 Go wrote a prefix into GNU headers, where times belong, and heeds it to this day.
#[test]
fn an_old_layer_of_docker_has_a_prefix_in_gnu_headers() {
    let tar = Tar::default().file("x", b"1").end();
    let with =
        |prefix: &[u8]| changed(tar.clone(), 0, |header| header[345..345 + prefix.len()].copy_from_slice(prefix));
    for (prefix, name) in [
        (&b"usr/share/doc"[..], "usr/share/doc/x"),
        (b"00000000001\x0000000000002\0", "x"),
        (b"usr/\xe9", "x"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0usr", "usr/x"),
    ] {
        let found = layer(&with(prefix)).unwrap();
        // With NULs at its beginning the field is no text.
        let name = if prefix[0] == 0 { "x" } else { name };
        assert_eq!(found[name], "file 1", "{prefix:?}");
    }
    assert_eq!(tree(&with(b"usr/share/doc"))["x"], "file 1", "GNU tar takes them for times");
}

#[test]
fn of_two_extended_headers_the_second_counts() {
    let pax = |pax: Vec<(&'static str, &'static [u8])>| Item { data: b"1", pax, ..item(b'0', "etc/x") };
    let first = Tar::default().add(&pax(vec![("path", b"etc/wrong"), ("uid", b"7")])).0;
    // Its header alone: two blocks.
    let tar = Tar([first[..1024].to_vec(), Tar::default().add(&pax(vec![("gid", b"8")])).0].concat()).end();
    let found = node(&tar, "etc/x");
    assert_eq!((found.meta.uid, found.meta.gid), (0, 8));
    let long = Tar::default().gnu_long(b'L', b"etc/wrong").gnu_long(b'L', b"etc/right");
    let long = long.gnu_long(b'K', b"wrong").gnu_long(b'K', b"right").symlink("short", "short");
    assert_eq!(tree(&long.end())["etc/right"], "link right");
}

#[test]
fn a_negative_owner_is_what_chown_makes_of_it() {
    let item = Item { pax: vec![("uid", b"-2"), ("gid", b"-3")], ..item(b'0', "etc/x") };
    let found = node(&Tar::default().add(&item).end(), "etc/x").meta;
    assert_eq!((found.uid, found.gid), (u32::MAX - 1, u32::MAX - 2));
}

#[test]
fn what_gnu_tar_reads_with_a_warning_is_read_with_one() {
    let file = Tar::default().file("etc/x", b"1");
    let unknown = Tar::default().add(&Item { data: b"1", ..item(b'Z', "etc/x") }).end();
    let lone = Tar([&file.0[..], &[0; 512]].concat()).file("etc/behind", b"2").end();
    let cut_end = [&file.0[..], &[0; 100]].concat();
    for (archive, words) in
        [(&unknown, "the unknown type 'Z'"), (&lone, "a lone block of zeros"), (&cut_end, "no end-of-archive marker")]
    {
        let found = warned(archive, words);
        assert_eq!((found["etc/x"].as_str(), found.contains_key("etc/behind")), ("file 1", false), "{words}");
        assert!(layer(archive).is_err(), "Go refuses it: {words}");
    }
}

#[test]
fn a_symlink_has_the_one_mode_that_linux_gives_it() {
    let tar = Tar::default().add(&Item { link: b"x", mode: 0o644, ..item(b'2', "etc/link") }).end();
    assert_eq!(node(&tar, "etc/link").meta.mode, 0o777);
}

/// GNU tar writes `=` and `%` so, for a key ends at `=`; Go has no names with `=`, and changes
/// none.
#[test]
fn the_name_of_an_attribute_may_have_an_equals_sign() {
    let encoded = vec![("SCHILY.xattr.user.a%3Db%25", &b"v=1"[..]), ("SCHILY.xattr.user.%41", b"2")];
    let tar = Tar::default().add(&Item { pax: encoded, ..item(b'0', "root/x") }).end();
    let names = |node: Node| node.xattrs.into_vec().into_iter().map(|xattr| xattr.name).collect::<Vec<_>>();
    assert_eq!(names(node(&tar, "root/x")), ["user.a=b%", "user.%41"]);
    let of_layer = node_of(&Layer { whiteouts: true, ..Layer::root(window_of(&tar)) }, "root/x");
    assert_eq!(names(of_layer), ["user.a%3Db%25", "user.%41"]);
    // By way of the seed it stays the same.
    let folder = tempfile::tempdir().unwrap();
    let seed = import_bytes(&tar, folder.path()).unwrap().seed_path;
    assert_eq!(names(node(&std::fs::read(seed).unwrap(), "x")), ["user.a=b%", "user.%41"]);
}

#[test]
fn a_container_engine_is_known_by_its_daemon() {
    let engines = ["usr/bin/dockerd", "usr/sbin/containerd", "usr/local/bin/dockerd", "bin/containerd", "sbin/dockerd"];
    let others = ["usr/bin/docker", "opt/bin/dockerd", "usr/share/containerd", "etc/x"];
    for (path, is) in engines.map(|path| (path, true)).into_iter().chain(others.map(|path| (path, false))) {
        let tar = Tar::default().dir("etc").file(path, b"").end();
        let found = import_bytes(&tar, tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(found.docker, is, "{path}");
    }
    let linked = Tar::default().symlink("bin", "programs").file("programs/dockerd", b"").end();
    assert!(import_bytes(&linked, tempfile::tempdir().unwrap().path()).unwrap().docker);
}
