//! File sync: what the administrator's configuration says that new VMs get of their users' files,
//! and the user's identity for git.
//!
//! Read here, with the user's rights, and only when a VM of the user's own starts for the first
//! time: later the guest's copies are the guest's. Which files these are, the administrator of this
//! machine says in a file of root's, and no daemon: one that was taken over, or another machine's,
//! would have any file of the user's sent to it.

use crate::client::Client;
use crate::machine;
use crate::output::remark;
use crate::remote::{self, Guest};
use anyhow::Context as _;
use banger_files::Packer;
use banger_policy::file_sync::FileSync;
use banger_proto::model::VmRecord;
use nix::unistd::getuid;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The administrator's configuration.
const CONFIG: &str = "/etc/banger/banger.toml";
/// Another one, for a daemon that was started from a build folder.
const CONFIG_VARIABLE: &str = "BANGER_CONFIG";
/// Larger files are something else, bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Modes when the configuration names none.
const FILE: u32 = 0o600;
const FOLDER: u32 = 0o755;

/// What of the configuration is read here. The daemon checks the whole of it.
#[derive(Debug, Default, Deserialize)]
struct Configured {
    #[serde(default)]
    file_sync: Vec<FileSync>,
}

/// Copies what is configured into a new VM of the caller's. What is missing here is a warning.
///
/// # Errors
/// When the guest does not answer, or has no room.
pub(super) async fn new_vm(client: &Client, vm: &VmRecord) -> anyhow::Result<()> {
    let entries = entries_for(vm).unwrap_or_else(|(path, error)| {
        remark(&format!("warning: file_sync of {} is left out: {error:#}", path.display()));
        Vec::new()
    });
    if entries.is_empty() {
        return Ok(());
    }
    let guest = Guest::Vm { client, vm: vm.id.to_string(), user: Some("root"), reads: false };
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    copy(&guest, entries, home).await.context("cannot copy the configured files (file_sync)")
}

/// Whether files are configured for this VM.
pub(super) fn is_wanted(vm: &VmRecord) -> bool {
    entries_for(vm).is_ok_and(|entries| !entries.is_empty())
}

fn entries_for(vm: &VmRecord) -> Result<Vec<FileSync>, (PathBuf, anyhow::Error)> {
    // The configuration of this machine is about VMs of this machine. And whoever starts the VM of
    // somebody else, as administrators may, has no files for it.
    if machine::chosen().is_some() || vm.owner != getuid().as_raw() {
        return Ok(Vec::new());
    }
    let path = std::env::var_os(CONFIG_VARIABLE).map_or_else(|| PathBuf::from(CONFIG), PathBuf::from);
    configured(&path).map_err(|error| (path, error))
}

/// The entries of a file that only root, or the caller, can write.
fn configured(path: &Path) -> anyhow::Result<Vec<FileSync>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let stat = file.metadata()?;
    let trusted = (stat.uid() == 0 || stat.uid() == getuid().as_raw()) && stat.mode() & 0o022 == 0;
    anyhow::ensure!(
        trusted,
        "others than root may write to it; an administrator closes it with: chown root {0} && chmod go-w {0}",
        path.display()
    );
    let mut text = String::new();
    file.take(MAX_CONFIG).read_to_string(&mut text)?;
    let Configured { file_sync } = toml::from_str(&text).map_err(|error| anyhow::anyhow!("{}", error.message()))?;
    for entry in &file_sync {
        entry.check().map_err(|(key, why)| anyhow::anyhow!("{key}: {why}"))?;
    }
    Ok(file_sync)
}

async fn copy(guest: &Guest<'_>, entries: Vec<FileSync>, home: Option<PathBuf>) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for entry in entries {
        match host_path(&entry.host, home.as_deref()) {
            Some(path) if fs::metadata(&path).is_ok() => found.push((path, entry)),
            _ => remark(&format!("warning: file_sync: {} is not here and is left out", entry.host)),
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
            add(&mut packer, name.as_bytes(), &path, entry.mode())?;
        }
        packer.finish()?;
        Ok(())
    };
    remote::send(guest, &["put", "/root", "."], None, std::sync::Arc::default(), work).await
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
    fn only_a_file_that_nobody_else_can_write_says_which_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("banger.toml");
        assert!(configured(&path).unwrap().is_empty());
        fs::write(&path, "net = 1\n[[file_sync]]\nhost = \"~/.netrc\"\nguest = \"/root/.netrc\"\n").unwrap();
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set(0o644);
        assert_eq!(configured(&path).unwrap()[0].host, "~/.netrc");
        for mode in [0o664, 0o646] {
            set(mode);
            configured(&path).unwrap_err();
        }
        set(0o644);
        fs::write(&path, "[[file_sync]]\nhost = \"~/.netrc\"\nguest = \"/etc/x\"\n").unwrap();
        configured(&path).unwrap_err();
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
