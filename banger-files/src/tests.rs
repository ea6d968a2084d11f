//! Archives that want out of their folder, and folders that change.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use tar::{EntryType, Header};

const SOME: Limits = Limits { bytes: 1 << 20, entries: 10, mask: 0o022 };

/// Kind, name, link target and data of an entry.
type Written<'a> = (EntryType, &'a [u8], &'a [u8], &'a [u8]);

/// An archive with names as they are, which no builder would write.
fn archive(entries: &[Written<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, target, data) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o6777);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        for (field, text) in [(0, name), (1, target)] {
            let old = header.as_old_mut();
            let to = if field == 0 { &mut old.name } else { &mut old.linkname };
            to.iter_mut().zip(*text).for_each(|(to, from)| *to = *from);
        }
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn into(folder: &Path, bytes: &[u8]) -> Result<Unpacked, Error> {
    unpack(bytes, &open_folder(folder).unwrap(), SOME)
}

#[test]
fn nothing_leaves_the_folder() {
    use EntryType::{Directory, GNULongName, Link, Regular, Symlink};
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let (out, secret_name) = (outside.path().to_str().unwrap().as_bytes(), secret.to_str().unwrap().as_bytes());
    let below = [b"link/secret".as_slice()].concat();
    let cases: [&[Written<'_>]; 9] = [
        &[(Regular, b"../secret", b"", b"x")],
        &[(Regular, b"a/../../secret", b"", b"x")],
        &[(Symlink, b"link", out, b""), (Regular, &below, b"", b"x")],
        &[(Symlink, b"link", out, b""), (Directory, b"link/", b"", b"")],
        &[(Symlink, b"link", out, b""), (Link, b"mine", b"link/secret", b"")],
        &[(Link, b"mine", b"../secret", b"")],
        &[(Link, b"mine", secret_name, b"")],
        &[(GNULongName, b"././@LongLink", b"", b"../secret\0"), (Regular, b"harmless", b"", b"x")],
        &[(Symlink, b"link", b"..", b""), (Symlink, b"link/in", b"x", b"")],
    ];
    for (number, case) in cases.iter().enumerate() {
        let folder = outside.path().join(format!("folder-{number}"));
        fs::create_dir(&folder).unwrap();
        into(&folder, &archive(case)).unwrap_err();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret", "{number}");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1, "{number}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), cases.len() + 1);
    // An absolute name is below the folder, as tar(1) has it; a link that is replaced is not
    // written through.
    let folder = outside.path().join("folder");
    fs::create_dir(&folder).unwrap();
    symlink(&secret, folder.join("file")).unwrap();
    into(&folder, &archive(&[(Regular, b"/file", b"", b"theirs")])).unwrap();
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert_eq!(
        fs::metadata(folder.join("file")).unwrap().permissions().mode() & 0o7777,
        0o755,
        "a set-id bit was kept"
    );
}

#[test]
fn what_is_no_file_or_too_much_is_refused() {
    use EntryType::{Block, Char, Fifo, GNULongName, Regular, XHeader};
    let folder = tempfile::tempdir().unwrap();
    for kind in [Block, Char, Fifo, EntryType::new(b'S')] {
        let refused = into(folder.path(), &archive(&[(kind, b"x", b"", b"")])).unwrap_err();
        assert!(matches!(refused, Error::Kind(_)), "{refused}");
    }
    let many: Vec<_> = (0..11).map(|_| (Regular, b"x".as_slice(), b"".as_slice(), b"".as_slice())).collect();
    assert!(matches!(into(folder.path(), &archive(&many)).unwrap_err(), Error::Limit(_)));
    let large = vec![1; (1 << 20) + 1];
    assert!(matches!(into(folder.path(), &archive(&[(Regular, b"x", b"", &large)])).unwrap_err(), Error::Limit(_)));
    let name = vec![b'a'; 70_000];
    assert!(matches!(into(folder.path(), &archive(&[(GNULongName, b"x", b"", &name)])).unwrap_err(), Error::Limit(_)));
    // What is skipped counts, and so does what only names.
    for kind in [EntryType::Directory, EntryType::Symlink] {
        let refused = into(folder.path(), &archive(&[(kind, b"skipped", b"to", &large)])).unwrap_err();
        assert!(matches!(refused, Error::Limit(_)), "{refused}");
    }
    for kind in [GNULongName, EntryType::XGlobalHeader] {
        let refused =
            into(folder.path(), &archive(&vec![(kind, &b"x"[..], &b""[..], &b"name"[..]); 3000])).unwrap_err();
        assert!(matches!(&refused, Error::Limit(what) if what.contains("between")), "{refused}");
    }
    into(folder.path(), &archive(&[(XHeader, b"x", b"", b"18 path=../escape\n"), (Regular, b"y", b"", b"")]))
        .unwrap_err();
    // Cut anywhere, it is no archive.
    let whole = archive(&[(Regular, b"one", b"", b"1"), (Regular, b"two", b"", b"2")]);
    for length in [0, 100, 512, 600, 1024, 1600, 2048] {
        into(folder.path(), whole.get(..length).unwrap()).unwrap_err();
    }
    let names = [b"one".to_vec()].into_iter().collect();
    let only = unpack_only(whole.as_slice(), &open_folder(folder.path()).unwrap(), SOME, &names).unwrap_err();
    assert!(matches!(only, Error::Name(name) if name == "two"));
    // Who asks for files can read them, whatever mode root's file had.
    let names = [b"link".to_vec(), b"shut".to_vec(), b"run".to_vec()].into_iter().collect();
    let mut modes = tar::Builder::new(Vec::new());
    for (name, mode) in [("shut", 0), ("run", 0o111)] {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_size(1);
        modes.append_data(&mut header, name, &b"x"[..]).unwrap();
    }
    let modes = modes.into_inner().unwrap();
    unpack_only(modes.as_slice(), &open_folder(folder.path()).unwrap(), SOME, &names).unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("shut"), mode("run")), (0o600, 0o700));
}

#[test]
fn who_is_asked_for_one_name_brings_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    fs::write(&own, "own").unwrap();
    let unpacked = |entries: &[Written<'_>], name: &str| {
        let opened = open_folder(folder.path()).unwrap();
        unpack_named(archive(entries).as_slice(), &opened, SOME, name.as_bytes())
    };
    let file = |name: &'static str| -> Written<'static> { (EntryType::Regular, name.as_bytes(), b"", b"evil") };
    for name in ["own", "./own", "asked/../own", "askedd", "asked.sh", "asked/x/../../own"] {
        unpacked(&[file("asked"), file(name)], "asked").unwrap_err();
        assert_eq!(fs::read(&own).unwrap(), b"own", "{name}");
        assert!(!folder.path().join("askedd").exists() && !folder.path().join("asked.sh").exists());
    }
    // Not by a second name of it either, nor as a folder whose mode would be set.
    for (kind, name, target) in [
        (EntryType::Link, &b"asked"[..], &b"own"[..]),
        (EntryType::Directory, b"other", b""),
        (EntryType::Symlink, b"own", b"/etc"),
    ] {
        unpacked(&[(kind, name, target, b"")], "asked").unwrap_err();
    }
    assert_eq!((fs::read(&own).unwrap(), own.metadata().unwrap().nlink()), (b"own".to_vec(), 1));
    fs::remove_file(folder.path().join("asked")).unwrap();
    let tree = [(EntryType::Directory, &b"./asked/"[..], &b""[..], &b""[..]), file("asked/file"), file("asked/x/y")];
    assert_eq!(unpacked(&tree, "asked").unwrap().entries, 3);
    unpacked(&[file("any"), file("own")], ".").unwrap();
    assert_eq!(fs::read(&own).unwrap(), b"evil", "contents were asked for, and with them their names");
    // A link that leads out is made, and named.
    let link = |name: &'static str, to: &'static str| -> Written<'static> {
        (EntryType::Symlink, name.as_bytes(), to.as_bytes(), b"")
    };
    for (name, to, is_out) in [
        ("asked", "/root/.ssh/id", true),
        ("asked", "own", true),
        ("asked", "./asked/x", false),
        ("asked/a/b", "../../../own", true),
        ("asked/a/b", "../c", false),
        ("asked/a/b", "../../asked.sh", true),
        ("asked/a/b", "../../../../x", true),
        ("asked/a/b", "c/../d", true),
    ] {
        drop(fs::remove_file(folder.path().join("asked")));
        drop(fs::remove_dir_all(folder.path().join("asked")));
        let outside = unpacked(&[link(name, to)], "asked").unwrap().outside;
        assert_eq!(outside, if is_out { vec![(name.into(), to.into())] } else { vec![] }, "{name} -> {to}");
    }
    let many: Vec<_> = (0..9).map(|_| link("asked", "/")).collect();
    drop(fs::remove_dir_all(folder.path().join("asked")));
    assert_eq!(unpacked(&many, "asked").unwrap().outside.len(), 9);
    let opened = open_folder(folder.path()).unwrap();
    let many = archive(&vec![link("asked", "/"); 50]);
    let done = unpack_named(many.as_slice(), &opened, Limits::NONE, b"asked").unwrap();
    assert_eq!((done.outside.len(), done.more_outside), (20, 30));
    // As the guest's agent does it, for another VM.
    let evil = archive(&[file("own2")]);
    program(folder.path(), &["put", ".", "asked"], &evil).unwrap_err();
    program(folder.path(), &["put", ".", "own2"], &evil).unwrap();
}

/// Resident memory of this process, bytes.
fn memory() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A folder that is named again and again, as whoever wants the reader's memory sends it.
struct Again<'a> {
    entry: Vec<u8>,
    left: usize,
    at: usize,
    /// The memory when the last one was read.
    memory: &'a std::cell::Cell<u64>,
}

impl std::io::Read for Again<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            self.memory.set(memory());
            return Ok(0);
        }
        let mut rest = self.entry.get(self.at..).unwrap();
        let read = rest.read(buffer)?;
        self.at += read;
        if self.at == self.entry.len() {
            (self.at, self.left) = (0, self.left - 1);
        }
        Ok(read)
    }
}

#[test]
fn a_folder_that_comes_again_is_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut name = ["d".repeat(200).as_str(); 4].join("/");
    name.push('\0');
    let mut entry =
        archive(&[(EntryType::GNULongName, b"x", b"", name.as_bytes()), (EntryType::Directory, b"x", b"", b"")]);
    entry.truncate(entry.len() - 1024);
    let (before, after) = (memory(), std::cell::Cell::new(0));
    let stream = Again { entry, left: 20_000, at: 0, memory: &after };
    let refused = unpack(stream, &open_folder(folder.path()).unwrap(), Limits::NONE).unwrap_err();
    assert!(matches!(refused, Error::Truncated), "{refused}");
    let more = after.get().saturating_sub(before);
    assert!(more < 8 << 20, "{} MiB are kept", more >> 20);
}

#[test]
fn what_has_a_name_keeps_it_until_the_new_one_is_whole() {
    use EntryType::{Link, Regular, Symlink};
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "old").unwrap();
    symlink("old", &link).unwrap();
    let names = || {
        let listed = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    // A stream that ends in the data, and a link to nothing.
    let new = archive(&[(Regular, b"file", b"", &[1; 3000])]);
    for length in [512, 600, 3000] {
        into(folder.path(), new.get(..length).unwrap()).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old", "{length}");
    }
    into(folder.path(), &archive(&[(Link, b"link", b"missing", b"")])).unwrap_err();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("old"));
    assert_eq!(names(), ["file", "link"], "what has come of it was left behind");
    into(folder.path(), &new).unwrap();
    into(folder.path(), &archive(&[(Symlink, b"link", b"new", b"")])).unwrap();
    assert_eq!((fs::metadata(&file).unwrap().len(), fs::read_link(&link).unwrap()), (3000, "new".into()));
    // A second name in the place of another file, and of itself.
    for _ in 0..2 {
        into(folder.path(), &archive(&[(Link, b"link", b"file", b"")])).unwrap();
        assert_eq!((fs::metadata(&link).unwrap().nlink(), names().len()), (2, 2));
    }
    fs::create_dir(folder.path().join("sub")).unwrap();
    into(folder.path(), &archive(&[(Regular, b"sub", b"", b"x")])).unwrap_err();
    assert_eq!(names(), ["file", "link", "sub"]);
}

fn words(words: &[&str]) -> Vec<std::ffi::OsString> {
    words.iter().map(Into::into).collect()
}

fn program(home: &Path, line: &[&str], input: &[u8]) -> Result<Vec<u8>, Error> {
    let mut output = Vec::new();
    program::run(&words(line), home, &mut &*input, &mut output)?;
    Ok(output)
}

#[test]
fn a_workspace_is_replaced_in_one_step_and_knows_its_changes() {
    let home = tempfile::tempdir().unwrap();
    let send = |files: &[(&str, &str)]| {
        let mut bytes = Vec::new();
        let mut packer = Packer::new(&mut bytes);
        packer.add_bytes(b".git/HEAD", 0o644, b"ref: refs/heads/main\n").unwrap();
        for (name, text) in files {
            packer.add_bytes(name.as_bytes(), 0o644, text.as_bytes()).unwrap();
        }
        packer.finish().unwrap();
        bytes
    };
    let look = || serde_json::from_slice::<Look>(&program(home.path(), &["look", "~/tool"], b"").unwrap()).unwrap();
    let changes = || parse_changes(&program(home.path(), &["changes", "~/tool"], b"").unwrap()).unwrap();
    assert_eq!(look().kind, Kind::None);
    program(home.path(), &["replace", "~/tool"], &send(&[("a", "1"), ("sub/b", "2")])).unwrap();
    let tool = home.path().join("tool");
    assert_eq!((look().prepared, look().refs_changed, changes()), (true, false, Vec::new()));
    fs::write(tool.join("a"), "3").unwrap();
    fs::remove_file(tool.join("sub/b")).unwrap();
    fs::create_dir_all(tool.join("target/deep")).unwrap();
    fs::write(tool.join("target/deep/out"), "built").unwrap();
    fs::create_dir_all(tool.join("other/.git")).unwrap();
    fs::OpenOptions::new().append(true).open(tool.join(".git/HEAD")).unwrap().write_all(b"x").unwrap();
    let expected = [
        Change::Modified(b"a".to_vec()),
        Change::Added(b"target/deep/out".to_vec()),
        Change::Deleted(b"sub/b".to_vec()),
        Change::Repository(b"other".to_vec()),
    ];
    assert_eq!((changes().as_slice(), look().refs_changed), (expected.as_slice(), true));
    // A stream that ends too early changes nothing.
    let new = send(&[("a", "4")]);
    program(home.path(), &["replace", "~/tool"], new.get(..new.len() - 1024).unwrap()).unwrap_err();
    assert_eq!(fs::read_to_string(tool.join("a")).unwrap(), "3");
    program(home.path(), &["replace", "~/tool"], &new).unwrap();
    assert_eq!(fs::read_to_string(tool.join("a")).unwrap(), "4");
    assert_eq!(fs::read_to_string(tool.join("target/deep/out")).unwrap(), "built");
    assert!(!tool.join("sub").exists() && fs::read_dir(home.path()).unwrap().count() == 1);
    for bad in [&["look"][..], &["eat", "x"], &[], &["pack", "x"], &["changes", "~"]] {
        program(home.path(), bad, b"").unwrap_err();
    }
}

fn packed(path: &Path) -> (Result<(), Error>, Left, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut packer = Packer::of_what_changes(&mut bytes);
    let added = packer.add_tree(b"x", path);
    let left = packer.finish().unwrap();
    (added, left, bytes)
}

#[test]
fn a_file_that_says_to_be_empty_and_is_not_is_packed_with_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    for (path, least) in
        [("/proc/self/status", 200), ("/proc/cpuinfo", 20), ("/sys/kernel/mm/transparent_hugepage/enabled", 5)]
    {
        let Ok(text) = fs::read(path) else { continue };
        let (added, left, bytes) = packed(Path::new(path));
        added.unwrap();
        into(folder.path(), &bytes).unwrap();
        let copy = fs::read(folder.path().join("x")).unwrap();
        assert!(copy.len() >= least && copy.get(..5) == text.get(..5) && copy.last() != Some(&0), "{path}");
        assert_eq!(left, Left::default());
    }
    fs::write(folder.path().join("empty"), "").unwrap();
    let (added, _, bytes) = packed(&folder.path().join("empty"));
    added.unwrap();
    into(folder.path(), &bytes).unwrap();
    assert_eq!(fs::read(folder.path().join("x")).unwrap(), b"");
}

#[test]
fn what_vanishes_or_shrinks_meanwhile_is_named_and_the_rest_is_packed() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let large = folder.path().join("large");
    fs::write(&large, vec![7; 1 << 20]).unwrap();
    // The archive's reader does it, between two pieces.
    struct Shrinks<'a>(Vec<u8>, &'a Path);
    impl Write for Shrinks<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0.len() > 100_000 {
                fs::File::options().write(true).open(self.1).unwrap().set_len(200_000).unwrap();
            }
            self.0.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut to = Shrinks(Vec::new(), &large);
    let mut packer = Packer::of_what_changes(&mut to);
    packer.add_tree(b"x", folder.path()).unwrap();
    let left = packer.finish().unwrap();
    assert!(left.lost.len() == 1 && left.lost[0].0 == b"x/large" && left.lost[0].1.contains("shorter"), "{left:?}");
    into(copy.path(), &to.0).unwrap();
    let came = fs::read(copy.path().join("x/large")).unwrap();
    assert_eq!((came.len(), came[0], came[came.len() - 1]), (1 << 20, 7, 0));
    // Of two files, the second is gone when its turn comes.
    struct Removes<'a>(Vec<u8>, &'a Path);
    impl Write for Removes<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0.len() >= 512 {
                drop((fs::remove_file(self.1.join("a")), fs::remove_file(self.1.join("b"))));
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let changes = folder.path().join("changes");
    fs::create_dir(&changes).unwrap();
    let removes = || {
        ["a", "b"].iter().for_each(|name| fs::write(changes.join(name), "text").unwrap());
        Removes(Vec::new(), &changes)
    };
    let mut to = removes();
    let mut packer = Packer::of_what_changes(&mut to);
    packer.add_tree(b"y", &changes).unwrap();
    let left = packer.finish().unwrap();
    assert!(left.lost.len() == 1 && left.lines()[0].contains("No such file"), "{left:?}");
    into(copy.path(), &to.0).unwrap();
    assert_eq!(fs::read_dir(copy.path().join("y")).unwrap().count(), 1);
    // Whoever does not say that it may change hears of it.
    Packer::new(removes()).add_tree(b"y", &changes).unwrap_err();
    // The agent's words: all that could be read, and then an error.
    let mut to = removes();
    let said = program::run(&words(&["pack", changes.to_str().unwrap(), "z"]), folder.path(), &mut &b""[..], &mut to);
    assert!(matches!(said, Err(Error::Incomplete(_))), "{said:?}");
    into(copy.path(), &to.0).unwrap();
    assert_eq!(fs::read_dir(copy.path().join("z")).unwrap().count(), 1);
}

#[test]
fn what_no_archive_carries_is_named_and_an_error_when_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::write(folder.path().join("file"), "text").unwrap();
    let (added, left, _) = packed(folder.path());
    added.unwrap();
    assert_eq!(left.skipped, [b"x/socket".to_vec()]);
    assert_eq!(left.lines(), ["x/socket is left out: a socket, pipe or device"]);
    assert!(matches!(packed(&socket).0, Err(Error::Special(_))));
}

#[test]
fn a_device_pipe_or_socket_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let kinds: [(EntryType, &[u8], &[u8]); 2] =
        [(EntryType::Regular, b"", b"text"), (EntryType::Symlink, b"target", b"")];
    for (kind, target, data) in kinds {
        let refused = into(folder.path(), &archive(&[(kind, b"socket", target, data)])).unwrap_err();
        assert!(matches!(refused, Error::InTheWay(_)), "{refused}");
    }
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
