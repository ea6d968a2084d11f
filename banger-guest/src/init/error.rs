//! Why a boot cannot go on, one variant per failing step.

use nix::errno::Errno;
use std::io;
use std::path::PathBuf;

/// An error of [`super::main`]'s steps. Each ends as one line on the console and one for the
/// daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot mount {kind} on {target}")]
    Mount { kind: &'static str, target: PathBuf, source: Errno },
    #[error("cannot mount {device} as ext4 on {target}")]
    MountDevice { device: PathBuf, target: PathBuf, source: Errno },
    #[error("cannot make the folder {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot read the configuration {path}")]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("the configuration {path} is not what this guest program understands")]
    ParseConfig { path: PathBuf, source: serde_json::Error },
    #[error("cannot write the configuration for the agent")]
    EncodeConfig(#[source] serde_json::Error),
    #[error("cannot list the kernel modules in {path}")]
    ListModules { path: PathBuf, source: io::Error },
    #[error("cannot open the kernel module {path}")]
    OpenModule { path: PathBuf, source: io::Error },
    #[error("the kernel refuses the module {path}")]
    LoadModule { path: PathBuf, source: Errno },
    #[error("the device {path} did not appear within {seconds} s")]
    NoDevice { path: PathBuf, seconds: u64 },
    #[error("cannot make {path} the root: {step}")]
    SwitchRoot { path: &'static str, step: &'static str, source: Errno },
    #[error("network: {step}")]
    Network { step: &'static str, source: Errno },
    #[error("cannot start the agent")]
    Agent(#[source] io::Error),
    #[error("cannot execute the image's init {path}")]
    Init { path: PathBuf, source: io::Error },
    #[error("cannot block signals")]
    Signals(#[source] Errno),
}
