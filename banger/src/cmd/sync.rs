//! What new VMs get of their users' files: the user's identity for git, and file sync, which the
//! administrator's configuration asks for.
//!
//! Read here, with the user's rights, and only when a VM of the user's own starts for the first
//! time: later the guest's copies are the guest's. Which files these are, the administrator of this
//! machine says in a file of root's, and no daemon: one that was taken over, or another machine's,
//! would have any file of the user's sent to it.

use crate::client::Client;
use crate::machine;
use crate::output::remark;
use crate::remote::{self, Guest};
use crate::{work, workspace};
use anyhow::Context as _;
use banger_files::{Error, Kind, Packer};
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

/// Below root's home.
const GITCONFIG: &str = ".gitconfig";
/// Modes when the configuration names none.
const FILE: u32 = 0o600;
const FOLDER: u32 = 0o755;

/// What of the configuration is read here. The daemon checks the whole of it.
#[derive(Debug, Default, Deserialize)]
struct Configured {
    #[serde(default)]
    file_sync: Vec<FileSync>,
}

/// Copies the identity and what is configured into a new VM of the caller's. What is missing here
/// is a warning, and so is all that has to do with the identity.
///
/// # Errors
/// When the guest does not answer, or has no room, for what is configured.
pub(super) async fn new_vm(client: &Client, vm: &VmRecord) -> anyhow::Result<()> {
    let entries = entries_for(vm).unwrap_or_else(|(path, error)| {
        remark(&format!("warning: file_sync of {} is left out: {error:#}", path.display()));
        Vec::new()
    });
    let guest = Guest::Vm { client, vm: vm.id.to_string(), user: Some("root"), reads: false };
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let is_configured = !entries.is_empty();
    let copying = async {
        let identity = identity(client, vm, &guest, home.clone()).await.unwrap_or_else(|error| {
            remark(&format!("warning: git in {} does not know you: {error:#}", vm.name));
            None
        });
        copy(&guest, identity, entries, home).await
    };
    match copying.await {
        Err(error) if !is_configured => {
            remark(&format!("warning: git in {} does not know you: {error:#}", vm.name));
            Ok(())
        }
        copied => copied.context("cannot copy the configured files (file_sync)"),
    }
}

/// Git's configuration for the guest's root, who the caller is there; `None` when the caller has no
/// identity, when the image brings a configuration, or when the VM is another user's.
async fn identity(
    client: &Client,
    vm: &VmRecord,
    guest: &Guest<'_>,
    home: Option<PathBuf>,
) -> anyhow::Result<Option<String>> {
    let Some(home) = home else { return Ok(None) };
    let Some(known) = work::begin(move || workspace::identity::configuration(&home)).await? else { return Ok(None) };
    let wanted = super::workspace::is_own(client, vm).await?
        && workspace::look(guest, &format!("/root/{GITCONFIG}")).await?.kind == Kind::None;
    Ok(wanted.then_some(known))
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

async fn copy(
    guest: &Guest<'_>,
    identity: Option<String>,
    entries: Vec<FileSync>,
    home: Option<PathBuf>,
) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for entry in entries {
        match host_path(&entry.host, home.as_deref()) {
            Some(path) if fs::metadata(&path).is_ok() => found.push((path, entry)),
            _ => remark(&format!("warning: file_sync: {} is not here and is left out", entry.host)),
        }
    }
    if found.is_empty() && identity.is_none() {
        return Ok(());
    }
    // Below the home of the guest's root, which is where the work disk is.
    let work = move |to: &mut dyn Write| {
        let mut packer = Packer::of_what_changes(to);
        if let Some(text) = identity {
            packer.add_bytes(GITCONFIG.as_bytes(), 0o644, text.as_bytes())?;
        }
        // An entry of that name replaces it.
        for (path, entry) in found {
            let name = entry.guest.strip_prefix("/root").or_else(|| entry.guest.strip_prefix('~'));
            let name = name.unwrap_or(&entry.guest).trim_matches('/').to_owned();
            add(&mut packer, name.as_bytes(), &path, entry.mode())?;
        }
        Ok(packer.finish()?)
    };
    let left = remote::send(guest, &["put", "/root", "."], None, std::sync::Arc::default(), work).await?;
    left.lines().iter().for_each(|line| remark(&format!("warning: file_sync: {line}")));
    Ok(())
}

fn host_path(host: &str, home: Option<&Path>) -> Option<PathBuf> {
    match host.strip_prefix("~/") {
        Some(below) => Some(home?.join(below)),
        None => Some(PathBuf::from(host)).filter(|path| path.is_absolute()),
    }
}

/// A file, or a folder with all that is in it. A link at the top means what it leads to. What
/// vanishes meanwhile or cannot be read is left out: it is in the user's home, and they have not
/// chosen that it goes.
fn add(packer: &mut Packer<&mut dyn Write>, name: &[u8], path: &Path, mode: Option<u32>) -> Result<(), Error> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut todo = vec![(name.to_vec(), path)];
    while let Some((name, path)) = todo.pop() {
        match add_one(packer, &name, &path, mode) {
            Ok(inside) => todo.extend(inside),
            Err(error @ (Error::Path { .. } | Error::Changed(_))) => packer.leave(&name, &error),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives what is in it, with its names.
fn add_one(
    packer: &mut Packer<&mut dyn Write>,
    name: &[u8],
    path: &Path,
    mode: Option<u32>,
) -> Result<Vec<(Vec<u8>, PathBuf)>, Error> {
    let refused = |source| Error::Path { path: path.to_owned(), source };
    let is_folder = path.symlink_metadata().map_err(refused)?.is_dir();
    // The folder's own mode must let its user in.
    packer.add(name, path, Some(if is_folder { FOLDER } else { mode.unwrap_or(FILE) }))?;
    let mut inside = Vec::new();
    if is_folder {
        for entry in fs::read_dir(path).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            inside.push(([name, b"/", entry.file_name().as_bytes()].concat(), entry.path()));
        }
    }
    Ok(inside)
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

    #[test]
    fn what_cannot_be_read_is_left_out_and_named() {
        /// Removes two files when one of them, or another one, has come.
        struct Removes(Vec<u8>, PathBuf);
        impl Write for Removes {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                if self.0.len() >= 512 {
                    drop((fs::remove_file(self.1.join("a")), fs::remove_file(self.1.join("b"))));
                }
                self.0.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let host = tempfile::tempdir().unwrap();
        let folder = host.path().join("conf");
        fs::create_dir_all(folder.join("shut")).unwrap();
        for name in ["kept", "a", "b", "shut/inside"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        fs::set_permissions(folder.join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
        let mut to = Removes(Vec::new(), folder.clone());
        let mut packer = Packer::of_what_changes(&mut to as &mut dyn Write);
        add(&mut packer, b"conf", &folder, None).unwrap();
        add(&mut packer, b"gone", &host.path().join("gone"), None).unwrap();
        let lines = packer.finish().unwrap().lines().join("\n");
        assert!(lines.contains("gone: No such file") && lines.contains("conf/"), "{lines}");
        if !nix::unistd::geteuid().is_root() {
            assert!(lines.contains("conf/shut: Permission denied"), "{lines}");
        }
        let guest = tempfile::tempdir().unwrap();
        let opened = banger_files::open_folder(guest.path()).unwrap();
        banger_files::unpack(to.0.as_slice(), &opened, banger_files::Limits::NONE).unwrap();
        assert!(guest.path().join("conf/kept").exists());
        fs::set_permissions(folder.join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
    }
}
