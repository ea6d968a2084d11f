//! The user's SSH key for all VMs, and the known-hosts file of each: what `vm ssh` gives to the user's `ssh`.

use crate::private::{self, Missing};
use crate::programs;
use anyhow::Context as _;
use banger_policy::VmId;
use nix::unistd::{User, geteuid};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of all of this below the user's data.
const OWN: &str = "banger/ssh";
/// In it, a file per VM.
const KNOWN_HOSTS: &str = "known_hosts.d";

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
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || absolute("HOME").or_else(|| User::from_uid(geteuid()).ok().flatten().map(|user| user.dir));
        // XDG Base Directory Specification: a relative path is to be ignored.
        let data = absolute("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share")));
        let data = data.context("you have no home folder to keep an SSH key in (HOME is not set)")?;
        Ok(Self::below(data))
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
        // Made aside and linked into place: of two commands at the same time one wins, and both use its key.
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
        match std::fs::hard_link(&new, &key) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot write {}", key.display()))
            }
            _ => Ok(key),
        }
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
            return Err(crate::error::explained(
                format!("cannot use the key {}: {why}", private.display()),
                format!("the key is banger's own; remove it and a new one is made: rm {}", private.display()),
            ));
        }
        Ok(String::from_utf8(shown.stdout)?.trim().to_owned())
    }

    /// Writes the one host key that this VM may show.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn pin(&self, vm: VmId, host_key: &str) -> anyhow::Result<PathBuf> {
        let own = Path::new(OWN).join(KNOWN_HOSTS);
        private::open(&self.data, &own, geteuid(), Missing::Make).context("cannot keep a host key")?;
        let folder = self.folder.join(KNOWN_HOSTS);
        let path = folder.join(vm.to_string());
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        writeln!(file, "{} {}", alias(vm), host_key.lines().next().unwrap_or_default().trim())?;
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Forgets a VM that is no more.
    pub(crate) fn forget(&self, vm: VmId) {
        let own = Path::new(OWN).join(KNOWN_HOSTS);
        if let Ok(folder) = private::open(&self.data, &own, geteuid(), Missing::Refuse) {
            // A line for an id that never comes back does no harm.
            drop(private::remove(&folder, &vm.to_string()));
        }
    }
}

/// The name under which `ssh` knows a VM: by id, because names and addresses are used again.
pub(crate) fn alias(vm: VmId) -> String {
    format!("banger-{vm}")
}

/// A path as one word of a command line that `ssh` hands to a shell, with its own `%` escapes doubled.
pub(crate) fn proxy_word(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")).replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

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
    fn the_pin_is_one_line_for_one_vm() {
        let (_folder, store) = store();
        let vm = VmId::from_bytes([7; 32]).unwrap();
        store.pin(vm, "ssh-ed25519 OLD").unwrap();
        let path = store.pin(vm, "ssh-ed25519 AAAA\n* ssh-ed25519 EVIL").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("banger-{vm} ssh-ed25519 AAAA\n"));
        store.forget(vm);
        assert!(!path.exists());
    }

    #[test]
    fn nothing_is_read_or_written_through_a_link() {
        let (folder, store) = store();
        let target = folder.path().join("else");
        std::fs::create_dir(&target).unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755)).unwrap();
        let vm = VmId::from_bytes([7; 32]).unwrap();
        let theirs = [target.join("id_ed25519"), target.join(vm.to_string())];
        theirs.iter().for_each(|path| std::fs::write(path, "theirs").unwrap());
        std::fs::create_dir(folder.path().join("banger")).unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("banger/ssh")).unwrap();
        assert!(store.private_key().is_err() && store.pin(vm, "ssh-ed25519 AAAA").is_err());
        std::fs::remove_file(folder.path().join("banger/ssh")).unwrap();
        store.private_key().unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("banger/ssh/known_hosts.d")).unwrap();
        assert!(store.pin(vm, "ssh-ed25519 AAAA").is_err());
        store.forget(vm);
        assert!(theirs.iter().all(|path| std::fs::read_to_string(path).unwrap() == "theirs"));
        assert_eq!(target.read_dir().unwrap().count(), 2);
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_strange_path_stays_one_word() {
        assert_eq!(proxy_word(Path::new("/a b/it's 100%")).unwrap(), r"'/a b/it'\''s 100%%'");
    }
}
