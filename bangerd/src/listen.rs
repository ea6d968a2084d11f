//! Folders, the socket, and what systemd is told: the edges of the process.

use crate::paths::Paths;
use crate::start_error::StartError;
use rustix::io::{FdFlags, fcntl_setfd};
use sd_notify::NotifyState;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use tokio::net::UnixListener;

/// Makes what is missing. The package makes the two roots; a build folder does not.
///
/// # Errors
/// [`StartError::Folder`] with the path.
pub(crate) fn make_folders(paths: &Paths) -> Result<(), StartError> {
    let private = [paths.kernels(), paths.vms(), paths.staging(), paths.runtime.join("vm")];
    // The helper, which has no DAC_OVERRIDE, reads images as group root.
    let shared = [paths.state.clone(), paths.images()];
    for (folder, mode) in
        shared.iter().map(|folder| (folder, 0o710)).chain(private.iter().map(|folder| (folder, 0o700)))
    {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
        made.map_err(|source| StartError::Folder { path: folder.clone(), source })?;
    }
    // What an import left that died with the daemon; nothing of it was ever published.
    for entry in std::fs::read_dir(paths.staging()).into_iter().flatten().flatten() {
        let path = entry.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!("{}: cannot remove a staging file: {error}", path.display());
        }
    }
    Ok(())
}

/// The socket that systemd passed, else one of our own at `path`.
///
/// # Errors
/// [`StartError::Listen`], [`StartError::Inherited`].
pub(crate) fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let refused = |source| StartError::Listen { path: path.to_owned(), source };
    let mut inherited = listenfd::ListenFd::from_env();
    let listener = match inherited.len() {
        0 => bind_own(path).map_err(refused)?,
        1 => inherited.take_unix_listener(0).map_err(refused)?.ok_or(StartError::Inherited(0))?,
        more => return Err(StartError::Inherited(more)),
    };
    // systemd passes it open over execve, and a VMM must not get it.
    fcntl_setfd(&listener, FdFlags::CLOEXEC).map_err(|errno| refused(errno.into()))?;
    listener.set_nonblocking(true).map_err(refused)?;
    UnixListener::from_std(listener).map_err(refused)
}

fn bind_own(path: &Path) -> std::io::Result<StdListener> {
    // A socket left by a daemon that died; a live one answers, and is not taken over.
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another bangerd answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = StdListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Tells systemd that calls are taken, and from now on that the runtime still turns.
pub(crate) fn announce() {
    tell(&[NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(limit / 3);
            loop {
                tick.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
