//! Sessions on the work disk: a folder each, which outlives the guest's boot.
//!
//! `meta.json` says what was started and is locked by the session's process while that lives;
//! `status.json`, which is blank until then, how it ended; [`super::log`] has the rest. A folder
//! whose name begins with a dot is of a session that does not run yet: the process gives it its
//! name when the command has started.

use banger_proto::session::{Session, Status, is_name};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::log::FILES;

/// Sessions that have ended and are kept.
const KEPT: usize = 64;
/// Longer files are none of ours.
const MAX_FILE: u64 = 64 << 10;
/// Entries of the folder that are looked at: somebody else may have put some there.
pub(super) const MAX_ENTRIES: usize = 4096;
/// What of a command is kept for people, bytes.
const MAX_COMMAND: usize = 4096;
const META: &str = "meta.json";
const STATUS: &str = "status.json";
/// Of [`STATUS`], bytes: more than any status.
const STATUS_ROOM: usize = 256;
/// Beside the sessions' folders: the last number that was given to one.
pub(super) const NUMBER: &str = ".number";

/// Where sessions are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Places {
    /// Their folders.
    pub(super) folders: PathBuf,
    /// Their processes' sockets.
    pub(super) sockets: PathBuf,
}

/// What was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) name: String,
    /// Higher for a later session.
    pub(super) number: u64,
    /// For people.
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    /// The guest's boot.
    pub(super) boot_id: String,
    pub(super) started_at: u64,
    #[serde(default)]
    pub(super) again: bool,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) status: Status,
    pub(super) ended_at: u64,
}

impl Meta {
    pub(super) fn id(&self) -> String {
        format!("{}.{}", self.name, self.number)
    }
}

/// What of a command's words is kept.
pub(super) fn for_people(words: &[Vec<u8>]) -> Vec<String> {
    let mut left = MAX_COMMAND;
    let mut kept = Vec::new();
    for word in words {
        let text: String = String::from_utf8_lossy(word.get(..left.min(word.len())).unwrap_or(word)).into_owned();
        left = left.saturating_sub(word.len().max(1));
        kept.push(if word.len() > text.len() && left == 0 { text + "..." } else { text });
        if left == 0 {
            break;
        }
    }
    kept
}

/// The guest's present boot.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl Places {
    pub(super) fn folder(&self, id: &str) -> PathBuf {
        self.folders.join(id)
    }

    /// Before its command has started.
    pub(super) fn new_folder(&self, id: &str) -> PathBuf {
        self.folders.join(format!(".{id}"))
    }

    pub(super) fn socket(&self, id: &str) -> PathBuf {
        self.sockets.join(id)
    }

    /// Makes both folders, for root alone.
    pub(super) fn make(&self) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        for folder in [&self.folders, &self.sockets] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// All sessions, oldest first.
    pub(super) fn list(&self) -> Vec<Session> {
        let boot = boot_id();
        let Ok(entries) = fs::read_dir(&self.folders) else { return Vec::new() };
        let ids = entries.take(MAX_ENTRIES).flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut sessions: Vec<(u64, Session)> =
            ids.filter_map(|id| Some((number(&id)?, self.read(&id, &boot)?))).collect();
        sessions.sort_by_key(|(number, _)| *number);
        sessions.into_iter().map(|(_, session)| session).collect()
    }

    /// The session that a client means.
    pub(super) fn find(&self, word: &str) -> Option<Session> {
        let sessions = self.list();
        let by_id = sessions.iter().position(|session| session.id == word);
        let running = || sessions.iter().rposition(|one| one.name == word && one.status == Status::Running);
        let named = || sessions.iter().rposition(|one| one.name == word);
        let at = by_id.or_else(running).or_else(named)?;
        sessions.into_iter().nth(at)
    }

    fn read(&self, id: &str, boot: &str) -> Option<Session> {
        let folder = self.folder(id);
        let meta: Meta = load(&folder.join(META))?;
        if meta.id() != id {
            return None;
        }
        let end = || load::<End>(&folder.join(STATUS));
        // A process writes the status before it lets go of its lock: what has none then will have
        // none.
        let alive = end().is_none() && is_locked(&folder.join(META));
        let (status, ended_at) = match end() {
            Some(end) => (end.status, Some(end.ended_at)),
            None if alive => (Status::Running, None),
            None if meta.boot_id != boot => (Status::LostGuest, None),
            None => (Status::LostProcess, None),
        };
        Some(Session {
            id: id.to_owned(),
            name: meta.name,
            command: meta.command,
            status,
            stdin: meta.stdin,
            tty: meta.tty,
            started_at: meta.started_at,
            ended_at,
            log_path: folder.join(FILES[0]).to_string_lossy().into_owned(),
            again: meta.again,
        })
    }

    /// A number that no session has or had, those that were removed among them: whoever remembers
    /// an id never means another session.
    pub(super) fn take_number(&self) -> io::Result<u64> {
        let entries = fs::read_dir(&self.folders)?.take(MAX_ENTRIES).flatten();
        let ids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let there = ids.filter_map(|id| number(id.trim_start_matches('.'))).max().unwrap_or(0);
        // An earlier release kept none.
        let last = load::<u64>(&self.folders.join(NUMBER)).unwrap_or(0);
        let next = there.max(last).saturating_add(1);
        store(&self.folders, NUMBER, &next)?;
        Ok(next)
    }

    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        fs::remove_dir_all(self.folder(id))
    }

    /// Removes what is older than the sessions that are kept, and what starts have left that were
    /// cut off.
    pub(super) fn prune(&self) {
        let ended = self.list().into_iter().filter(|session| session.status != Status::Running);
        let ended: Vec<Session> = ended.collect();
        for session in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            let _ = self.remove(&session.id);
        }
        let Ok(entries) = fs::read_dir(&self.folders) else { return };
        for entry in entries.take(MAX_ENTRIES).flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let unfinished = name.strip_prefix('.').and_then(number).is_some();
            if unfinished && !is_locked(&entry.path().join(META)) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The number in an id; `None` when it is none.
fn number(id: &str) -> Option<u64> {
    let (name, number) = id.split_once('.')?;
    is_name(name).then(|| number.parse().ok())?
}

/// Writes what was started, and holds the lock on it.
pub(super) fn begin(folder: &Path, meta: &Meta) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    // Room for the status, which a full disk could not give any more.
    let mut status = File::create(folder.join(STATUS))?;
    status.write_all(&[b' '; STATUS_ROOM])?;
    status.sync_all()?;
    store(folder, META, meta)?;
    let file = File::open(folder.join(META))?;
    file.lock()?;
    Ok(file)
}

/// What was started in this folder.
pub(super) fn meta(folder: &Path) -> Option<Meta> {
    load(&folder.join(META))
}

/// Writes how it ended, so that it outlives a power cut, where [`begin`] has made room for it. A
/// reader in that moment sees the blank, or all of it.
pub(super) fn end(folder: &Path, end: &End) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut text = serde_json::to_vec(end)?;
    if text.len() > STATUS_ROOM {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    text.resize(STATUS_ROOM, b' ');
    let file = File::options().write(true).open(folder.join(STATUS))?;
    file.write_all_at(&text, 0)?;
    file.sync_all()
}

/// A file is whole or not there.
pub(super) fn store(folder: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&new, folder.join(name))?;
    File::open(folder)?.sync_all()
}

fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether the process that holds this lives.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn places(folder: &Path) -> Places {
        let places = Places { folders: folder.join("folders"), sockets: folder.join("sockets") };
        places.make().unwrap();
        places
    }

    fn meta(name: &str, number: u64, boot_id: &str) -> Meta {
        let command = vec!["serve".to_owned()];
        let (name, boot_id) = (name.into(), boot_id.into());
        Meta { name, number, command, stdin: true, tty: false, boot_id, started_at: 7, again: false }
    }

    fn ended(places: &Places, name: &str, number: u64) {
        let meta = meta(name, number, "other");
        drop(begin(&places.folder(&meta.id()), &meta).unwrap());
        end(&places.folder(&meta.id()), &End { status: Status::Exited(3), ended_at: 9 }).unwrap();
    }

    #[test]
    fn a_sessions_state_is_what_its_folder_says() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        ended(&places, "web", 1);
        drop(begin(&places.folder("web.2"), &meta("web", 2, "other")).unwrap());
        drop(begin(&places.folder("web.3"), &meta("web", 3, &boot_id())).unwrap());
        let lock = begin(&places.folder("web.10"), &meta("web", 10, &boot_id())).unwrap();
        drop(begin(&places.folder("other.11"), &meta("other", 11, &boot_id())).unwrap());
        // What is none: a beginning, another name inside, a file, no number.
        drop(begin(&places.new_folder("web.12"), &meta("web", 12, &boot_id())).unwrap());
        drop(begin(&places.folder("web.13"), &meta("web", 14, &boot_id())).unwrap());
        fs::write(places.folder("web.15"), "").unwrap();
        fs::create_dir(places.folder("web")).unwrap();
        let shown: Vec<(String, Status)> = places.list().into_iter().map(|one| (one.id, one.status)).collect();
        let expected = [
            ("web.1", Status::Exited(3)),
            ("web.2", Status::LostGuest),
            ("web.3", Status::LostProcess),
            ("web.10", Status::Running),
            ("other.11", Status::LostProcess),
        ];
        assert_eq!(shown, expected.map(|(id, status)| (id.to_owned(), status)));
        assert_eq!(places.find("web").unwrap().id, "web.10");
        assert_eq!(places.find("web.1").unwrap().ended_at, Some(9));
        drop(lock);
        assert_eq!(places.find("web").unwrap().status, Status::LostProcess);
        assert!(places.find("nothing").is_none() && places.find("../folders").is_none());
        assert_eq!(places.take_number().unwrap(), 16);
    }

    #[test]
    fn a_number_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        assert_eq!(places.take_number().unwrap(), 1);
        ended(&places, "web", 1);
        assert_eq!(places.take_number().unwrap(), 2);
        ended(&places, "web", 2);
        places.remove("web.2").unwrap();
        places.remove("web.1").unwrap();
        assert_eq!(places.take_number().unwrap(), 3);
        assert!(places.list().is_empty());
        // A file that was damaged.
        ended(&places, "web", 7);
        fs::write(places.folders.join(NUMBER), "x").unwrap();
        assert_eq!(places.take_number().unwrap(), 8);
    }

    /// On a file system of its own, which is full.
    #[test]
    fn a_full_disk_keeps_no_status_away() {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root mounts");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().to_owned();
        // Mounts of this thread are seen by it alone.
        let in_thread = move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
            let places = places(&below);
            let meta = meta("web", 1, &boot_id());
            let lock = begin(&places.folder("web.1"), &meta).unwrap();
            assert_eq!(places.find("web").unwrap().status, Status::Running);
            let fill = fs::write(below.join("fill"), vec![1; 1 << 20]).unwrap_err();
            assert_eq!(fill.kind(), io::ErrorKind::StorageFull);
            end(&places.folder("web.1"), &End { status: Status::Exited(3), ended_at: 9 }).unwrap();
            drop(lock);
            assert_eq!(places.find("web").unwrap().status, Status::Exited(3));
        };
        std::thread::spawn(in_thread).join().unwrap();
    }

    #[test]
    fn every_status_has_room() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        drop(begin(&places.folder("web.1"), &meta("web", 1, "other")).unwrap());
        for status in [Status::Running, Status::Exited(255), Status::Killed(64), Status::LostGuest, Status::LostProcess]
        {
            end(&places.folder("web.1"), &End { status, ended_at: u64::MAX }).unwrap();
            let found = places.find("web").unwrap();
            assert_eq!((found.status, found.ended_at), (status, Some(u64::MAX)));
        }
    }

    #[test]
    fn the_oldest_go_and_so_do_cut_off_starts() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        for number in 1..=70 {
            ended(&places, "web", number);
        }
        drop(begin(&places.new_folder("web.71"), &meta("web", 71, &boot_id())).unwrap());
        let lock = begin(&places.new_folder("web.72"), &meta("web", 72, &boot_id())).unwrap();
        places.prune();
        let left = places.list();
        assert_eq!((left.len(), left[0].id.as_str()), (KEPT, "web.7"));
        assert!(!places.new_folder("web.71").exists() && places.new_folder("web.72").exists());
        drop(lock);
    }

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(for_people(&[b"a b".to_vec(), vec![0xff]]), ["a b", "\u{fffd}"]);
        let cut = for_people(&[b"sh".to_vec(), vec![b'x'; 100_000], b"more".to_vec()]);
        assert!(cut.len() == 2 && cut[1].len() < MAX_COMMAND + 8 && cut[1].ends_with("..."));
        assert!(for_people(&vec![Vec::new(); 100_000]).len() <= MAX_COMMAND);
    }
}
