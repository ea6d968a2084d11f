//! Bytes of archives with random access: windows on the uploaded file and on spools of ours.
//!
//! File contents are never held in memory: the tree of an image refers to windows, and the writer
//! reads from them.

use super::error::ImageError;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// Copy unit, and therefore how far a cancelled import still runs: a few milliseconds.
pub(crate) const CHUNK: usize = 1 << 20;

/// Progress of a long import, and the way to end it early. Called often: it must be cheap.
pub trait Progress {
    /// A stage begins; its name is for users, such as `read archive`.
    fn stage(&self, _name: &'static str) {}
    /// Bytes of this stage done so far, of `total`; 0 when the total is not known.
    fn bytes(&self, _done: u64, _total: u64) {}
    /// Something was left out or changed that nobody needs to mend; a sentence for users. An
    /// archive decides how often.
    fn warn(&self, _text: &str) {}
    /// True ends the import with [`ImageError::Cancelled`] within a second.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No progress wanted, never cancelled.
impl Progress for () {}

/// Passes on nothing but that the import is cancelled: for a first look, whose warnings come again.
pub(crate) struct Quiet<'a>(pub(crate) &'a dyn Progress);

impl Progress for Quiet<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// # Errors
/// [`ImageError::Cancelled`].
pub(crate) fn check(progress: &dyn Progress) -> Result<(), ImageError> {
    if progress.cancelled() { Err(ImageError::Cancelled) } else { Ok(()) }
}

/// Extended headers that an archive may have for each entry: in PAX one, of GNU tar a long name and
/// a long target.
const HEADERS: u64 = 4;

/// What may still be expanded, over all layers of one import.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) bytes_limit: u64,
    pub(crate) bytes: u64,
    pub(crate) entries_limit: u64,
    pub(crate) entries: u64,
    /// Headers of archives that say something of the next entry.
    pub(crate) headers: u64,
    /// Bytes of memory that the tree may take.
    pub(crate) memory_limit: u64,
}

impl Budget {
    /// Without a limit of memory, which only a tree needs.
    pub(crate) fn new(bytes_limit: u64, entries_limit: u64) -> Self {
        Self { bytes_limit, bytes: 0, entries_limit, entries: 0, headers: 0, memory_limit: u64::MAX }
    }

    /// The tree takes so much memory now.
    pub(crate) fn reach_memory(&self, used: u64) -> Result<(), ImageError> {
        let limit = self.memory_limit;
        if used > limit { Err(ImageError::TooMuchMetadata { limit }) } else { Ok(()) }
    }

    pub(crate) fn spend_bytes(&mut self, n: u64) -> Result<(), ImageError> {
        self.bytes = self.bytes.saturating_add(n);
        if self.bytes > self.bytes_limit { Err(ImageError::TooLarge { limit: self.bytes_limit }) } else { Ok(()) }
    }

    /// A header that is no entry: an archive could have any number of them in front of one.
    pub(crate) fn spend_header(&mut self) -> Result<(), ImageError> {
        self.headers = self.headers.saturating_add(1);
        let limit = self.entries_limit.saturating_mul(HEADERS);
        if self.headers > limit { Err(ImageError::TooManyHeaders { limit }) } else { Ok(()) }
    }

    pub(crate) fn spend_entry(&mut self) -> Result<(), ImageError> {
        self.entries = self.entries.saturating_add(1);
        if self.entries > self.entries_limit {
            Err(ImageError::TooManyEntries { limit: self.entries_limit })
        } else {
            Ok(())
        }
    }
}

/// A range of a file.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    file: Arc<File>,
    start: u64,
    len: u64,
}

impl Window {
    /// # Errors
    /// [`ImageError::Read`] when the length cannot be read.
    pub(crate) fn whole(file: File) -> Result<Self, ImageError> {
        let len = file.metadata().map_err(|source| ImageError::Read { source })?.len();
        Ok(Self { file: Arc::new(file), start: 0, len })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Which bytes of which file it is: two windows are the same when this is.
    pub(crate) fn place(&self) -> (usize, u64, u64) {
        (Arc::as_ptr(&self.file).addr(), self.start, self.len)
    }

    /// Whether these are the same bytes of the same file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.place() == other.place()
    }

    /// The part of `len` bytes from `offset`; `None` when it is not inside.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self { file: Arc::clone(&self.file), start: self.start + offset, len })
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the window ends before.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len => self.file.read_exact_at(buf, self.start + offset),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes behind the end of the window, which grows.
    pub(crate) fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.start + self.len)?;
        self.len += data.len() as u64;
        Ok(())
    }

    /// Sequential reading from the beginning.
    pub(crate) fn reader(&self) -> WindowReader<'_> {
        WindowReader { window: self, offset: 0 }
    }

    /// All bytes; the caller has looked at the length.
    pub(crate) fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.reader().read_to_end(&mut all)?;
        Ok(all)
    }

    /// The first bytes, up to 512.
    pub(crate) fn head(&self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        self.reader().take(512).read_to_end(&mut head)?;
        Ok(head)
    }
}

/// See [`Window::reader`].
#[derive(Debug)]
pub(crate) struct WindowReader<'a> {
    window: &'a Window,
    offset: u64,
}

impl Read for WindowReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.window.len - self.offset;
        let want = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let into = buf.get_mut(..want).unwrap_or_default();
        let n = self.window.file.read_at(into, self.window.start + self.offset)?;
        if n == 0 && !into.is_empty() {
            // The file was cut while we read it.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        Ok(n)
    }
}

/// Hash of a window as it is.
///
/// # Errors
/// `Read`, `Cancelled`.
pub(crate) fn sha256(window: &Window, progress: &dyn Progress) -> Result<[u8; 32], ImageError> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; CHUNK];
    let mut reader = window.reader();
    loop {
        check(progress)?;
        let n = reader.read(&mut buf).map_err(|source| ImageError::Read { source })?;
        match buf.get(..n) {
            Some(chunk) if !chunk.is_empty() => hash.update(chunk),
            _ => return Ok(hash.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use crate::tests::maker::window_of;

    #[test]
    fn parts_never_reach_outside() {
        let whole = window_of(b"0123456789");
        let part = whole.part(2, 5).unwrap();
        assert_eq!(part.read_all().unwrap(), b"23456");
        assert_eq!(part.part(1, 2).unwrap().read_all().unwrap(), b"34");
        assert!(part.part(1, 5).is_none() && part.part(u64::MAX, 2).is_none());
        assert!(part.read_exact_at(&mut [0; 2], 4).is_err());
    }
}
