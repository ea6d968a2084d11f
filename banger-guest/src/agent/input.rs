//! A client's bytes on their way to a command or a socket that may be slow.
//!
//! russh renews a channel's window as soon as bytes arrive, and hands over the channels of a
//! connection one after the other: a reader that stops would stop every other channel, the closing
//! of its own included, and `cat` would stop for ever, because its output waits behind its input.
//! So input is always taken. What a receiver has not read stays in memory up to a bound and beyond
//! it in a nameless file on the guest's own disk; when that grows long, the connection is read more
//! slowly.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::duplex::Pressure;

/// Bytes of one channel that are kept in memory.
const MEMORY: usize = 1024 * 1024;
/// Bytes that are taken back from the file at once.
const CHUNK: usize = 64 * 1024;
/// Where the file may be: the work disk, the root disk, memory.
const FOLDERS: [&str; 3] = ["/root", "/var/tmp", "/tmp"];

/// Input that waits for its receiver.
pub(super) struct Pending<W> {
    receiver: Option<W>,
    memory: VecDeque<Vec<u8>>,
    in_memory: usize,
    /// Bytes of the front chunk that are written already.
    written: usize,
    spill: Spill,
    ended: bool,
}

impl<W: AsyncWrite + Unpin> Pending<W> {
    pub(super) fn new(receiver: W, pressure: Pressure) -> Self {
        Self {
            receiver: Some(receiver),
            memory: VecDeque::new(),
            in_memory: 0,
            written: 0,
            spill: Spill::new(pressure),
            ended: false,
        }
    }

    /// Takes bytes from the client, never waiting. Bytes for a receiver that has gone are dropped.
    pub(super) fn push(&mut self, data: &[u8]) -> io::Result<()> {
        if self.receiver.is_none() || data.is_empty() {
            return Ok(());
        }
        // Once there is a file, everything goes through it until it is empty: order.
        if self.spill.is_empty() && self.in_memory + data.len() <= MEMORY {
            self.keep(data.to_vec());
            return Ok(());
        }
        self.spill.append(data)
    }

    /// No more bytes will come. The receiver is closed when it has all.
    pub(super) fn finish(&mut self) {
        self.ended = true;
    }

    /// Whether the receiver has all, or has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.receiver.is_none()
    }

    /// Whether [`Pending::write_some`] has something to do.
    pub(super) fn has_work(&self) -> bool {
        self.receiver.is_some() && (self.ended || !self.memory.is_empty() || !self.spill.is_empty())
    }

    /// Writes once, or closes the receiver after the last byte. May be cancelled without loss.
    pub(super) async fn write_some(&mut self) {
        if let Err(_receiver_gone) = self.try_write_some().await {
            self.drop_receiver();
        }
    }

    async fn try_write_some(&mut self) -> io::Result<()> {
        if self.memory.is_empty() && !self.spill.is_empty() {
            let chunk = self.spill.take()?;
            self.keep(chunk);
        }
        let Some(receiver) = &mut self.receiver else {
            return Ok(());
        };
        let Some(chunk) = self.memory.front() else {
            if self.ended {
                receiver.shutdown().await?;
                self.drop_receiver();
            }
            return Ok(());
        };
        self.written += receiver.write(chunk.get(self.written..).unwrap_or_default()).await?;
        if self.written >= chunk.len() {
            self.in_memory -= chunk.len();
            self.memory.pop_front();
            self.written = 0;
        }
        Ok(())
    }

    fn keep(&mut self, chunk: Vec<u8>) {
        self.in_memory += chunk.len();
        self.memory.push_back(chunk);
    }

    fn drop_receiver(&mut self) {
        self.receiver = None;
        self.memory.clear();
        self.spill.clear();
    }
}

/// Bytes in a file without a name: written at the end, read from the front.
struct Spill {
    file: Option<File>,
    pressure: Pressure,
    read: u64,
    written: u64,
}

impl Spill {
    fn new(pressure: Pressure) -> Self {
        Self { file: None, pressure, read: 0, written: 0 }
    }

    fn is_empty(&self) -> bool {
        self.read == self.written
    }

    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless_file()?),
        };
        file.write_all_at(data, self.written)?;
        self.written += data.len() as u64;
        self.pressure.add(data.len() as u64);
        Ok(())
    }

    fn take(&mut self) -> io::Result<Vec<u8>> {
        let Some(file) = &self.file else {
            return Ok(Vec::new());
        };
        let left = usize::try_from(self.written - self.read).unwrap_or(usize::MAX);
        let mut chunk = vec![0; left.min(CHUNK)];
        file.read_exact_at(&mut chunk, self.read)?;
        self.read += chunk.len() as u64;
        self.pressure.remove(chunk.len() as u64);
        if self.is_empty() {
            self.clear();
        }
        Ok(chunk)
    }

    /// Gives the disk space back and starts over at the front.
    fn clear(&mut self) {
        self.pressure.remove(self.written - self.read);
        self.file = None;
        self.read = 0;
        self.written = 0;
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.clear();
    }
}

fn nameless_file() -> io::Result<File> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for folder in FOLDERS {
        result = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(folder);
        if result.is_ok() {
            break;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn more_than_memory_arrives_in_order_and_ends() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut pending = Pending::new(ours, Pressure::default());
        let sent: Vec<u8> = (0..251).cycle().take(3 * MEMORY + 17).collect();
        for part in sent.chunks(30_000) {
            pending.push(part).unwrap();
        }
        assert!(pending.in_memory <= MEMORY);
        assert!(!pending.spill.is_empty());
        pending.finish();
        let writing = async {
            while pending.has_work() {
                pending.write_some().await;
            }
        };
        let mut received = Vec::new();
        let (_, count) = tokio::join!(writing, theirs.read_to_end(&mut received));
        assert_eq!(count.unwrap(), sent.len());
        assert!(received == sent);
    }

    #[tokio::test]
    async fn a_receiver_that_is_gone_takes_nothing_more() {
        let (ours, theirs) = tokio::io::duplex(16);
        drop(theirs);
        let mut pending = Pending::new(ours, Pressure::default());
        pending.push(b"hello").unwrap();
        pending.write_some().await;
        assert!(!pending.has_work());
        pending.push(&[0; 4096]).unwrap();
        assert_eq!(pending.memory.len(), 0);
    }
}
