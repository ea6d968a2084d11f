//! What answers on the commands' port in the place of an agent, before a connection is open. It is
//! the daemon that hears it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

type Attempt = fn(UnixStream) -> io::Result<()>;

/// One for each of the first connections of the daemon. Each ends when that hangs up.
pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("port-closes-at-once", |_| Ok(())),
    ("port-never-answers-connect", wait),
    ("port-answers-connect-without-end", |stream| flood(&stream, b"OK ")),
    ("port-refuses-connect-with-control-characters", |mut stream| {
        stream.write_all(b"\x1b[2J\x07NO\n")?;
        wait(stream)
    }),
    ("agent-silent-after-connect", |stream| ok(&stream).and_then(|()| wait(stream))),
    ("agent-closes-after-connect", |stream| ok(&stream)),
    ("agent-answers-half", |stream| {
        ok(&stream)?;
        (&stream).write_all(&[1])?;
        wait(stream)
    }),
    ("agent-is-busy", |stream| {
        ok(&stream)?;
        (&stream).write_all(&[1, 2])?;
        wait(stream)
    }),
    ("agent-is-of-another-version", |stream| {
        ok(&stream)?;
        (&stream).write_all(&[255, 1])?;
        wait(stream)
    }),
    ("agent-answers-what-is-no-answer", |stream| {
        ok(&stream)?;
        flood(&stream, &[0xa5; 4096])
    }),
    ("agent-answers-for-ever", |stream| {
        ok(&stream)?;
        flood(&stream, &[1, 2])
    }),
    ("agent-never-reads-the-opening", |stream| {
        ok(&stream)?;
        sleep(Duration::from_secs(60));
        Ok(())
    }),
];

fn ok(mut stream: &UnixStream) -> io::Result<()> {
    // Of any port.
    let mut byte = [0];
    while byte != [b'\n'] {
        stream.read_exact(&mut byte)?;
    }
    stream.write_all(b"OK 1073741824\n")
}

fn flood(mut stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    loop {
        stream.write_all(bytes)?;
    }
}

/// Takes all, and says nothing.
fn wait(mut stream: UnixStream) -> io::Result<()> {
    io::copy(&mut stream, &mut io::sink()).map(drop)
}
