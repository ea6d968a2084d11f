//! Where GNU tar and the readers of container engines differ: what one of them takes with a warning
//! at most, and what it makes of it. `banger-image/tests/README.md` lists all kinds.

use super::super::layers::Layer;
use super::super::tree::Node;
use super::kinds::{layer, node_of, tree, warned};
use super::maker::{Item, Tar, item, record, window_of};

/// The same entry of a root file system and of a layer.
fn of_both(archive: &[u8], path: &str) -> [Node; 2] {
    [false, true].map(|whiteouts| node_of(&Layer { whiteouts, ..Layer::root(window_of(archive)) }, path))
}

fn names(node: &Node) -> Vec<&str> {
    node.xattrs.iter().map(|xattr| xattr.name.as_str()).collect()
}

/// docker and containerd apply the header of a hard link like any other: the file has it under all
/// of its names.
#[test]
fn the_header_of_a_hard_link_counts_in_a_layer() {
    let capability = ("SCHILY.xattr.security.capability", &[1_u8, 0, 0, 2][..]);
    let pax = vec![capability, ("SCHILY.xattr.user.old", b"1"), ("SCHILY.xattr.user.both", b"1")];
    let file = Item { mode: 0o4755, owner: (1, 2), mtime: 1000, pax, ..item(b'0', "etc/a") };
    let header = Item { link: b"etc/a", mode: 0o600, owner: (5, 6), mtime: 5000, ..item(b'1', "etc/b") };
    let pax = vec![("SCHILY.xattr.user.both", &b"2"[..]), ("mtime", b"5000.5")];
    let described = Item { pax: [pax.clone(), vec![capability]].concat(), ..header.clone() };
    let plain = Item { pax, ..header };
    for (link, kept) in [
        (&plain, &["user.old", "user.both"][..]),
        // chown(2) has taken the capabilities away before.
        (&described, &["user.old", "user.both", "security.capability"]),
    ] {
        let archive = Tar::default().add(&file).add(link).end();
        let [root, by_layer] = of_both(&archive, "etc/a");
        let meta = |node: &Node| (node.meta.mode, node.meta.uid, node.meta.gid, node.meta.mtime);
        assert_eq!(meta(&root), (0o4755, 1, 2, (1000, 0)));
        assert_eq!(names(&root), ["security.capability", "user.old", "user.both"]);
        assert_eq!(meta(&by_layer), (0o600, 5, 6, (5000, 500_000_000)));
        assert_eq!((names(&by_layer), by_layer.links()), (kept.to_vec(), 2));
        assert_eq!(by_layer.xattrs[1].value, b"2");
    }
    // A symlink has no mode of its own.
    let link = Item { link: b"etc/s", mode: 0o600, owner: (5, 6), ..item(b'1', "etc/t") };
    let [root, by_layer] = of_both(&Tar::default().symlink("etc/s", "x").add(&link).end(), "etc/t");
    assert_eq!([&root, &by_layer].map(|node| (node.meta.mode, node.meta.uid)), [(0o777, 0), (0o777, 5)]);
    // Nor is it the link's header that counts for what AUFS had put away.
    let away = Item { data: b"1", mode: 0o751, owner: (1, 1), ..item(b'0', ".wh..wh.plnk/1.2") };
    let link = Item { link: b".wh..wh.plnk/1.2", owner: (5, 6), ..item(b'1', "etc/f") };
    let found = &of_both(&Tar::default().dir(".wh..wh.plnk").add(&away).add(&link).end(), "etc/f")[1];
    assert_eq!((found.meta.mode, found.meta.uid), (0o751, 1));
}

/// In a layer the mode of a header is set after its attributes, and changes an ACL as chmod(2)
/// does.
#[test]
fn a_mode_comes_after_the_acl_in_a_layer() {
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)];
    let raw =
        entries.map(|(tag, allowed, id)| [&tag.to_le_bytes()[..], &allowed.to_le_bytes(), &id.to_le_bytes()].concat());
    let raw = [&2_u32.to_le_bytes()[..], &raw.concat()].concat();
    let file = Item { mode: 0o640, pax: vec![("SCHILY.xattr.system.posix_acl_access", &raw)], ..item(b'0', "etc/a") };
    let link = Item { link: b"etc/a", mode: 0o604, ..item(b'1', "etc/b") };
    let mask = |node: &Node| (node.meta.mode, node.xattrs[0].value[22]);
    let [root, by_layer] = of_both(&Tar::default().add(&file).end(), "etc/a");
    assert_eq!([mask(&root), mask(&by_layer)], [(0o750, 5), (0o640, 4)]);
    let [root, by_layer] = of_both(&Tar::default().add(&file).add(&link).end(), "etc/a");
    assert_eq!([mask(&root), mask(&by_layer)], [(0o750, 5), (0o604, 0)]);
}

#[test]
fn an_acl_that_no_kernel_takes_is_left_out() {
    for (key, text) in [
        ("SCHILY.acl.access", &b"user::rw-,user:7:r,group::r,other::r"[..]),
        ("SCHILY.acl.access", b"user::rw-"),
        ("SCHILY.acl.access", b"no ACL at all\xff"),
        ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0\x01"),
    ] {
        let archive = Tar::default().add(&Item { data: b"1", pax: vec![(key, text)], ..item(b'0', "etc/x") }).end();
        assert_eq!(warned(&archive, "its ACL is left out")["etc/x"], "file 1", "{text:?}");
        // docker and containerd read the attribute alone, and give it to the kernel.
        assert_eq!(layer(&archive).is_ok(), key.starts_with("SCHILY.acl"), "{text:?}");
    }
    let text = vec![("SCHILY.acl.access", &b"user::rwx,user:7:rwx,group::r,mask::rwx,other::-"[..])];
    let [root, by_layer] = of_both(&Tar::default().add(&Item { pax: text, ..item(b'0', "etc/x") }).end(), "etc/x");
    assert_eq!((root.meta.mode, names(&root)), (0o770, vec!["system.posix_acl_access"]));
    assert_eq!((by_layer.meta.mode, names(&by_layer)), (0o644, vec![]));
}

/// Keys that bsdtar, star and GNU tar have beside those of Go.
#[test]
fn what_go_passes_over_means_nothing_in_a_layer() {
    let pax = vec![("LIBARCHIVE.xattr.user.x", &b"djE="[..]), ("RHT.security.selinux", b"a:b:c:s0")];
    let [root, by_layer] = of_both(&Tar::default().add(&Item { pax, ..item(b'0', "etc/x") }).end(), "etc/x");
    assert_eq!((names(&root).len(), names(&by_layer).len()), (1, 0));
}

#[test]
fn a_name_in_a_pax_record_ends_at_its_first_nul() {
    for pad in [&b"\0"[..], b"\0\0\0", b"\0zzz"] {
        let padded = |name: &str| [name.as_bytes(), pad].concat();
        let (path, target) = (padded("etc/y"), padded("etc/y"));
        let file = Item { data: b"1", pax: vec![("path", &path)], ..item(b'0', "short") };
        let link = Item { pax: vec![("linkpath", &target)], ..item(b'1', "etc/z") };
        let symlink = Item { pax: vec![("linkpath", &target)], ..item(b'2', "etc/s") };
        let found = tree(&Tar::default().add(&file).add(&link).add(&symlink).end());
        assert_eq!(["etc/y", "etc/z", "etc/s"].map(|path| found[path].as_str()), ["file 1", "file 1", "link etc/y"]);
        for item in [&file, &link, &symlink] {
            let archive = Tar::default().file("etc/y", b"").add(item).end();
            assert!(layer(&archive).is_err(), "Go refuses it");
        }
    }
}

#[test]
fn odd_records_of_pax_are_passed_over() {
    let mut key = record("SCHILY.xattr.user.caf_", b"1");
    let at = key.iter().position(|byte| *byte == b'_').unwrap();
    key[at] = 0xe9;
    let charset = record("hdrcharset", b"ISO-IR 8859 1 1998");
    let attribute = record("LIBARCHIVE.xattr.user.x", b"no base64!");
    for (records, words) in
        [(&key, "is not UTF-8"), (&charset, "names are taken as they are"), (&attribute, "as libarchive encodes it")]
    {
        let named = [&records[..], &record("path", b"etc/x")].concat();
        let header = Item { data: &named, ..item(b'x', "pax") };
        let archive = Tar::default().add(&header).file("short", b"1").end();
        assert_eq!(warned(&archive, words)["etc/x"], "file 1", "{words}");
        assert_eq!(layer(&archive).unwrap()["etc/x"], "file 1", "{words}");
        let global = Tar::default().add(&Item { data: records, ..item(b'g', "g") }).file("etc/x", b"1").end();
        assert_eq!(warned(&global, words)["etc/x"], "file 1", "{words}");
    }
    // As Python prints a float.
    let archive = Tar::default().add(&Item { pax: vec![("mtime", b"1e-05")], ..item(b'0', "etc/x") }).end();
    let root = node_of(&Layer::root(window_of(&archive)), "etc/x");
    assert_eq!(root.meta.mtime, (1, 0));
    assert!(layer(&archive).is_err(), "Go refuses it");
}
