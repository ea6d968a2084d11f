//! The user's SSH key for all VMs, and the known-hosts file of each: what `vm ssh` gives to the user's `ssh`.

use crate::programs;
use anyhow::Context as _;
use banger_policy::VmId;
use nix::unistd::{User, getuid};
use std::fs::{DirBuilder, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of all of this, `~/.local/share/banger/ssh`.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    /// # Errors
    /// When the user has no home folder.
    pub(crate) fn locate() -> anyhow::Result<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || absolute("HOME").or_else(|| User::from_uid(getuid()).ok().flatten().map(|user| user.dir));
        // XDG Base Directory Specification: a relative path is to be ignored.
        let data = absolute("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share")));
        let data = data.context("you have no home folder to keep an SSH key in (HOME is not set)")?;
        Ok(Self { folder: data.join("banger/ssh") })
    }

    /// The private key, made at the first call.
    ///
    /// # Errors
    /// When it cannot be written or `ssh-keygen` is not there.
    pub(crate) fn private_key(&self) -> anyhow::Result<PathBuf> {
        let key = self.folder.join("id_ed25519");
        if key.try_exists().with_context(|| format!("cannot look at {}", key.display()))? {
            return Ok(key);
        }
        let keygen = programs::find("ssh-keygen")?;
        private_folder(&self.folder)?;
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
        let path = self.known_hosts(vm);
        let folder = path.parent().unwrap_or(&self.folder);
        private_folder(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        writeln!(file, "{} {}", alias(vm), host_key.lines().next().unwrap_or_default().trim())?;
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Forgets a VM that is no more.
    pub(crate) fn forget(&self, vm: VmId) {
        // A line for an id that never comes back does no harm.
        drop(std::fs::remove_file(self.known_hosts(vm)));
    }

    fn known_hosts(&self, vm: VmId) -> PathBuf {
        self.folder.join("known_hosts.d").join(vm.to_string())
    }
}

/// The name under which `ssh` knows a VM: by id, because names and addresses are used again.
pub(crate) fn alias(vm: VmId) -> String {
    format!("banger-{vm}")
}

fn private_folder(path: &Path) -> anyhow::Result<()> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
    };
    make().with_context(|| format!("cannot make the folder {}", path.display()))
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

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: folder.path().join("banger/ssh") };
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
    fn a_strange_path_stays_one_word() {
        assert_eq!(proxy_word(Path::new("/a b/it's 100%")).unwrap(), r"'/a b/it'\''s 100%%'");
    }
}
