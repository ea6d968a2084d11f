//! Every path of the daemon, derived in one place from a handful of folders and from ids.
//!
//! Paths of a VM are never stored: they follow from its id. But for [`SocketKey::load_or_create`],
//! nothing here touches the file system.
//!
//! The folder of a VM's sockets follows from its id and from a key that only the daemon has.
//! Landlock of our floor cannot keep a VMM from connecting to a socket whose path it knows, and all
//! VMMs are of one uid; ids are no secret, for a tap carries one. So the folder's name is: no VMM
//! can list, watch or work it out, and no command line and no table of sockets tells it, because
//! sockets are bound by names without it.

use banger_policy::{Digest, VmId};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// The folder of the database's copies, beside the database.
pub(crate) const BACKUPS: &str = "backups";

/// What `sun_path` holds with its final zero (unix(7)).
const SUN_PATH_MAX: usize = 108;

/// Where everything lies. Defaults are the packaged ones; flags and environment replace them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Database, VM folders, images, kernels.
    pub(crate) state: PathBuf,
    /// Sockets of the VMs.
    pub(crate) runtime: PathBuf,
    /// The daemon's own socket, when systemd does not pass it.
    pub(crate) socket: PathBuf,
    /// The daemon's socket for metrics, when systemd does not pass it; none is made by default.
    pub(crate) metrics_socket: Option<PathBuf>,
    /// The helper's socket.
    pub(crate) helper_socket: PathBuf,
    /// `banger-guest`, which becomes `/init` of every guest.
    pub(crate) guest_binary: PathBuf,
    /// The configuration file; absent is fine unless it was named.
    pub(crate) config: PathBuf,
    /// The helper's COW files, only to show where they are.
    pub(crate) cow: PathBuf,
    /// Names the folders of the VMs' sockets.
    pub(crate) socket_key: SocketKey,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/banger".into(),
            runtime: "/run/bangerd".into(),
            socket: "/run/banger/bangerd.sock".into(),
            metrics_socket: None,
            helper_socket: "/run/banger/priv.sock".into(),
            guest_binary: "/usr/libexec/banger/banger-guest".into(),
            config: "/etc/banger/banger.toml".into(),
            cow: "/var/lib/banger-priv/cow".into(),
            socket_key: SocketKey::default(),
        }
    }
}

/// Sockets of VMs would not fit their address.
#[derive(Debug, thiserror::Error)]
#[error("the runtime folder {} is too deep: a VM's socket path would have {longest} of at most 107 bytes", .path.display())]
pub(crate) struct RuntimeTooDeep {
    path: PathBuf,
    longest: usize,
}

impl Paths {
    /// # Errors
    /// A runtime folder so deep that a VM's sockets would not fit a socket address.
    pub(crate) fn check(&self) -> Result<(), RuntimeTooDeep> {
        let longest = self.runtime.join("vm/0123456789abcdef/vsock.sock_75535");
        if longest.as_os_str().len() >= SUN_PATH_MAX {
            return Err(RuntimeTooDeep { path: self.runtime.clone(), longest: longest.as_os_str().len() });
        }
        Ok(())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state.join("banger.db")
    }

    /// Copies of the database.
    pub(crate) fn backups(&self) -> PathBuf {
        self.state.join(BACKUPS)
    }

    /// Where imports are assembled; on the file system of what they become.
    pub(crate) fn staging(&self) -> PathBuf {
        self.state.join("tmp")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.state.join("kernels")
    }

    pub(crate) fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    pub(crate) fn kernel_dir(&self, kernel: &Digest) -> PathBuf {
        self.kernels().join(kernel.to_string())
    }

    pub(crate) fn image_dir(&self, image: &Digest) -> PathBuf {
        self.images().join(image.to_string())
    }

    /// Where the key lies that no VMM may read.
    pub(crate) fn socket_key_file(&self) -> PathBuf {
        self.state.join("socket_key")
    }

    pub(crate) fn vm(&self, vm: &VmId) -> VmPaths {
        VmPaths {
            dir: self.vms().join(vm.to_string()),
            runtime: self.runtime.join("vm").join(self.socket_key.folder(vm)),
            cow: self.cow.join(vm.to_string()),
        }
    }
}

/// The paths of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmPaths {
    /// What outlives a boot.
    pub(crate) dir: PathBuf,
    /// What does not: sockets.
    pub(crate) runtime: PathBuf,
    /// The COW file; the helper's.
    pub(crate) cow: PathBuf,
}

impl VmPaths {
    pub(crate) fn handles(&self) -> PathBuf {
        self.dir.join("handles.json")
    }

    pub(crate) fn work_disk(&self) -> PathBuf {
        self.dir.join("work.ext4")
    }

    /// Where the work disk is made.
    pub(crate) fn work_disk_staging(&self) -> PathBuf {
        self.dir.join("work.new")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub(crate) fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// What the agent of the boot that runs proves itself with.
    pub(crate) fn boot_token(&self) -> PathBuf {
        self.dir.join("boot_token")
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.dir.join("metrics")
    }

    pub(crate) fn api_socket(&self) -> PathBuf {
        self.runtime.join("api.sock")
    }

    pub(crate) fn vsock(&self) -> PathBuf {
        self.runtime.join("vsock.sock")
    }
}

/// A secret of the daemon; see the head of this file.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SocketKey([u8; 32]);

impl fmt::Debug for SocketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SocketKey")
    }
}

impl SocketKey {
    /// The key in a file, made when there is none. A damaged one is replaced by an administrator,
    /// who then starts the VMs anew: the sockets of those that run are under its names.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` when the file has another length.
    pub(crate) fn load_or_create(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => bytes.try_into().map(Self).map_err(|_| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; 32];
                // Up to 256 bytes come whole or not at all (getrandom(2)).
                rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
                banger_link::keys::write_new(path, &key)?;
                Ok(Self(key))
            }
            Err(error) => Err(error),
        }
    }

    /// 64 bits of SHA-256: as long as what ids are shortened to, so that socket paths keep their
    /// length.
    fn folder(&self, vm: &VmId) -> String {
        let hash = Sha256::new().chain_update(self.0).chain_update(vm.to_string()).finalize();
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_folder_of_sockets_takes_the_key_to_know() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("socket_key");
        let key = SocketKey::load_or_create(&file).unwrap();
        assert_eq!(SocketKey::load_or_create(&file).unwrap(), key, "sockets are found again by the next daemon");
        let paths = |socket_key| Paths { socket_key, ..Paths::default() };
        let (one, two) = (VmId::from_bytes([1; 32]).unwrap(), VmId::from_bytes([2; 32]).unwrap());
        let ours = paths(key).vm(&one).runtime;
        assert_eq!(ours, paths(key).vm(&one).runtime);
        assert_ne!(ours, paths(key).vm(&two).runtime);
        assert_ne!(ours, paths(SocketKey::default()).vm(&one).runtime);
        assert!(!ours.to_string_lossy().contains(&one.short()) && !format!("{key:?}").contains('['));
        assert_eq!(ours.file_name().unwrap().len(), one.short().len());
        std::fs::write(&file, "short").unwrap();
        assert!(SocketKey::load_or_create(&file).is_err());
    }

    #[test]
    fn socket_paths_fit_their_address() {
        assert!(Paths::default().check().is_ok());
        let deep = Paths { runtime: PathBuf::from("/").join("d".repeat(80)), ..Paths::default() };
        assert!(deep.check().is_err());
    }
}
