//! What answers on the SSH port, in the place of a server: before the protocol, and in its first packets.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

type Attempt = fn(UnixStream) -> io::Result<()>;

/// One for each of the first connections of the daemon. Each ends when that hangs up.
pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("ssh-closes-at-once", |_| Ok(())),
    ("ssh-never-answers-connect", wait),
    ("ssh-answers-connect-without-end", |stream| flood(&stream, b"OK ")),
    ("ssh-silent-after-connect", |stream| ok(&stream).and_then(|()| wait(stream))),
    ("ssh-banner-without-end", |stream| ok(&stream).and_then(|()| flood(&stream, b"SSH-2.0-xxxxxxxx"))),
    ("ssh-banners-for-ever", |stream| ok(&stream).and_then(|()| flood(&stream, b"this is a banner\r\n"))),
    ("ssh-banner-byte-by-byte", |stream| {
        ok(&stream)?;
        loop {
            (&stream).write_all(b"S")?;
            sleep(Duration::from_secs(1));
        }
    }),
    ("ssh-banner-then-silence", |stream| greet(&stream).and_then(|()| wait(stream))),
    ("ssh-garbage-after-banner", |stream| greet(&stream).and_then(|()| flood(&stream, &[0xa5; 4096]))),
    ("ssh-packet-of-four-gigabytes", |stream| {
        greet(&stream)?;
        (&stream).write_all(&[0xff, 0xff, 0xff, 0xff])?;
        flood(&stream, &[0; 4096])
    }),
    ("ssh-packet-of-a-quarter-megabyte", |stream| {
        greet(&stream)?;
        (&stream).write_all(&[0, 4, 0, 0, 4])?;
        flood(&stream, &[20; 4096])
    }),
    ("ssh-ignored-packets-before-keys", |stream| {
        greet(&stream)?;
        // Length, padding, SSH_MSG_IGNORE, an empty string, the padding.
        flood(&stream, &[0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }),
];

fn ok(mut stream: &UnixStream) -> io::Result<()> {
    let mut line = [0; 11];
    stream.read_exact(&mut line)?;
    stream.write_all(b"OK 1073741824\n")
}

fn greet(mut stream: &UnixStream) -> io::Result<()> {
    ok(stream)?;
    stream.write_all(b"SSH-2.0-banger_0.1.0\r\n")
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
