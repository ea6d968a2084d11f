//! The least that a guest does over vsock, for `make bench`: what commands and copies of banger are
//! compared with.
//!
//! Runs in a guest of the suite `bench`, which connects from the host. A crate of its own, so that
//! a static build of it takes seconds. It serves three ports until it is killed.

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

/// A connection is a fork and an exec of the program that the argument names; answered by its exit
/// status, a byte.
const EXEC: u32 = 7001;
/// A connection says how many bytes follow (8 bytes, little-endian); they are read, and answered by
/// a byte.
const SINK: u32 = 7002;
/// A connection says how many bytes it wants (the same), and gets them.
const SOURCE: u32 = 7003;
/// Bytes at once.
const CHUNK: usize = 64 * 1024;

fn main() -> ExitCode {
    let Some(program) = std::env::args_os().nth(1) else {
        return ExitCode::from(2);
    };
    let ports = [EXEC, SINK, SOURCE].map(|port| {
        let program = program.clone();
        thread::spawn(move || {
            serve(port, |mut connection| match port {
                EXEC => {
                    let status = Command::new(&program).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
                    connection.write_all(&[u8::from(!status.success())])
                }
                SINK => take(&mut connection),
                _ => give(&mut connection),
            })
        })
    });
    for port in ports {
        // It ends with an error only.
        drop(port.join());
    }
    ExitCode::FAILURE
}

fn serve(port: u32, answer: impl Fn(File) -> io::Result<()>) -> io::Result<()> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    /// `VMADDR_CID_ANY` (vsock(7)).
    const ANY: u32 = u32::MAX;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, port))?;
    listen(&listener, Backlog::new(64)?)?;
    loop {
        let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has made this descriptor, and nobody else has it.
        let connection = unsafe { OwnedFd::from_raw_fd(fd) };
        // A client that goes early is its own loss.
        drop(answer(connection.into()));
    }
}

fn length(connection: &mut File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    connection.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn take(connection: &mut File) -> io::Result<()> {
    let mut left = length(connection)?;
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        match connection.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left = left.saturating_sub(read as u64),
        }
    }
    connection.write_all(&[0])
}

fn give(connection: &mut File) -> io::Result<()> {
    let mut left = length(connection)?;
    let chunk = vec![b'x'; CHUNK];
    while left > 0 {
        let piece = chunk.get(..usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)).unwrap_or_default();
        connection.write_all(piece)?;
        left = left.saturating_sub(piece.len() as u64);
    }
    Ok(())
}
