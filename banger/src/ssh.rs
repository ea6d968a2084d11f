//! The user's SSH key for all VMs, and what stock `ssh` is told about them: as options by `vm ssh`,
//! and in a file by `ssh-config`. Which host key a VM has is asked of the daemon at each connection
//! (`vm host-key`), so nothing is kept that could be out of date.

mod fence;
mod settings;
pub(crate) mod user_config;

pub(crate) use settings::Places;

use crate::error::explained;
use crate::private::{self, Missing};
use crate::programs;
use anyhow::Context as _;
use nix::unistd::geteuid;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of all of this below the user's data.
const OWN: &str = "banger/ssh";
/// In it, what `~/.ssh/config` includes.
const CONFIG: &str = "config";
/// The names of VMs among the names of hosts.
pub(crate) const HOSTS: &str = ".banger";

/// The folder of all of this, `~/.local/share/banger/ssh`.
#[derive(Debug)]
pub(crate) struct Store {
    data: PathBuf,
    folder: PathBuf,
}

impl Store {
    /// # Errors
    /// When the user has no home folder.
    pub(crate) fn locate() -> anyhow::Result<Self> {
        Ok(Self::below(private::data_home()?))
    }

    fn below(data: PathBuf) -> Self {
        let folder = data.join(OWN);
        Self { data, folder }
    }

    /// The private key, made at the first call.
    ///
    /// # Errors
    /// When it cannot be written or `ssh-keygen` is not there.
    pub(crate) fn private_key(&self) -> anyhow::Result<PathBuf> {
        // Before anything is read there: a key that somebody else could exchange is not the user's.
        private::open(&self.data, Path::new(OWN), geteuid(), Missing::Make).context("cannot keep an SSH key")?;
        let key = self.folder.join("id_ed25519");
        if key.try_exists().with_context(|| format!("cannot look at {}", key.display()))? {
            return Ok(key);
        }
        let keygen = programs::find("ssh-keygen")?;
        // Of two commands at the same time one makes the key, and both use it. Where there are no
        // locks, the key of the later one stays.
        let lock = File::options().create(true).append(true).open(self.folder.join(".lock"))?;
        let _ = rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive);
        if key.try_exists()? {
            return Ok(key);
        }
        let aside = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.folder)?;
        let new = aside.path().join("id_ed25519");
        let comment = format!("banger@{}", nix::unistd::gethostname()?.to_string_lossy());
        let made = Command::new(keygen)
            .args(["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"])
            .arg(&new)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ssh-keygen")?;
        if !made.status.success() {
            anyhow::bail!("ssh-keygen made no key: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        // A link would do without the lock, but vfat, AFS and some shares have none.
        std::fs::rename(&new, &key).with_context(|| format!("cannot write {}", key.display()))?;
        if std::fs::metadata(&key)?.permissions().mode() & 0o077 != 0 {
            return Err(explained(
                format!("{} keeps no permissions, and ssh refuses a key that others may read", self.folder.display()),
                "keep banger's files on another file system: XDG_DATA_HOME=/path",
            ));
        }
        Ok(key)
    }

    /// The public half, one line. Taken from the private key, so that the two cannot differ.
    ///
    /// # Errors
    /// When the key is damaged or has a passphrase.
    pub(crate) fn public_key(&self, private: &Path) -> anyhow::Result<String> {
        let shown = Command::new(programs::find("ssh-keygen")?)
            .args(["-y", "-P", "", "-f"])
            .arg(private)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ssh-keygen")?;
        if !shown.status.success() {
            let why = String::from_utf8_lossy(&shown.stderr).trim().to_owned();
            return Err(explained(
                format!("cannot use the key {}: {why}", private.display()),
                format!("the key is banger's own; remove it and a new one is made: rm {}", private.display()),
            ));
        }
        Ok(String::from_utf8(shown.stdout)?.trim().to_owned())
    }

    /// Writes what `~/.ssh/config` includes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_config(&self, text: &str) -> anyhow::Result<PathBuf> {
        private::open(&self.data, Path::new(OWN), geteuid(), Missing::Make).context("cannot keep a configuration")?;
        let path = self.folder.join(CONFIG);
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Removes it again.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub(crate) fn remove_config(&self) -> anyhow::Result<()> {
        let path = self.folder.join(CONFIG);
        if !path.try_exists()? {
            return Ok(());
        }
        let folder = private::open(&self.data, Path::new(OWN), geteuid(), Missing::Refuse)?;
        match private::remove(&folder, CONFIG) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The word for a VM that a name of a host stands for: `demo.banger` is `demo`, and
/// `demo.alice.banger` is `alice/demo`. `scp` and `git` would take a slash in a host's name for the
/// beginning of a path. No VM's name has a dot, so the user's name may.
pub(crate) fn word(host: &str) -> String {
    let name = host.strip_suffix(HOSTS).unwrap_or(host);
    name.split_once('.').map_or_else(|| name.to_owned(), |(vm, user)| format!("{user}/{vm}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::below(folder.path().to_owned());
        (folder, store)
    }

    #[test]
    fn one_key_however_often_and_however_many_ask() {
        let (_folder, store) = store();
        let keys: Vec<String> = std::thread::scope(|scope| {
            let ask = || store.private_key().and_then(|key| store.public_key(&key)).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| key.starts_with("ssh-ed25519 ") && Some(key) == keys.first()), "{keys:?}");
        let mode = std::fs::metadata(store.private_key().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_configuration_is_the_users_alone() {
        let (_folder, store) = store();
        store.remove_config().unwrap();
        store.write_config("old").unwrap();
        let path = store.write_config("new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        store.remove_config().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nothing_is_read_or_written_through_a_link() {
        let (folder, store) = store();
        let target = folder.path().join("else");
        std::fs::create_dir(&target).unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755)).unwrap();
        let theirs = [target.join("id_ed25519"), target.join(CONFIG)];
        theirs.iter().for_each(|path| std::fs::write(path, "theirs").unwrap());
        std::fs::create_dir(folder.path().join("banger")).unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("banger/ssh")).unwrap();
        assert!(store.private_key().is_err() && store.write_config("ours").is_err());
        assert!(store.remove_config().is_err());
        assert!(theirs.iter().all(|path| std::fs::read_to_string(path).unwrap() == "theirs"));
        assert_eq!(target.read_dir().unwrap().count(), 2);
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn hosts_are_words_for_vms() {
        for (host, vm) in [
            ("demo.banger", "demo"),
            ("demo", "demo"),
            ("demo.alice.banger", "alice/demo"),
            ("demo.a.b.banger", "a.b/demo"),
            ("3fa9.banger", "3fa9"),
            ("alice/demo", "alice/demo"),
        ] {
            assert_eq!(word(host), vm);
        }
    }
}
