//! The secret of one boot, by which the guest's agent proves itself on the control channel.
//!
//! Made at each start, given to the guest in its initramfs, and kept beside that for a daemon that
//! takes the running VM back. As private as the initramfs.

use banger_proto::guest::BootToken;
use std::io::{self, Read as _};
use std::path::Path;

/// A new one, in the place of the earlier boot's.
///
/// # Errors
/// What the kernel says.
pub fn renew(path: &Path) -> io::Result<BootToken> {
    let mut random = [0; 32];
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let token = BootToken::new(random);
    super::keys::write_new(path, token.reveal().as_bytes())?;
    Ok(token)
}

/// That of the boot that runs.
///
/// # Errors
/// What the kernel says; `InvalidData` when the file holds something else.
pub fn load(path: &Path) -> io::Result<BootToken> {
    let mut text = String::new();
    let limit = u64::try_from(BootToken::LEN + 1).unwrap_or(0);
    std::fs::File::open(path)?.take(limit).read_to_string(&mut text)?;
    BootToken::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn each_boot_has_its_own_and_the_next_daemon_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot_token");
        let first = renew(&path).unwrap();
        assert!(load(&path).unwrap().proves(&first));
        let second = renew(&path).unwrap();
        assert!(load(&path).unwrap().proves(&second) && !second.proves(&first));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in ["", "x", &"0".repeat(63), &"0".repeat(65)] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "{damaged}");
        }
    }
}
