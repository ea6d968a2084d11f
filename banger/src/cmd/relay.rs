//! `banger relay`: the other machine's end of `--host`. ssh starts it, with this machine's user; it
//! connects to the daemon's socket and copies bytes. It may do no more than that user may.
//!
//! A connection to a guest, which the daemon sends as a descriptor, ends here: from then on the
//! bytes are the guest's.

use crate::client;
use crate::error::said;
use crate::handover;
use crate::machine::Greeting;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;

pub(super) async fn run() -> anyhow::Result<u8> {
    let daemon = match client::reach_socket().await {
        Ok(daemon) => daemon,
        Err(error) => {
            let text = said(&error);
            let (message, hint) = text.split_once('\n').unwrap_or((&text, ""));
            greet(&Greeting::Refused { message: message.to_owned(), hint: hint.to_owned() })?;
            return Ok(1);
        }
    };
    greet(&Greeting::Connected)?;
    let daemon = daemon.into_std()?;
    daemon.set_nonblocking(false)?;
    // Threads that only wait: they end with the process, which ends with the other side.
    tokio::task::spawn_blocking(move || copy(&daemon)).await??;
    Ok(0)
}

#[expect(clippy::disallowed_methods, reason = "bytes of a connection, not words for a person")]
fn greet(greeting: &Greeting) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(greeting.line().as_bytes())?;
    out.flush()
}

fn copy(daemon: &UnixStream) -> io::Result<()> {
    // Where input goes: the daemon, later the guest. It changes before the frame that says so is
    // passed on, so no byte for the guest is sent to the daemon.
    let target = Arc::new(Mutex::new(daemon.try_clone()?));
    let inward = Arc::clone(&target);
    let (broken, unreadable) = std::sync::mpsc::channel();
    std::thread::spawn(move || inward_until_end(&inward, &broken));
    let ended = || unreadable.try_recv().map_or(Ok(()), |error| Err(io::Error::from(error)));
    let mut bytes = vec![0; CHUNK];
    let guest = loop {
        match handover::message(daemon, &mut bytes, false)? {
            (0, _) => return ended(),
            (count, Some(descriptor)) => {
                let guest = UnixStream::from(descriptor);
                guest.set_nonblocking(false)?;
                *target.lock().unwrap_or_else(PoisonError::into_inner) = guest.try_clone()?;
                out(bytes.get(..count).unwrap_or_default())?;
                break guest;
            }
            (count, None) => out(bytes.get(..count).unwrap_or_default())?,
        }
    };
    // The stream to the daemon stays open meanwhile: the VM is in use.
    loop {
        match (&guest).read(&mut bytes) {
            Ok(0) => return ended(),
            Ok(count) => out(bytes.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A guest that ended without a farewell is an end of its bytes as well.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return ended(),
            Err(error) => return Err(error),
        }
    }
}

fn inward_until_end(target: &Mutex<UnixStream>, broken: &Sender<Errno>) {
    let mut bytes = vec![0; CHUNK];
    let current = || target.lock().unwrap_or_else(PoisonError::into_inner).try_clone();
    loop {
        // Past the buffer of io::stdin(), which would be one copy more.
        match rustix::io::read(io::stdin(), &mut *bytes) {
            Ok(0) => break,
            Ok(count) => {
                let part = bytes.get(..count).unwrap_or_default();
                if current().and_then(|target| (&target).write_all(part)).is_err() {
                    // The other direction learns why.
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(io::stdin().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            }
            Err(error) => {
                // No more than this was read, and it was not all: the connection ends as a whole.
                let _ = broken.send(error);
                if let Ok(target) = current() {
                    let _ = target.shutdown(Shutdown::Both);
                }
                return;
            }
        }
    }
    // The client has no more to say, or is gone.
    if let Ok(target) = current() {
        let _ = target.shutdown(Shutdown::Write);
    }
}

#[expect(clippy::disallowed_methods, reason = "bytes of a connection, not words for a person")]
fn out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
