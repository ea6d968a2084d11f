//! Bad input ends with an error that says what it is, before anything is written.

use super::super::{ImageError, Limits, NameFault, Progress, import};
use super::maker::{Item, Oci, Tar, file_of, gzip, hasher, import_bytes, import_error, item, record};

#[test]
fn each_kind_of_no_archive_has_its_own_words() {
    assert!(matches!(import_error(b""), ImageError::EmptyFile));
    assert!(matches!(import_error(&[0; 10240]), ImageError::NoEntries { .. }));
    for junk in [&b"#!/bin/sh\necho hello\n"[..], &[7; 4096], &gzip(b"text"), b"\x7fELF\x02\x01\x01 and more"] {
        let error = import_error(junk);
        assert!(matches!(error, ImageError::NotTar { .. }) && error.to_string().contains(".tar.gz"), "{error}");
    }
    let error = import_error(b"\x89LZO\0\r\n\x1a\n and more");
    assert!(matches!(error, ImageError::Compression { format: "lzo", .. }), "{error}");
}

#[test]
fn every_truncation_is_noticed() {
    let tar = Tar::default().dir("etc").file("etc/hostname", &[b'x'; 700]).file("last", b"y");
    let end = tar.0.len();
    let whole = tar.end();
    let dir = tempfile::tempdir().unwrap();
    assert!(import_bytes(&whole, dir.path()).is_ok());
    // Behind a whole entry nothing tells a cut from an archive without an end mark, which every
    // reader accepts; its padding may be missing, too.
    let whole_entries = |cut: &usize| *cut == 512 || (1024 + 700..=2048).contains(cut) || *cut > end - 512;
    for cut in (513..end).step_by(37).chain([1024, 1536]).filter(|cut| !whole_entries(cut)) {
        let error = import_error(&whole[..cut]);
        assert!(matches!(error, ImageError::Truncated { .. }), "cut at {cut}: {error}");
    }
    let packed = gzip(&whole);
    for cut in [11, packed.len() / 2, packed.len() - 1] {
        let error = import_error(&packed[..cut]);
        assert!(matches!(error, ImageError::Truncated { .. }), "cut at {cut}: {error}");
    }
}

#[test]
fn a_flipped_header_byte_is_noticed() {
    let mut whole = Tar::default().dir("etc").file("etc/hostname", b"x").end();
    whole[512 + 3] ^= 1;
    assert!(matches!(import_error(&whole), ImageError::Header { offset: 512, .. }));
}

#[test]
fn hostile_names_are_refused_by_layer_and_entry() {
    for (name, fault) in [
        (&b"../../etc/shadow"[..], NameFault::DotDot),
        (b"etc/../../shadow", NameFault::DotDot),
        (b"etc/sha\ndow", NameFault::Control),
        (b"etc/sha\x1bdow", NameFault::Control),
        (b"etc/\xffsha\tdow", NameFault::Control),
    ] {
        let tar = Tar::default().dir("etc").add(&Item { name, ..item(b'0', "") }).end();
        match import_error(&tar) {
            ImageError::Name { layer, entry, fault: found } => {
                assert_eq!((layer.as_str(), found), ("the archive", fault));
                assert!(entry.contains("dow") && !entry.contains(char::is_control), "{entry:?}");
            }
            other => unreachable!("{other}"),
        }
    }
    let long = "x".repeat(256);
    let tar = Tar::default().gnu_long(b'L', long.as_bytes()).file("x", b"").end();
    assert!(matches!(import_error(&tar), ImageError::Name { fault: NameFault::ComponentTooLong, .. }));
    let nul = Tar::default().add(&Item { pax: vec![("path", b"a\0b")], ..item(b'0', "x") }).end();
    assert!(matches!(import_error(&Oci::new(&[nul]).tar()), ImageError::Name { fault: NameFault::Control, .. }));
}

#[test]
fn hard_links_do_not_escape() {
    for target in ["../etc/shadow", "a/../../b"] {
        let tar = Tar::default().file("a", b"").hardlink("b", target).end();
        assert!(matches!(import_error(&tar), ImageError::Name { .. }), "{target}");
    }
    for (target, words) in [
        ("nowhere", "not in the image"),
        ("/etc/shadow", "not in the image"),
        ("d", "folder"),
        ("out/passwd", "not in the image"),
    ] {
        let tar = Tar::default().dir("d").symlink("out", "/etc").hardlink("b", target).end();
        let error = import_error(&tar);
        assert!(matches!(error, ImageError::Entry { .. }) && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn what_cannot_be_kept_is_said() {
    let volume = Tar::default().add(&item(b'M', "s")).end();
    let device = Tar::default().add(&Item { device: (5000, 1), ..item(b'3', "s") }).end();
    let owner = Tar::default().add(&Item { owner: (1 << 33, 0), ..item(b'0', "s") }).end();
    for tar in [volume, device, owner] {
        let error = import_error(&tar);
        assert!(matches!(&error, ImageError::Unsupported { entry, .. } if entry == "s"), "{error}");
    }
    let lost = Tar::default().file("lost+found", b"1").end();
    assert!(matches!(import_error(&lost), ImageError::Ext4 { .. }));
}

/// Maps that do not fit their data or their file, in every form that there is.
#[test]
fn damaged_sparse_maps_are_refused() {
    let old = Tar::default().add(&Item { data: &[b'x'; 512], ..item(b'S', "s") }).end();
    let map = |map: &'static [u8]| {
        let pax = vec![("GNU.sparse.size", &b"1000"[..]), ("GNU.sparse.map", map)];
        Tar::default().add(&Item { data: &[b'x'; 100], pax, ..item(b'0', "s") }).end()
    };
    let newest = |data: &'static [u8]| {
        let pax = vec![("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1000")];
        Tar::default().add(&Item { data, pax, ..item(b'0', "s") }).end()
    };
    let far = map(b"0,50,18446744073709551615,1");
    for tar in [
        old.clone(),
        map(b"0,50,40,10"),
        map(b"0,50,950,51"),
        map(b"0,101"),
        map(b"0"),
        far,
        newest(b"1\n"),
        newest(b"9999999999\n0\n"),
        newest(&[b'1'; 512]),
        newest(&[b'x'; 512]),
    ] {
        // The first has no map at all, which is a file of no bytes.
        match import_bytes(&tar, tempfile::tempdir().unwrap().path()) {
            Err(ImageError::Header { .. }) => {}
            Ok(_) if tar == old => {}
            other => unreachable!("{other:?}"),
        }
    }
}

#[test]
fn meta_entries_are_bounded() {
    let huge = vec![b'a'; 5000];
    let name = Tar::default().gnu_long(b'L', &huge).file("x", b"").end();
    assert!(matches!(import_error(&name), ImageError::Header { .. }));
    let value = vec![b'a'; 2 << 20];
    let pax = Tar::default().add(&Item { pax: vec![("comment", &value)], ..item(b'0', "x") }).end();
    assert!(matches!(import_error(&pax), ImageError::Header { .. }));
    let records = record("path", b"everywhere");
    let global = Tar::default().add(&Item { data: &records, ..item(b'g', "g") }).file("x", b"").end();
    assert!(matches!(import_error(&global), ImageError::Header { .. }));
}

#[test]
fn caps_hold() {
    let dir = tempfile::tempdir().unwrap();
    let tar = (0..100).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), b"")).end();
    let limits = Limits { entries: 99, ..Limits::for_build_size(1 << 30) };
    let result = import(file_of(&tar), dir.path(), 64 << 20, None, limits, &hasher(), &());
    assert!(matches!(result, Err(ImageError::TooManyEntries { limit: 99 })));
    // What says something of the next entry is none.
    let pax = |n: u32| Item { pax: vec![("uid", b"7")], ..item(b'0', ["a", "b", "c", "d"][n as usize]) };
    let tar = (0..4).fold(Tar::default(), |tar, n| tar.add(&pax(n))).end();
    let limits = Limits { entries: 4, ..Limits::for_build_size(64 << 20) };
    let folder = tempfile::tempdir().unwrap();
    let imported = import(file_of(&tar), folder.path(), 64 << 20, None, limits, &hasher(), &());
    assert_eq!(imported.unwrap().entries, 4);
    let long = (0..17).fold(Tar::default(), |tar, _| tar.gnu_long(b'L', b"x")).file("y", b"").end();
    let result = import(file_of(&long), dir.path(), 64 << 20, None, limits, &hasher(), &());
    assert!(matches!(result, Err(ImageError::TooManyHeaders { limit: 16 })), "{result:?}");
    let small =
        |tar: &[u8]| import(file_of(tar), dir.path(), 16 << 20, None, Limits::for_build_size(16 << 20), &hasher(), &());
    let bomb = gzip(&Tar::default().file("zeros", &vec![0; 17 << 20]).end());
    assert!(matches!(small(&bomb), Err(ImageError::TooLarge { .. })));
    for size in [0, 4096, (64 << 20) + 1, 129 << 30] {
        let result = import(file_of(&tar), dir.path(), size, None, Limits::for_build_size(1 << 30), &hasher(), &());
        assert!(matches!(result, Err(ImageError::BuildSize { .. })), "{size}");
    }
}

#[test]
fn metadata_is_bounded_however_it_is_asked_for() {
    let path = |n: u32| format!("{n}/").repeat(500);
    let deep = (0..8)
        .fold(Tar::default(), |tar, n| tar.add(&Item { pax: vec![("path", path(n).as_bytes())], ..item(b'5', "x") }));
    let links =
        (0..2000).fold(Tar::default(), |tar, n| tar.gnu_long(b'K', &[b't'; 4000]).symlink(&format!("l{n}"), "x"));
    let value = [b'v'; 3500];
    let xattrs = (0..2000).fold(Tar::default(), |tar, n| {
        tar.add(&Item { pax: vec![("SCHILY.xattr.user.x", &value)], ..item(b'0', &format!("f{n}")) })
    });
    let limits = Limits { memory: 1 << 20, ..Limits::for_build_size(64 << 20) };
    for tar in [deep, links, xattrs] {
        let dir = tempfile::tempdir().unwrap();
        let result = import(file_of(&tar.end()), dir.path(), 64 << 20, None, limits, &hasher(), &());
        assert!(matches!(result, Err(ImageError::TooMuchMetadata { .. })), "{result:?}");
    }
}

#[test]
fn a_cancelled_import_stops_in_every_stage() {
    struct StopAt(&'static str, std::cell::Cell<bool>);
    impl Progress for StopAt {
        fn stage(&self, name: &'static str) {
            self.1.set(self.1.get() || name == self.0);
        }
        fn cancelled(&self) -> bool {
            self.1.get()
        }
    }
    let tar = gzip(&Tar::default().file("root/a", &vec![1; 3 << 20]).end());
    for stage in ["read archive", "merge layers", "write work disk seed", "write root file system"] {
        let dir = tempfile::tempdir().unwrap();
        let progress = StopAt(stage, std::cell::Cell::new(false));
        let result =
            import(file_of(&tar), dir.path(), 64 << 20, None, Limits::for_build_size(64 << 20), &hasher(), &progress);
        assert!(matches!(result, Err(ImageError::Cancelled)), "{stage}: {result:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_with_the_path() {
    let tar = Tar::default().file("a", b"x").end();
    let error = import(
        file_of(&tar),
        std::path::Path::new("/nonexistent"),
        64 << 20,
        None,
        Limits::for_build_size(64 << 20),
        &hasher(),
        &(),
    );
    assert!(matches!(error, Err(ImageError::Write { .. })), "{error:?}");
}

/// Folders that are each made through a link to the one above. Fifty thousand of them are 1.5 KB
/// packed, and were 2.5 GB as the seed of work disks; the path ends them at the seventeenth.
#[test]
fn folders_below_each_other_through_links_end_where_no_program_could_follow() {
    let mut tar = Tar::default().dir("root");
    let step = "d".repeat(250);
    // PAX records, because the names do not fit a header.
    let long = |kind, name: &str, link: &str| {
        let pax: Vec<(&str, Vec<u8>)> = vec![("path", name.into()), ("linkpath", link.into())];
        (kind, pax)
    };
    for number in 0..20 {
        let above = if number == 0 { "root".to_owned() } else { format!("l{}", number - 1) };
        let below = format!("{above}/{step}");
        for (kind, pax) in [long(b'5', &below, ""), long(b'2', &format!("l{number}"), &below)] {
            let pax = pax.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (*key, value.as_slice()));
            tar = tar.add(&Item { pax: pax.collect(), ..item(kind, "x") });
        }
    }
    match import_error(&tar.end()) {
        ImageError::Entry { why, .. } => assert!(why.contains("4096 bytes"), "{why}"),
        other => unreachable!("{other}"),
    }
}
