//! Every path of the daemon, derived in one place from a handful of folders and from ids.
//!
//! Nothing here touches the file system. Paths of a VM are never stored: they follow from its id.

use crate::error::StartError;
use banger_policy::{Digest, VmId};
use std::path::{Path, PathBuf};

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
    /// The helper's socket.
    pub(crate) helper_socket: PathBuf,
    /// `banger-guest`, which becomes `/init` of every guest.
    pub(crate) guest_binary: PathBuf,
    /// The configuration file; absent is fine unless it was named.
    pub(crate) config: PathBuf,
    /// The helper's COW files, only to show where they are.
    pub(crate) cow: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/banger".into(),
            runtime: "/run/bangerd".into(),
            socket: "/run/banger/bangerd.sock".into(),
            helper_socket: "/run/banger/priv.sock".into(),
            guest_binary: "/usr/lib/banger/banger-guest".into(),
            config: "/etc/banger/banger.toml".into(),
            cow: "/var/lib/banger-priv/cow".into(),
        }
    }
}

impl Paths {
    /// # Errors
    /// A runtime folder so deep that a VM's sockets would not fit a socket address.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let longest = self.runtime.join("vm/0123456789abcdef/vsock.sock_75535");
        if longest.as_os_str().len() >= SUN_PATH_MAX {
            return Err(StartError::RuntimeTooDeep { path: self.runtime.clone(), longest: longest.as_os_str().len() });
        }
        Ok(())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state.join("banger.db")
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

    /// The key with which the daemon logs in to guests, unless the configuration names another.
    pub(crate) fn ssh_key(&self) -> PathBuf {
        self.state.join("ssh_key")
    }

    pub(crate) fn vm(&self, vm: &VmId) -> VmPaths {
        VmPaths {
            dir: self.vms().join(vm.to_string()),
            runtime: self.runtime.join("vm").join(vm.short()),
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

    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub(crate) fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
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

/// A path as it is shown.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_fit_their_address() {
        assert!(Paths::default().check().is_ok());
        let deep = Paths { runtime: PathBuf::from("/").join("d".repeat(80)), ..Paths::default() };
        assert!(matches!(deep.check(), Err(StartError::RuntimeTooDeep { .. })));
    }
}
