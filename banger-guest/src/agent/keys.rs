//! Who may log in: the daemon, always, and a set of keys that only the daemon replaces.

use russh::keys::PublicKey;
use russh::keys::ssh_key;
use std::sync::{PoisonError, RwLock};

use crate::console::say;

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// A user: commands, shells, forwarding.
    User,
    /// The daemon: also the set of keys itself.
    Daemon,
}

/// A line that is no public key.
#[derive(Debug, thiserror::Error)]
#[error("line {line} is not a public key in OpenSSH format")]
pub(super) struct BadKey {
    line: usize,
    source: ssh_key::Error,
}

#[derive(Debug)]
pub(super) struct Keys {
    daemon: PublicKey,
    users: RwLock<Vec<PublicKey>>,
}

impl Keys {
    /// A user's key that cannot be read is said on the console and left out: it must not keep the
    /// daemon, and with it everyone, out of the guest.
    pub(super) fn new(daemon: &str, users: &[String]) -> Result<Self, ssh_key::Error> {
        let daemon = PublicKey::from_openssh(daemon.trim())?;
        let mut readable = Vec::new();
        for line in users {
            match parse(line) {
                Ok(mut keys) => readable.append(&mut keys),
                Err(error) => say(format_args!("agent: an authorised key is left out: {}", error.source)),
            }
        }
        Ok(Self { daemon, users: RwLock::new(readable) })
    }

    /// What `key` opens, if anything. Comments do not count.
    #[must_use]
    pub(super) fn access(&self, key: &PublicKey) -> Option<Access> {
        if key.key_data() == self.daemon.key_data() {
            return Some(Access::Daemon);
        }
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        users.iter().any(|user| user.key_data() == key.key_data()).then_some(Access::User)
    }

    /// Replaces the users' keys by those in `text`, one a line, all or none of them.
    pub(super) fn replace(&self, text: &str) -> Result<(), BadKey> {
        let keys = parse(text)?;
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// One key a line; empty lines and comments are skipped.
fn parse(text: &str) -> Result<Vec<PublicKey>, BadKey> {
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            keys.push(PublicKey::from_openssh(line).map_err(|source| BadKey { line: at + 1, source })?);
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@example";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFmDDdyA7qJ3Na5ciDuRxLVNgkV6YWn8SQqPDA0bR3UV";

    #[test]
    fn the_daemon_is_known_and_users_are_replaced_as_a_whole() {
        let (a, b) = (PublicKey::from_openssh(A).unwrap(), PublicKey::from_openssh(B).unwrap());
        let keys = Keys::new(A, &["not a key".into()]).unwrap();
        assert_eq!(keys.access(&a), Some(Access::Daemon));
        assert_eq!(keys.access(&b), None);
        keys.replace(&format!("# people\n\n{B} bob\n")).unwrap();
        assert_eq!(keys.access(&b), Some(Access::User));
        assert_eq!(keys.replace(&format!("{A}\nrubbish\n")).unwrap_err().line, 2);
        assert_eq!(keys.access(&b), Some(Access::User));
        keys.replace("").unwrap();
        assert_eq!(keys.access(&b), None);
        assert_eq!(keys.access(&a), Some(Access::Daemon));
    }
}
