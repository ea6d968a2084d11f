//! The two outputs of this process, which others may share, and read slowly.

use crate::wait::ready;
use nix::poll::PollFlags;
use rustix::io::ReadWriteFlags;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};
use tokio::sync::Mutex;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlet {
    Out,
    Err,
}

/// Held while a piece is passed on: pieces are written one after the other, in the order in which
/// they came.
static TURNS: LazyLock<[Arc<Mutex<()>>; 2]> = LazyLock::new(Default::default);

impl Outlet {
    fn turn(self) -> &'static Arc<Mutex<()>> {
        let [out, err] = &*TURNS;
        if self == Self::Out { out } else { err }
    }

    /// Writes, and does nothing else meanwhile.
    pub(super) fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Out => write_all(&mut io::stdout().lock(), bytes),
            Self::Err => write_all(&mut io::stderr().lock(), bytes),
        }
    }

    /// Writes what there is room for, and the rest on a thread: while a reader pauses, signals
    /// still count. A piece whose writing is no longer awaited is written all the same, as soon as
    /// somebody reads.
    pub(super) async fn pass(self, bytes: Vec<u8>) -> io::Result<()> {
        let turn = Arc::clone(self.turn()).lock_owned().await;
        let done = match self {
            Self::Out => write_at_once(&io::stdout(), &bytes),
            Self::Err => write_at_once(&io::stderr(), &bytes),
        };
        if done == bytes.len() {
            return Ok(());
        }
        let written = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            self.write(bytes.get(done..).unwrap_or_default())
        });
        written.await.map_err(io::Error::other)?
    }

    /// Whether a piece that is no longer awaited still waits for a reader.
    pub(super) fn is_stuck(self) -> bool {
        self.turn().try_lock().is_err()
    }
}

/// Writes as much as can be without waiting for anybody (`RWF_NOWAIT`, pwritev2(2)), and says how
/// much that was. Files of many kinds cannot do that; whatever the reason is, the thread that
/// writes the rest meets it again.
fn write_at_once(to: &impl AsFd, bytes: &[u8]) -> usize {
    /// "From the current offset", also where there is none.
    const HERE: u64 = u64::MAX;
    rustix::io::pwritev2(to, &[IoSlice::new(bytes)], HERE, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

/// Writes all of it. Whoever shares the file may have made it non-blocking: room in it is waited
/// for.
///
/// # Errors
/// What the system says.
fn write_all(to: &mut (impl Write + AsFd), mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let done = if bytes.is_empty() { to.flush().map(|()| 0) } else { to.write(bytes) };
        match done {
            Ok(0) if bytes.is_empty() => return Ok(()),
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready(to.as_fd(), PollFlags::POLLOUT)?,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn what_there_is_no_room_for_is_not_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut done = 0;
        let mut got = Vec::new();
        while done < sent.len() {
            let piece = &sent[done..sent.len().min(done + 100_000)];
            let now = write_at_once(&writer, piece);
            done += now;
            if now < piece.len() {
                // The pipe is full, and this did not wait for a reader.
                let mut room = vec![0; 10_000];
                let read = reader.read(&mut room).unwrap();
                got.extend_from_slice(&room[..read]);
            }
        }
        drop(writer);
        reader.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        // A file may refuse, and then nothing of it was written.
        let mut file = tempfile::tempfile().unwrap();
        let done = write_at_once(&file, b"abc");
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), done);
        drop(reader);
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(write_at_once(&writer, b"x"), 0, "nobody reads");
    }

    #[test]
    fn a_file_that_does_not_block_gets_all_of_it() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || write_all(&mut ours, &copy));
        // Until the pipe is full.
        std::thread::sleep(Duration::from_millis(50));
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        writing.join().unwrap().unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(write_all(&mut ours, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
