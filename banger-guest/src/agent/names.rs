//! The names of the other VMs of the guest's private network, as the daemon tells them.
//!
//! They are in `/etc/hosts`, where every program looks first, so that no question about another VM
//! leaves the guest and the host answers none.

use super::keys::list;
use crate::console::say;
use crate::hosts::{HOSTS, MAX_HOSTS, with_network};
use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// The file until it is whole.
const UNFINISHED: &str = ".hosts.banger";
/// One at a time writes the file.
static WRITING: Mutex<()> = Mutex::new(());

/// Takes a list from the daemon ([`banger_proto::command::Purpose::Names`]) and answers.
pub(super) async fn take<R, W>(from: &mut R, to: &mut W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Some(list) = list(from).await? else { return to.write_all(&[1]).await };
    let written = tokio::task::spawn_blocking(move || replace(Path::new(HOSTS), &list)).await;
    let result = written.unwrap_or_else(|ended| Err(io::Error::other(ended)));
    if let Err(error) = &result {
        say(format_args!("{HOSTS} has not the names of the private network: {error}"));
    }
    to.write_all(&[u8::from(result.is_err())]).await
}

fn replace(path: &Path, list: &[u8]) -> io::Result<()> {
    let _turn = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    // A link stays one.
    let path = path.canonicalize()?;
    let found = path.metadata()?;
    if found.len() > MAX_HOSTS {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let old = fs::read(&path)?;
    let new = with_network(&old, list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()));
    if new == old {
        return Ok(());
    }
    // Something lies over it (`cover` in init), in memory. Its folder's disk may be full or
    // read-only.
    if path.parent().map(Path::metadata).transpose()?.is_some_and(|folder| folder.dev() != found.dev()) {
        return fs::write(&path, new);
    }
    // Whoever reads it meanwhile reads all of it, and a disk that is full loses nothing.
    let unfinished = path.with_file_name(UNFINISHED);
    let done = beside(&unfinished, &new, &found).and_then(|()| fs::rename(&unfinished, &path));
    if done.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    match done {
        // A file of the same disk lies over it.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => fs::write(&path, new),
        done => done,
    }
}

/// A new file with the owner and the mode of another.
fn beside(unfinished: &Path, content: &[u8], like: &Metadata) -> io::Result<()> {
    // Of an agent that was killed.
    let _ = fs::remove_file(unfinished);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished)?;
    file.write_all(content)?;
    fchown(&file, Some(like.uid()), Some(like.gid()))?;
    file.set_permissions(Permissions::from_mode(like.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_file_keeps_its_place_its_mode_and_the_guests_lines() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("hosts"));
        fs::write(&real, "127.0.0.1 localhost\n").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        replace(&link, b"172.16.0.3 db db.alice.vm").unwrap();
        assert!(link.is_symlink());
        let text = fs::read_to_string(&real).unwrap();
        assert_eq!(text, "127.0.0.1 localhost\n172.16.0.3 db db.alice.vm # banger network\n");
        assert_eq!(real.metadata().unwrap().mode() & 0o7777, 0o640);
        replace(&link, b"").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "127.0.0.1 localhost\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        fs::remove_file(&real).unwrap();
        assert!(replace(&link, b"172.16.0.3 db").is_err());
    }

    /// On a file system of its own, with a file of another one over the file.
    #[test]
    fn a_file_in_memory_is_written_whatever_the_disk_below_it_says() {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root mounts");
            return;
        }
        let (disk, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (hosts, cover) = (disk.path().join("hosts"), memory.path().join("hosts"));
        let (disk, memory) = (disk.path().to_owned(), memory.path().to_owned());
        // Mounts of this thread are seen by it alone.
        let in_thread = move || {
            let plain = |from: &str, to: &Path, flags, data| mount(Some(from), to, Some("tmpfs"), flags, data).unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            plain("disk", &disk, MsFlags::empty(), Some("size=64k"));
            plain("memory", &memory, MsFlags::empty(), None::<&str>);
            fs::write(&hosts, "").unwrap();
            fs::write(&cover, "127.0.0.1 localhost\n").unwrap();
            mount(Some(&cover), &hosts, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            assert_eq!(fs::write(disk.join("fill"), vec![1; 1 << 20]).unwrap_err().kind(), io::ErrorKind::StorageFull);
            replace(&hosts, b"172.16.0.3 db").unwrap();
            plain("disk", &disk, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None);
            replace(&hosts, b"172.16.0.4 log").unwrap();
            assert_eq!(fs::read_to_string(&hosts).unwrap(), "127.0.0.1 localhost\n172.16.0.4 log # banger network\n");
        };
        std::thread::spawn(in_thread).join().unwrap();
    }

    #[tokio::test]
    async fn a_list_that_is_too_long_is_refused() {
        let mut answer = Vec::new();
        take(&mut &u32::MAX.to_be_bytes()[..], &mut answer).await.unwrap();
        assert_eq!(answer, [1]);
    }
}
