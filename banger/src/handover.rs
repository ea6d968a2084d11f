//! Takes the descriptor that the daemon sends: a connection to a guest (unix(7), `SCM_RIGHTS`).

use banger_proto::stream::{MAX_PAYLOAD, OPENED_BYTES};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// What the daemon sent.
pub(crate) enum Received {
    /// The stream itself is the connection now: a relay has taken the descriptor.
    Here,
    Connection(UnixStream),
    /// Why there is none; what to do stands in further lines.
    Refusal(String),
}

/// Waits for the daemon's frame, which is its last one. `relayed`: no descriptor can come.
///
/// # Errors
/// What the socket says; `InvalidData` for anything but a descriptor or a refusal.
pub(crate) async fn receive(daemon: &UnixStream, relayed: bool) -> io::Result<Received> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "bangerd sent something else than a connection");
    let mut header = [0; OPENED_BYTES.len()];
    let mut descriptor = None;
    let mut filled = 0;
    while filled < header.len() {
        let part = header.get_mut(filled..).unwrap_or_default();
        let (count, fd) = daemon.async_io(Interest::READABLE, || message(daemon, part, true)).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled = filled.saturating_add(count);
        descriptor = descriptor.or(fd);
    }
    if let Some(fd) = descriptor {
        if header != OPENED_BYTES {
            return Err(odd());
        }
        let guest = std::os::unix::net::UnixStream::from(fd);
        guest.set_nonblocking(true)?;
        return UnixStream::from_std(guest).map(Received::Connection);
    }
    if relayed && header == OPENED_BYTES {
        return Ok(Received::Here);
    }
    // A refusal: the rest of a `Failed` frame.
    let [kind, l0, l1, l2, l3] = header;
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > MAX_PAYLOAD {
        return Err(odd());
    }
    let mut frame = [vec![kind, l0, l1, l2, l3], vec![0; length]].concat();
    let mut filled = header.len();
    while filled < frame.len() {
        let part = frame.get_mut(filled..).unwrap_or_default();
        match daemon.async_io(Interest::READABLE, || message(daemon, part, true)).await? {
            (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (count, _) => filled = filled.saturating_add(count),
        }
    }
    match banger_proto::stream::read(&mut frame.as_slice()).await? {
        Some(banger_proto::stream::Frame::Failed(why)) => Ok(Received::Refusal(why)),
        _ => Err(odd()),
    }
}

/// One recvmsg(2): bytes, and a descriptor when one came with them. Only one is ever kept.
///
/// # Errors
/// What the socket says; `WouldBlock` when there is nothing and `now`.
pub(crate) fn message(socket: impl AsFd, bytes: &mut [u8], now: bool) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = if now { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT } else { RecvFlags::CMSG_CLOEXEC };
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut beside, flags)?;
    let mut descriptors = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptors.next()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::stream::{Frame, write};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn send(from: &UnixStream, bytes: &[u8], descriptor: &UnixStream) {
        let rights = [descriptor.as_raw_fd()];
        let beside = [ControlMessage::ScmRights(&rights)];
        let bytes = [io::IoSlice::new(bytes)];
        sendmsg::<()>(from.as_raw_fd(), &bytes, &beside, MsgFlags::empty(), None).unwrap();
    }

    #[tokio::test]
    async fn a_connection_comes_with_its_frame_and_works() {
        let (ours, daemon) = UnixStream::pair().unwrap();
        let (guest, mut far) = UnixStream::pair().unwrap();
        send(&daemon, &OPENED_BYTES, &guest);
        drop(guest);
        let Received::Connection(mut guest) = receive(&ours, false).await.unwrap() else { panic!("refused") };
        guest.write_all(b"hello").await.unwrap();
        drop(guest);
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello", "nobody else holds the connection");
    }

    #[tokio::test]
    async fn a_refusal_is_read_and_anything_else_is_an_error() {
        let (ours, mut daemon) = UnixStream::pair().unwrap();
        write(&mut daemon, &Frame::Failed("web is not running\nstart it".into())).await.unwrap();
        let Received::Refusal(why) = receive(&ours, false).await.unwrap() else { panic!("opened") };
        assert_eq!(why, "web is not running\nstart it");
        write(&mut daemon, &Frame::Opened).await.unwrap();
        assert!(receive(&ours, false).await.is_err(), "no descriptor came");
        write(&mut daemon, &Frame::Opened).await.unwrap();
        assert!(matches!(receive(&ours, true).await.unwrap(), Received::Here), "the relay has it");
        let (guest, _far) = UnixStream::pair().unwrap();
        send(&daemon, &[2, 0, 0, 0, 0], &guest);
        assert!(receive(&ours, false).await.is_err(), "not with this frame");
        daemon.write_all(&[5, 255, 255, 255, 255]).await.unwrap();
        assert!(receive(&ours, false).await.is_err());
        drop(daemon);
        assert!(receive(&ours, false).await.is_err());
    }
}
