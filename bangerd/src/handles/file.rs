//! `handles.json`: mode 0600, replaced by rename so that a reader sees an old or a new one, never
//! half of one.

use super::Handles;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What a file of this kind can have at most, bytes. More is not ours.
const MAX_BYTES: u64 = 16 * 1024;

pub(super) fn write(path: &Path, handles: &Handles) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(handles)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

/// A missing file is empty handles.
pub(super) fn read(path: &Path) -> io::Result<Handles> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Handles::default()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_comes_back_private_and_garbage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handles.json");
        assert!(read(&path).unwrap().is_zero());
        let handles = Handles { pid: Some(1), ..Handles::default() };
        write(&path, &handles).unwrap();
        assert_eq!(read(&path).unwrap(), handles);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for garbage in ["", "{\"pid\":", "null", "{\"pid\":\"x\"}"] {
            std::fs::write(&path, garbage).unwrap();
            assert!(read(&path).is_err(), "{garbage:?}");
        }
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
