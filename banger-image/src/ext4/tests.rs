//! File systems in the hands of e2fsck and of the kernel. What needs root, loop devices or
//! e2fsprogs says what is missing.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why it is skipped")]

use super::*;
use crate::content::{Content, Contents, Piece, Sparse};
use crate::names::EntryPath;
use crate::source::Window;
use crate::tree::{Meta, Names, NodeKind, Tree};
use crate::xattr::Xattr;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

const META: Meta = Meta { mode: 0o644, uid: 1000, gid: 2000, mtime: (1_700_000_000, 5) };

fn put(tree: &mut Tree, path: &[u8], kind: NodeKind) {
    let mode = if matches!(kind, NodeKind::Dir(_)) { 0o755 } else { 0o644 };
    tree.put(&EntryPath::parse(path).unwrap(), kind, Meta { mode, ..META }, Box::default()).unwrap();
}

/// A window of `megabytes`, in which every block has data.
fn window(megabytes: usize) -> Window {
    let mut file = tempfile::tempfile().unwrap();
    let block: Vec<u8> = (1..=251).cycle().take(1 << 20).collect();
    (0..megabytes).for_each(|_| file.write_all(&block).unwrap());
    Window::whole(file).unwrap()
}

fn written(tree: &Tree, windows: &[Window], size: Size, path: &Path) -> Result<Written, Ext4Error> {
    let file = File::options().write(true).create_new(true).open(path).unwrap();
    let (Size::Exactly { bytes, .. } | Size::Smallest { most: bytes }) = size;
    file.set_len(bytes).unwrap();
    write(tree, &Contents(windows), &Spec { size, uuid: [0x5a; 16], label: "test" }, &file, &())
}

/// False, said aloud, when there is no e2fsck.
fn is_clean(path: &Path) -> bool {
    let run = |folder: &str| Command::new(format!("{folder}/e2fsck")).arg("-fn").arg(path).output().ok();
    let Some(output) = ["/usr/sbin", "/sbin"].into_iter().find_map(run) else {
        println!("skipped: no e2fsck");
        return false;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("Fix?") && !said.contains("warning"), "{said}");
    true
}

/// Mounts the file system as a guest would, but read-only, and looks at it.
fn mounted(path: &Path, look: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let mount = Command::new("mount").args(["-o", "ro,loop"]).arg(path).arg(folder.path()).output();
    if !mount.as_ref().is_ok_and(|output| output.status.success()) {
        let why = if nix_is_root() { "no loop devices or no ext4 here" } else { "not root" };
        println!("skipped: {why}");
        return;
    }
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(folder.path())));
    assert!(Command::new("umount").arg(folder.path()).status().unwrap().success());
    looked.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
}

fn nix_is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Every name is looked up: e2fsck is content with folders in which the kernel finds nothing.
#[test]
fn the_kernel_finds_every_name() {
    let mut tree = Tree::new();
    let mut all: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for (folder, count) in [("one", 1_u32), ("block", 200), ("leaves", 5_000), ("levels", 90_000)] {
        put(&mut tree, folder.as_bytes(), NodeKind::Dir(Names::new()));
        for number in 0..count {
            // Long and short names, names that are not UTF-8, links, and folders.
            let name = match number % 5 {
                0 => format!("{folder}/{number:x}").into_bytes(),
                1 => [format!("{folder}/").as_bytes(), &[0xff, 0xe9], number.to_string().as_bytes()].concat(),
                2 => format!("{folder}/{}{number}", "long".repeat(50)).into_bytes(),
                _ => format!("{folder}/a name with spaces {number}").into_bytes(),
            };
            let kind = match number % 7 {
                0 => NodeKind::Dir(Names::new()),
                1 => NodeKind::Symlink(vec![b'l'; 1 + number as usize % 200].into()),
                _ => NodeKind::File(Content { window: 0, offset: 0, size: 0 }),
            };
            all.insert(name.clone(), matches!(kind, NodeKind::Dir(_)));
            put(&mut tree, &name, kind);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.ext4");
    written(&tree, &[window(0)], Size::Smallest { most: 4 << 30 }, &path).unwrap();
    if !is_clean(&path) {
        return;
    }
    mounted(&path, |root| {
        for (name, is_dir) in &all {
            let found = std::fs::symlink_metadata(root.join(OsStr::from_bytes(name)));
            let found = found.unwrap_or_else(|error| unreachable!("{}: {error}", String::from_utf8_lossy(name)));
            assert_eq!(found.is_dir(), *is_dir);
            assert_eq!((found.uid(), found.gid(), found.mtime_nsec()), (1000, 2000, 5));
        }
        assert!(std::fs::symlink_metadata(root.join("leaves/nothing")).is_err());
        let listed = std::fs::read_dir(root.join("levels")).unwrap().count();
        assert_eq!(listed, 90_000);
    });
}

/// The index leads to the first of two blocks that names of one hash are in. One bit says that it
/// goes on in the next.
#[test]
fn names_of_one_hash_are_found_on_both_sides_of_a_block() {
    let seed = writer::hash_seed([0x5a; 16]);
    let mut all: Vec<(u32, String)> = (0..300_000_u32)
        .map(|number| format!("{number:08}"))
        .map(|name| (hash::half_md4(name.as_bytes(), seed), name))
        .collect();
    all.sort();
    // Entries of 16 bytes in blocks with room for 4084.
    const OF_BLOCK: usize = 4084 / 16;
    let pair = (2 * OF_BLOCK..all.len() - OF_BLOCK).find(|at| all[*at].0 == all[*at + 1].0).unwrap();
    let begin = pair + 1 - 2 * OF_BLOCK;
    let mut tree = Tree::new();
    put(&mut tree, b"d", NodeKind::Dir(Names::new()));
    let names = || all[begin..pair + OF_BLOCK].iter().map(|(_, name)| name);
    names().for_each(|name| put(&mut tree, format!("d/{name}").as_bytes(), NodeKind::Fifo));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes.ext4");
    written(&tree, &[window(0)], Size::Smallest { most: 1 << 30 }, &path).unwrap();
    if is_clean(&path) {
        mounted(&path, |root| {
            for name in names() {
                assert!(std::fs::symlink_metadata(root.join("d").join(name)).is_ok(), "{name}");
            }
        });
    }
}

#[test]
fn contents_holes_and_attributes_are_what_they_were() {
    let windows = [window(40)];
    let mut tree = Tree::new();
    let file = |offset, size| NodeKind::File(Content { window: 0, offset, size });
    put(&mut tree, b"large", file(3, 35 << 20));
    put(&mut tree, b"small", file(1, 10));
    put(&mut tree, b"empty", file(0, 0));
    // A piece in each second stretch of 128 KiB: thousands of extents, and a hole at both ends.
    let pieces: Vec<Piece> = (0..3000).map(|n| Piece { at: (2 * n + 1) << 17, size: 5000, from: n * 5000 }).collect();
    let data = Content { window: 0, offset: 7, size: 3000 * 5000 };
    let size = 3000 << 18;
    put(&mut tree, b"pieces", NodeKind::Sparse(Box::new(Sparse { data, size, pieces: pieces.clone().into() })));
    let data = Content { window: 0, offset: 0, size: 1 };
    let far = vec![Piece { at: (5 << 40) - 1, size: 1, from: 0 }];
    put(&mut tree, b"far", NodeKind::Sparse(Box::new(Sparse { data, size: 5 << 40, pieces: far.into() })));
    let value = |length: usize| vec![b'v'; length];
    for (name, sizes) in [("few", vec![20]), ("many", vec![20, 900, 3, 2000])] {
        let xattrs: Vec<Xattr> =
            sizes.iter().map(|size| Xattr { name: format!("user.n{size}"), value: value(*size) }).collect();
        tree.put(&EntryPath::parse(name.as_bytes()).unwrap(), file(0, 1), META, xattrs.into()).unwrap();
    }
    put(&mut tree, b"null", NodeKind::Char(1, 3));
    put(&mut tree, b"disk", NodeKind::Block(259, 70_000));
    put(&mut tree, b"pipe", NodeKind::Fifo);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("contents.ext4");
    written(&tree, &windows, Size::Smallest { most: 1 << 30 }, &path).unwrap();
    if !is_clean(&path) {
        return;
    }
    let contents = Contents(&windows);
    mounted(&path, |root| {
        for name in ["large", "small", "empty", "pieces"] {
            let id = tree.child(Tree::ROOT, name.as_bytes()).unwrap();
            let wanted = tree.node(id).kind.bytes(&contents).unwrap();
            let mut whole = vec![0; usize::try_from(wanted.size()).unwrap()];
            wanted.read_at(0, &mut whole).unwrap();
            assert!(std::fs::read(root.join(name)).unwrap() == whole, "{name}");
        }
        let blocks = |name: &str| std::fs::metadata(root.join(name)).unwrap().blocks() / 8;
        assert!(blocks("pieces") >= 6000 && blocks("pieces") < 6100, "{}", blocks("pieces"));
        assert_eq!((blocks("far"), std::fs::metadata(root.join("far")).unwrap().len()), (1, 5 << 40));
        assert_eq!((blocks("few"), blocks("many")), (1, 2), "attributes in the inode, and in a block");
        let device = |name: &str| std::fs::metadata(root.join(name)).unwrap().rdev();
        assert_eq!((device("null"), device("disk")), (0x103, 259 << 8 | 70_000 & 0xff | (70_000 >> 8) << 20));
        let said = Command::new("getfattr").args(["-d", "--absolute-names"]).arg(root.join("many")).output();
        if let Ok(said) = said {
            assert_eq!(String::from_utf8_lossy(&said.stdout).matches("user.n").count(), 4);
        } else {
            println!("skipped: no getfattr");
        }
    });
}

#[test]
fn blocks_of_zeros_take_no_room() {
    let mut file = tempfile::tempfile().unwrap();
    let mut bytes = vec![0_u8; 4 << 20];
    bytes[100] = 1;
    // A short stretch of zeros between two blocks, and a long one.
    bytes[3 * 4096] = 1;
    bytes[(2 << 20) + 5] = 1;
    file.write_all(&bytes).unwrap();
    let mut tree = Tree::new();
    put(&mut tree, b"zeros", NodeKind::File(Content { window: 0, offset: 0, size: 4 << 20 }));
    put(&mut tree, b"nothing", NodeKind::File(Content { window: 0, offset: 4096, size: 8192 }));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zeros.ext4");
    written(&tree, &[Window::whole(file).unwrap()], Size::Exactly { bytes: 16 << 20, inodes: 100 }, &path).unwrap();
    if is_clean(&path) {
        mounted(&path, |root| {
            assert!(std::fs::read(root.join("zeros")).unwrap() == bytes);
            let blocks = |name: &str| std::fs::metadata(root.join(name)).unwrap().blocks() / 8;
            assert_eq!((blocks("zeros"), blocks("nothing")), (5, 0));
        });
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    let mut path = || {
        number += 1;
        dir.path().join(number.to_string())
    };
    let mut tree = Tree::new();
    put(&mut tree, b"large", NodeKind::File(Content { window: 0, offset: 0, size: 20 << 20 }));
    let windows = [window(20)];
    let exactly = |bytes, inodes| Size::Exactly { bytes, inodes };
    assert!(matches!(written(&tree, &windows, exactly(16 << 20, 64), &path()), Err(Ext4Error::Full { .. })));
    let most = Size::Smallest { most: 0 };
    assert!(matches!(written(&tree, &windows, most, &path()), Err(Ext4Error::Inodes { .. })));
    for bytes in [0, 4096, 1 << 20] {
        assert!(written(&Tree::new(), &windows, exactly(bytes, 64), &path()).is_err(), "{bytes}");
    }
    let mut many = Tree::new();
    (0..200).for_each(|n| put(&mut many, format!("{n}").as_bytes(), NodeKind::Fifo));
    assert!(matches!(written(&many, &windows, exactly(16 << 20, 64), &path()), Err(Ext4Error::Inodes { .. })));
    let mut lost = Tree::new();
    put(&mut lost, b"lost+found", NodeKind::Fifo);
    assert!(matches!(written(&lost, &windows, exactly(16 << 20, 64), &path()), Err(Ext4Error::LostAndFound)));
}

/// More files than a file system of the size has by mke2fs's rule, and their contents fit.
#[test]
fn many_small_files_fit_where_their_contents_do() {
    let mut tree = Tree::new();
    (0..40_000).for_each(|n| put(&mut tree, format!("{}/{n}", n % 100).as_bytes(), NodeKind::Fifo));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.ext4");
    written(&tree, &[window(0)], Size::Smallest { most: 384 << 20 }, &path).unwrap();
    is_clean(&path);
}

/// The tree refuses such names before; whatever becomes of that, no file system has them.
#[test]
fn a_name_that_the_tree_has_let_in_is_refused_where_it_is_written() {
    for name in [&b".."[..], b"a/b", b"a\nb", &[b'x'; 256]] {
        let mut tree = Tree::new();
        put(&mut tree, b"x", NodeKind::Fifo);
        let NodeKind::Dir(names) = &mut tree.node_mut(Tree::ROOT).kind else { unreachable!() };
        let child = names.remove(&b"x"[..]).unwrap();
        names.insert(name.into(), child);
        let dir = tempfile::tempdir().unwrap();
        let refused = written(&tree, &[window(0)], Size::Smallest { most: 64 << 20 }, &dir.path().join("x"));
        assert!(matches!(refused, Err(Ext4Error::Name(_))), "{refused:?}");
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"a".to_vec()),
        Just(b"b".to_vec()),
        Just(b"lost+found".to_vec()),
        proptest::collection::vec(0x80_u8..=0xff, 1..200),
        "[a-z]{1,255}".prop_map(String::into_bytes),
    ]
}

fn kind() -> impl Strategy<Value = NodeKind> {
    prop_oneof![
        4 => (0..1_u64 << 20, 0..200_000_u64)
            .prop_map(|(offset, size)| NodeKind::File(Content { window: 0, offset, size })),
        2 => Just(NodeKind::Dir(Names::new())),
        2 => proptest::collection::vec(1..=255_u8, 1..300).prop_map(|target| NodeKind::Symlink(target.into())),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| NodeKind::Char(major, minor)),
        1 => Just(NodeKind::Fifo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Trees and sizes of all kinds: e2fsck finds nothing, and the same input gives the same bytes.
    #[test]
    fn every_tree_is_a_clean_file_system(
        entries in proptest::collection::vec((proptest::collection::vec(name(), 1..4), kind(), any::<(i64, u32, u32)>()), 0..80),
        size in prop_oneof![
            (4096_u64..80_000).prop_map(|blocks| Size::Exactly { bytes: blocks * 4096, inodes: 300 }),
            Just(Size::Smallest { most: 1 << 30 }),
        ],
        attribute in 0..3000_usize,
    ) {
        let mut tree = Tree::new();
        for (parts, kind, (time, uid, gid)) in entries {
            // Random bytes may be a control character in UTF-8, which no tree has in a name.
            let Ok(path) = EntryPath::parse(&parts.join(&b'/')) else { continue };
            let meta = Meta { mode: 0o7777, uid, gid, mtime: (time, gid % 1_000_000_000) };
            let xattrs = [Xattr { name: "user.x".to_owned(), value: vec![1; attribute] }];
            // Names below files, and the like, are refused.
            let _ = tree.put(&path, kind, meta, xattrs.into());
        }
        let windows = [window(2)];
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        match written(&tree, &windows, size, &first) {
            Err(Ext4Error::LostAndFound) => return Ok(()),
            Err(Ext4Error::Full { .. }) if matches!(size, Size::Exactly { .. }) => return Ok(()),
            result => {
                prop_assert!(result.is_ok(), "{:?}", result);
                is_clean(&first);
                let length = result.map(|written| written.bytes).unwrap_or_default().to_string();
                written(&tree, &windows, size, &second).unwrap();
                // Behind the file system there is one hole.
                let same = Command::new("cmp").args(["-n", &length]).arg(&first).arg(&second).status().unwrap();
                prop_assert!(same.success());
            }
        }
    }
}
