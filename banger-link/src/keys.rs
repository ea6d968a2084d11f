//! SSH keys that the daemon makes, and the form of those that users bring.
//!
//! Each VM has a host key pair: made once, given to the guest in its configuration, pinned by the
//! daemon and by users' `known_hosts`. Private halves leave this module as PEM for a file (0600) or
//! the guest, and never for a log.

use russh::keys::ssh_key::{Algorithm, LineEnding, PublicKey};
use russh::keys::{PrivateKey, key};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An RSA key of 16384 bits is 2.8 KiB.
const MAX_PUBLIC_LINE: usize = 8 * 1024;
const MAX_PRIVATE_FILE: u64 = 64 * 1024;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The library's words.
    #[error("cannot make or write a key: {0}")]
    Key(#[source] russh::keys::ssh_key::Error),
    /// The file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no private key: {source}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// The library's words.
        #[source]
        source: russh::keys::ssh_key::Error,
    },
    /// A user's text.
    #[error("not an OpenSSH public key: {0}")]
    Public(String),
}

/// An ed25519 key pair; cheap to clone.
#[derive(Clone)]
pub struct KeyPair {
    key: Arc<PrivateKey>,
    public_line: Arc<str>,
}

impl std::fmt::Debug for KeyPair {
    /// The public half only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyPair").field(&self.public_line).finish()
    }
}

impl KeyPair {
    fn new(key: PrivateKey) -> Result<Self, KeyError> {
        let public_line = key.public_key().to_openssh().map_err(KeyError::Key)?.into();
        Ok(Self { key: Arc::new(key), public_line })
    }

    /// A new pair.
    ///
    /// # Errors
    /// [`KeyError::Key`].
    pub fn generate(comment: &str) -> Result<Self, KeyError> {
        let mut key = PrivateKey::random(&mut key::safe_rng(), Algorithm::Ed25519).map_err(KeyError::Key)?;
        key.set_comment(comment);
        Self::new(key)
    }

    /// The pair in a file, made when there is none: complete and 0600 before it has its name.
    ///
    /// # Errors
    /// [`KeyError::Damaged`] when the file is no key: it is never replaced, guests know the key by
    /// heart.
    pub fn load_or_create(path: &Path, comment: &str) -> Result<Self, KeyError> {
        let file = |source| KeyError::File { path: path.to_owned(), source };
        match File::open(path) {
            Ok(open) => {
                let mut pem = Vec::new();
                open.take(MAX_PRIVATE_FILE).read_to_end(&mut pem).map_err(file)?;
                let damaged = |source| KeyError::Damaged { path: path.to_owned(), source };
                Self::new(PrivateKey::from_openssh(&pem).map_err(damaged)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = Self::generate(comment)?;
                write_new(path, pair.private_pem()?.as_bytes()).map_err(file)?;
                Ok(pair)
            }
            Err(error) => Err(file(error)),
        }
    }

    /// The private half, OpenSSH format.
    ///
    /// # Errors
    /// [`KeyError::Key`].
    pub fn private_pem(&self) -> Result<String, KeyError> {
        self.key.to_openssh(LineEnding::LF).map(|pem| pem.as_str().to_owned()).map_err(KeyError::Key)
    }

    /// The public half, `ssh-ed25519 AAAA... comment`.
    #[must_use]
    pub fn public_line(&self) -> &str {
        &self.public_line
    }
}

pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    // Left by a crash; nobody has ever used it.
    let _ = std::fs::remove_file(&unfinished);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A user's public key as one line: algorithm, key, comment. Options before it are refused, because
/// they would mean something in a guest.
///
/// # Errors
/// [`KeyError::Public`].
pub fn parse_public(line: &str) -> Result<String, KeyError> {
    let refused = |why: &str| KeyError::Public(why.to_owned());
    let line = line.trim();
    if line.len() > MAX_PUBLIC_LINE {
        return Err(refused("the line is too long"));
    }
    if line.chars().any(char::is_control) {
        return Err(refused("it must be one line without control characters"));
    }
    let parsed = PublicKey::from_openssh(line).map_err(|error| KeyError::Public(error.to_string()))?;
    parsed.to_openssh().map_err(|error| KeyError::Public(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = KeyPair::load_or_create(&path, "bangerd").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(made.public_line().starts_with("ssh-ed25519 AAAA"), "{made:?}");
        assert!(made.public_line().ends_with(" bangerd"));
        assert_eq!(KeyPair::load_or_create(&path, "other").unwrap().public_line(), made.public_line());
        assert!(!format!("{made:?}").contains("PRIVATE"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        // Oracle: OpenSSH's own tool, where it is installed.
        if let Ok(said) = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output() {
            assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), made.public_line());
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "not a key").unwrap();
        assert!(matches!(KeyPair::load_or_create(&path, "x"), Err(KeyError::Damaged { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
    }

    #[test]
    fn users_keys_are_one_plain_line() {
        let line = KeyPair::generate("alice@laptop").unwrap().public_line().to_owned();
        assert_eq!(parse_public(&format!("  {line}\n")).unwrap(), line);
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 short";
        for bad in ["", "ssh-ed25519", "hello", rsa, &format!("command=\"x\" {line}"), &format!("{line}\n{line}")] {
            assert!(parse_public(bad).is_err(), "{bad}");
        }
    }
}
