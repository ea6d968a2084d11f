//! File sync: what the administrator's configuration says that new VMs get of their users' files,
//! and the user's identity for git.
//!
//! Read here, with the user's rights, and only when a VM starts for the first time: later the
//! guest's copies are the guest's.

use crate::client::{Client, answer, soon};
use crate::output::note;
use crate::remote::{self, Guest};
use anyhow::Context as _;
use banger_files::Packer;
use banger_policy::VmId;
use banger_proto::model::FileSync;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Modes when the configuration names none.
const FILE: u32 = 0o600;
const FOLDER: u32 = 0o755;

/// Copies what is configured into a new VM. What is missing here is a warning.
///
/// # Errors
/// When the daemon or the guest does not answer, or the guest has no room.
pub(super) async fn new_vm(client: &Client, vm: VmId) -> anyhow::Result<()> {
    let entries = answer(client.rpc.file_sync(soon())).await?;
    if entries.is_empty() {
        return Ok(());
    }
    let guest = Guest::Vm { client, vm: vm.to_string(), user: Some("root"), reads: false };
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    copy(&guest, entries, home).await.context("cannot copy the configured files (file_sync)")
}

async fn copy(guest: &Guest<'_>, entries: Vec<FileSync>, home: Option<PathBuf>) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for entry in entries {
        match host_path(&entry.host, home.as_deref()) {
            Some(path) if fs::metadata(&path).is_ok() => found.push((path, entry)),
            _ => note(&format!("warning: file_sync: {} is not here and is left out", entry.host)),
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    // Below the home of the guest's root, which is where the work disk is.
    let work = move |to: &mut dyn Write| {
        let mut packer = Packer::new(to);
        for (path, entry) in found {
            let name = entry.guest.strip_prefix("/root").or_else(|| entry.guest.strip_prefix('~'));
            let name = name.unwrap_or(&entry.guest).trim_matches('/').to_owned();
            add(&mut packer, name.as_bytes(), &path, entry.mode)?;
        }
        packer.finish()?;
        Ok(())
    };
    remote::send(guest, &["put", "/root"], None, std::sync::Arc::default(), work).await
}

fn host_path(host: &str, home: Option<&Path>) -> Option<PathBuf> {
    match host.strip_prefix("~/") {
        Some(below) => Some(home?.join(below)),
        None => Some(PathBuf::from(host)).filter(|path| path.is_absolute()),
    }
}

/// A file, or a folder with all that is in it. A link at the top means what it leads to.
fn add(packer: &mut Packer<&mut dyn Write>, name: &[u8], path: &Path, mode: Option<u32>) -> anyhow::Result<()> {
    let path = fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let mut todo = vec![(name.to_vec(), path)];
    while let Some((name, path)) = todo.pop() {
        let stat = path.symlink_metadata().with_context(|| path.display().to_string())?;
        // The folder's own mode must let its user in.
        let mode = if stat.is_dir() { FOLDER } else { mode.unwrap_or(FILE) };
        packer.add(&name, &path, Some(mode))?;
        if stat.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
                let entry = entry?;
                todo.push(([&name, b"/".as_slice(), entry.file_name().as_bytes()].concat(), entry.path()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_home_is_the_callers() {
        let home = Some(Path::new("/home/alice"));
        assert_eq!(host_path("~/.netrc", home).unwrap(), Path::new("/home/alice/.netrc"));
        assert_eq!(host_path("/etc/motd", home).unwrap(), Path::new("/etc/motd"));
        assert_eq!((host_path("~/.netrc", None), host_path("relative", home)), (None, None));
    }

    #[test]
    fn files_and_folders_get_their_modes() {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir_all(host.path().join("conf/sub")).unwrap();
        fs::write(host.path().join("conf/sub/file"), "x").unwrap();
        let mut bytes = Vec::new();
        {
            let mut packer = Packer::new(&mut bytes as &mut dyn Write);
            add(&mut packer, b".config/tool", &host.path().join("conf"), None).unwrap();
            add(&mut packer, b".netrc", &host.path().join("conf/sub/file"), Some(0o640)).unwrap();
            packer.finish().unwrap();
        }
        let guest = tempfile::tempdir().unwrap();
        let folder = banger_files::open_folder(guest.path()).unwrap();
        banger_files::unpack(bytes.as_slice(), &folder, banger_files::Limits::NONE).unwrap();
        let mode = |name: &str| fs::metadata(guest.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(".config/tool/sub"), mode(".config/tool/sub/file"), mode(".netrc")), (0o755, 0o600, 0o640));
    }
}
