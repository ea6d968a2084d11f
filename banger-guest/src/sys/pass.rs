//! Descriptors over unix sockets (unix(7), `SCM_RIGHTS`): the agent passes connections on to
//! sessions.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The byte that carries a descriptor.
const BYTE: u8 = 0;

/// Sends one byte, with the descriptor if there is one.
pub(crate) async fn send(socket: &UnixStream, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let descriptors: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let beside = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let sent = socket.async_io(Interest::WRITABLE, || {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[BYTE])], beside, flags, None).map_err(io::Error::from)
    });
    sent.await.map(drop)
}

/// Receives that byte: the outer `None` is the end of the connection.
pub(crate) async fn receive(socket: &UnixStream) -> io::Result<Option<Option<OwnedFd>>> {
    let received = socket.async_io(Interest::READABLE, || {
        let mut byte = [BYTE];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let mut space = cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
        if message.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody
                // else knows their numbers.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        Ok(Some(descriptors.into_iter().next()))
    });
    received.await
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::fd::AsFd;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_byte_and_nothing_else_is_taken() {
        let (agent, session) = UnixStream::pair().unwrap();
        let (ours, mut far) = UnixStream::pair().unwrap();
        send(&agent, Some(ours.as_fd())).await.unwrap();
        send(&agent, None).await.unwrap();
        drop(ours);
        let passed = receive(&session).await.unwrap().unwrap().unwrap();
        assert!(receive(&session).await.unwrap().unwrap().is_none());
        drop(agent);
        assert!(receive(&session).await.unwrap().is_none());
        let passed = std::os::unix::net::UnixStream::from(passed);
        let mut passed = UnixStream::from_std(passed).unwrap();
        passed.write_all(b"hello").await.unwrap();
        drop(passed);
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    }
}
