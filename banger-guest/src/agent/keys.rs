//! Who may log in over SSH: a set of keys that only the daemon replaces.

use banger_proto::command::MAX_LIST;
use russh::keys::PublicKey;
use russh::keys::ssh_key;
use std::io;
use std::sync::{PoisonError, RwLock};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::console::say;

/// A line that is no public key.
#[derive(Debug, thiserror::Error)]
#[error("line {line} is not a public key in OpenSSH format")]
pub(super) struct BadKey {
    line: usize,
    source: ssh_key::Error,
}

#[derive(Debug)]
pub(super) struct Keys(RwLock<Vec<PublicKey>>);

impl Keys {
    /// A key that cannot be read is said on the console and left out: it must not keep everyone out
    /// of the guest.
    pub(super) fn new(users: &[String]) -> Self {
        let mut readable = Vec::new();
        for line in users {
            match parse(line) {
                Ok(mut keys) => readable.append(&mut keys),
                Err(error) => say(format_args!("agent: an authorised key is left out: {}", error.source)),
            }
        }
        Self(RwLock::new(readable))
    }

    /// Whether `key` may log in. Comments do not count.
    #[must_use]
    pub(super) fn admits(&self, key: &PublicKey) -> bool {
        let users = self.0.read().unwrap_or_else(PoisonError::into_inner);
        users.iter().any(|user| user.key_data() == key.key_data())
    }

    /// Replaces the keys by those in `text`, one a line, all or none of them.
    pub(super) fn replace(&self, text: &str) -> Result<(), BadKey> {
        let keys = parse(text)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// Takes a list from the daemon ([`banger_proto::command::Purpose::Keys`]) and answers.
pub(super) async fn take<R, W>(from: &mut R, to: &mut W, keys: &Keys) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Some(list) = list(from).await? else { return to.write_all(&[1]).await };
    let replaced = std::str::from_utf8(&list).is_ok_and(|text| match keys.replace(text) {
        Ok(()) => true,
        Err(error) => {
            say(format_args!("agent: the authorised keys stay as they are: {error}"));
            false
        }
    });
    to.write_all(&[u8::from(!replaced)]).await
}

/// A list as the daemon sends it; `None` when it is too long.
pub(super) async fn list<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Vec<u8>>> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_LIST {
        return Ok(None);
    }
    let mut list = vec![0; length];
    from.read_exact(&mut list).await?;
    Ok(Some(list))
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
    fn users_are_replaced_as_a_whole() {
        let (a, b) = (PublicKey::from_openssh(A).unwrap(), PublicKey::from_openssh(B).unwrap());
        let keys = Keys::new(&[A.into(), "not a key".into()]);
        assert!(keys.admits(&a) && !keys.admits(&b));
        keys.replace(&format!("# people\n\n{B} bob\n")).unwrap();
        assert!(!keys.admits(&a) && keys.admits(&b));
        assert_eq!(keys.replace(&format!("{A}\nrubbish\n")).unwrap_err().line, 2);
        assert!(!keys.admits(&a) && keys.admits(&b));
        keys.replace("").unwrap();
        assert!(!keys.admits(&b));
    }

    #[tokio::test]
    async fn a_list_from_the_daemon_is_answered() {
        let keys = Keys::new(&[]);
        let send = async |list: &[u8], length: usize| {
            let mut answer = Vec::new();
            let bytes = [&u32::try_from(length).unwrap().to_be_bytes(), list].concat();
            take(&mut bytes.as_slice(), &mut answer, &keys).await.map(|()| answer)
        };
        assert_eq!(send(A.as_bytes(), A.len()).await.unwrap(), [0]);
        assert!(keys.admits(&PublicKey::from_openssh(A).unwrap()));
        assert_eq!(send(b"rubbish", 7).await.unwrap(), [1]);
        assert_eq!(send(&[0xff], 1).await.unwrap(), [1]);
        assert_eq!(send(b"", MAX_LIST + 1).await.unwrap(), [1]);
        assert!(send(b"short", 6).await.is_err());
        assert!(keys.admits(&PublicKey::from_openssh(A).unwrap()), "a bad list changes nothing");
    }
}
