//! Replacements at once, whose files they are, and what is taken over.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use crate::Packer;
use std::os::unix::fs::PermissionsExt as _;

fn workspace(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut packer = Packer::new(&mut bytes);
    packer.add_bytes(b".git/HEAD", 0o644, b"ref: refs/heads/main\n").unwrap();
    packer.add_bytes(b"sub/a", 0o644, text.as_bytes()).unwrap();
    packer.finish().unwrap();
    bytes
}

fn wanted(owner: Option<Owner>, wait: Duration) -> Wanted<'static> {
    Wanted { owner, state: None, wait }
}

fn replaced(folder: &Path, owner: Option<Owner>, text: &str) -> Result<Unpacked, Error> {
    replace(folder, wanted(owner, WAIT), workspace(text).as_slice(), || {})
}

fn at_once(folder: &Path, text: &str) -> Result<Unpacked, Error> {
    replace(folder, wanted(None, Duration::ZERO), workspace(text).as_slice(), || {})
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn two_at_once_do_not_meet() {
    let home = tempfile::tempdir().unwrap();
    let tool = home.path().join("tool");
    replaced(&tool, None, "first").unwrap();
    assert_eq!(names(home.path()), ["tool"]);
    // One whose archive takes its time.
    let (mut slow, theirs) = (io::pipe().unwrap(), tool.clone());
    let whole = workspace("slow");
    let (begin, rest) = whole.split_at(1000);
    io::Write::write_all(&mut slow.1, begin).unwrap();
    let working = std::thread::spawn(move || replace(&theirs, wanted(None, WAIT), slow.0, || {}));
    let lock = home.path().join(".tool.banger-lock");
    let since = Instant::now();
    while !lock.exists() || File::open(&lock).is_ok_and(|file| file.try_lock_shared().is_ok()) {
        assert!(since.elapsed() < Duration::from_secs(30), "it takes no lock");
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = at_once(&tool, "other").unwrap_err();
    assert!(matches!(&refused, Error::Busy(path) if *path == tool), "{refused}");
    // Of another folder beside it.
    at_once(&home.path().join("two"), "2").unwrap();
    io::Write::write_all(&mut slow.1, rest).unwrap();
    drop(slow.1);
    working.join().unwrap().unwrap();
    assert_eq!(fs::read_to_string(tool.join("sub/a")).unwrap(), "slow");
    let mut left = names(home.path());
    left.sort();
    assert_eq!(left, ["tool", "two"]);
    // A lock that was left behind is nobody's.
    fs::write(&lock, "").unwrap();
    at_once(&tool, "last").unwrap();
    assert!(!lock.exists());
    // Not through a link.
    std::os::unix::fs::symlink(home.path().join("target"), &lock).unwrap();
    at_once(&tool, "x").unwrap_err();
    assert!(!home.path().join("target").exists());
}

#[test]
fn files_are_their_users_and_what_was_built_stays_whosever_it_is() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let tool = home.path().join("src/tool");
    let owner = Owner::parse(b"1234:4321").unwrap();
    let ids = |path: &Path| path.symlink_metadata().map(|found| (found.uid(), found.gid())).unwrap();
    replaced(&tool, Some(owner), "1").unwrap();
    for name in ["", "sub", "sub/a", ".git", ".git/HEAD", ".git/banger", ".git/banger/manifest"] {
        assert_eq!(ids(&tool.join(name)), (1234, 4321), "{name}");
    }
    assert_eq!(ids(&home.path().join("src")), (1234, 4321));
    // Built by root.
    let secret = tool.join("target/deep/secret");
    fs::create_dir_all(secret.parent().unwrap()).unwrap();
    fs::write(&secret, "built").unwrap();
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&secret, 0o600);
    mode(&tool.join("target/deep"), 0o700);
    std::os::unix::fs::symlink("/nowhere", tool.join("target/link")).unwrap();
    replaced(&tool, Some(owner), "2").unwrap();
    let found = |name: &str| {
        let found = tool.join(name).symlink_metadata().unwrap();
        (found.uid(), found.mode() & 0o777)
    };
    assert_eq!((found("target/deep"), found("target/deep/secret")), ((0, 0o700), (0, 0o600)));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "built");
    assert_eq!(fs::read_link(tool.join("target/link")).unwrap(), Path::new("/nowhere"));
    assert_eq!((found("sub/a"), found("").0, found("").1), ((1234, 0o644), 1234, 0o755));
    assert_eq!(manifest::changes(&tool).unwrap().len(), 2, "what was built");
    for word in ["", "1", "1:", ":1", "a:b", "-1:0", "4294967295:0", "1:1:1"] {
        assert_eq!(Owner::parse(word.as_bytes()), None, "{word}");
    }
}

#[test]
fn what_may_not_be_linked_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    fs::create_dir(&old).unwrap();
    fs::create_dir(&new).unwrap();
    fs::write(old.join("file"), "text").unwrap();
    std::os::unix::fs::symlink("there", old.join("link")).unwrap();
    fs::set_permissions(old.join("file"), fs::Permissions::from_mode(0o750)).unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1000);
    File::options().write(true).open(old.join("file")).unwrap().set_modified(long_ago).unwrap();
    let open = |path: &Path| open_below(&crate::open_folder(path).unwrap(), Path::new("")).unwrap();
    let (from, to) = (open(&old), open(&new));
    let over = TakeOver { old: open(&old), new: &to, folder: &new, seen: BTreeMap::new() };
    for name in ["file", "link"] {
        let found = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        over.copy(&from, Path::new(name), Path::new(name), &found).unwrap();
    }
    assert_eq!(fs::read_to_string(new.join("file")).unwrap(), "text");
    assert_eq!(new.join("file").metadata().unwrap().mode() & 0o777, 0o750);
    assert_eq!(
        (new.join("file").metadata().unwrap().nlink(), new.join("file").metadata().unwrap().mtime()),
        (1, old.join("file").metadata().unwrap().mtime())
    );
    assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("there"));
}

/// An archive whose end is read when something else has happened.
struct Meanwhile<'a, F: FnOnce()>(&'a [u8], Option<F>);

impl<F: FnOnce()> Read for Meanwhile<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        if let Some(happens) = self.1.take_if(|_| self.0.is_empty()) {
            happens();
        }
        Ok(read)
    }
}

#[test]
fn what_is_changed_while_the_files_come_is_not_replaced() {
    let home = tempfile::tempdir().unwrap();
    let tool = home.path().join("tool");
    let sent = workspace("new");
    let with = |state: &str, meanwhile: &mut dyn FnMut()| {
        let wanted = Wanted { state: Some(state), ..wanted(None, WAIT) };
        replace(&tool, wanted, Meanwhile(&sent, Some(meanwhile)), || {})
    };
    // Where nothing was, and where an empty folder was, another prepare has put something.
    for _ in 0..2 {
        let refused = with("free", &mut || replaced_beside(&tool)).unwrap_err();
        assert!(matches!(&refused, Error::Meanwhile(path) if *path == tool), "{refused}");
        assert_eq!(fs::read_to_string(tool.join("sub/a")).unwrap(), "theirs");
        fs::remove_dir_all(&tool).unwrap();
        fs::create_dir(&tool).unwrap();
    }
    with("free", &mut || {}).unwrap();
    let state = manifest::state(&tool).unwrap();
    let (file, head) = (tool.join("sub/a"), tool.join(".git/HEAD"));
    let worktree = tool.join(".git/worktrees/x/HEAD");
    let mut changes: [&mut dyn FnMut(); 4] = [
        &mut || fs::write(&file, "hours of work").unwrap(),
        &mut || fs::remove_file(&file).unwrap(),
        &mut || fs::write(&head, "0123\n").unwrap(),
        &mut || {
            fs::create_dir_all(worktree.parent().unwrap()).unwrap();
            fs::write(&worktree, "0123\n").unwrap();
        },
    ];
    for change in &mut changes {
        at_once(&tool, "old").unwrap();
        let state = manifest::state(&tool).unwrap();
        let refused = with(&state, &mut || change()).unwrap_err();
        assert!(matches!(&refused, Error::Meanwhile(path) if *path == tool), "{refused}");
        assert_eq!(names(home.path()), ["tool"]);
        assert_ne!(fs::read_to_string(&file).unwrap_or_default(), "new");
    }
    // It was another one before. And what is added is taken over.
    with(&state, &mut || {}).unwrap_err();
    at_once(&tool, "old").unwrap();
    let state = manifest::state(&tool).unwrap();
    fs::write(tool.join("built"), "x").unwrap();
    with(&state, &mut || {}).unwrap();
    assert_eq!((fs::read_to_string(&file).unwrap().as_str(), tool.join("built").exists()), ("new", true));
    // Another name of a file, where things are built, is taken over and changes nothing of the
    // file.
    at_once(&tool, "old").unwrap();
    fs::hard_link(&file, tool.join("linked")).unwrap();
    let state = manifest::state(&tool).unwrap();
    with(&state, &mut || {}).unwrap();
    assert_eq!(fs::read_to_string(tool.join("linked")).unwrap(), "old");
}

/// As whoever prepares a folder without our lock.
fn replaced_beside(tool: &Path) {
    let beside = tool.with_file_name("beside");
    replaced(&beside, None, "theirs").unwrap();
    let _ = fs::remove_dir(tool);
    fs::rename(beside, tool).unwrap();
}

#[test]
fn the_same_references_are_the_same_wherever_git_keeps_them() {
    let before = b"HEAD ref: refs/heads/main\n\0packed-refs 11 refs/heads/main\n22 refs/tags/v1\n\0";
    let packed = b"HEAD ref: refs/heads/main\n\0packed-refs # pack-refs with: peeled fully-peeled sorted \n\
        11 refs/heads/main\n33 refs/remotes/origin/x\n22 refs/tags/v1\n^11\n\0";
    let loose =
        b"HEAD ref: refs/heads/main\n\0packed-refs 44 refs/heads/main\n22 refs/tags/v1\n\0refs/heads/main 11\n\0";
    assert!(manifest::same_refs(before, packed) && manifest::same_refs(before, loose));
    for other in [
        &b"HEAD ref: refs/heads/x\n\0packed-refs 11 refs/heads/main\n22 refs/tags/v1\n\0"[..],
        b"HEAD ref: refs/heads/main\n\0packed-refs 11 refs/heads/main\n\0",
        b"HEAD ref: refs/heads/main\n\0packed-refs 11 refs/heads/main\n22 refs/tags/v1\n\0refs/stash 55\n\0",
        b"HEAD ref: refs/heads/main\n\0packed-refs 11 refs/heads/main\n22 refs/tags/v1\n\0worktrees/x/HEAD 55\n\0",
    ] {
        assert!(!manifest::same_refs(before, other), "{}", String::from_utf8_lossy(other));
    }
}
