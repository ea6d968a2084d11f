//! Decompression into a spool of ours: an unlinked file in the staging folder, so an import that
//! dies leaves none behind.
//!
//! Called for archives, layers and packages.

use super::codec::Codec;
use super::error::ImageError;
use super::hashing::Hash;
use super::source::{Budget, CHUNK, Progress, Window, WindowReader, check};
use std::io::{self, BufReader, Read};
use std::path::Path;

/// Who hashes what is read and what is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hashes<'a> {
    pub(crate) packed: Option<&'a Hash<'a>>,
    pub(crate) plain: Option<&'a Hash<'a>>,
}

/// Decompresses `source` into an unlinked file in `dir`; a plain source is taken as it is, and not
/// hashed here.
///
/// # Errors
/// `Truncated`, `Corrupt`, `Compression`, `TooLarge`, `Write` (a full disk), `Cancelled`.
pub(crate) fn spool(
    source: &Window,
    layer: &str,
    dir: &Path,
    hashes: Hashes<'_>,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<Window, ImageError> {
    check(progress)?;
    let codec = Codec::of(&source.head().map_err(|source| ImageError::Read { source })?);
    match codec {
        Codec::Other(format) => return Err(ImageError::Compression { layer: layer.to_owned(), format }),
        Codec::Plain => return budget.spend_bytes(source.len()).map(|()| source.clone()),
        _ => {}
    }
    let write_error = |source| ImageError::Write { path: dir.to_owned(), source };
    let mut written = Window::whole(tempfile::tempfile_in(dir).map_err(write_error)?)?;
    let decode_error = |source: io::Error| {
        let layer = layer.to_owned();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                ImageError::Truncated { layer, at: "the compressed stream has no end".to_owned() }
            }
            io::ErrorKind::Unsupported => ImageError::Wide { layer, why: source.to_string() },
            _ => ImageError::Corrupt { layer, source },
        }
    };
    let counted = Counted { inner: source.reader(), source, done: 0, hash: hashes.packed, progress };
    let mut reader = codec.decode(BufReader::with_capacity(CHUNK, counted)).map_err(decode_error)?;
    let mut buf = vec![0; CHUNK];
    loop {
        check(progress)?;
        let n = reader.read(&mut buf).map_err(decode_error)?;
        let chunk = buf.get(..n).unwrap_or_default();
        if chunk.is_empty() {
            return Ok(written);
        }
        budget.spend_bytes(n as u64)?;
        written.append(chunk).map_err(write_error)?;
        if let Some(hash) = hashes.plain {
            hash.add(&written, n as u64);
        }
    }
}

/// Reports how much of the *compressed* source is read: the only total that is known.
struct Counted<'a> {
    inner: WindowReader<'a>,
    source: &'a Window,
    done: u64,
    hash: Option<&'a Hash<'a>>,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hash) = self.hash {
            hash.add(self.source, n as u64);
        }
        self.done += n as u64;
        self.progress.bytes(self.done, self.source.len());
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::tests::maker::window_of;
    use std::io::Write as _;

    #[test]
    fn expansion_is_capped() {
        let dir = tempfile::tempdir().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(&vec![0; 8 << 20]).unwrap();
        let bomb = window_of(&gz.finish().unwrap());
        let result = spool(&bomb, "archive", dir.path(), Hashes::default(), &mut Budget::new(4 << 20, 10), &());
        assert!(matches!(result, Err(ImageError::TooLarge { .. })));
        let spooled =
            spool(&bomb, "archive", dir.path(), Hashes::default(), &mut Budget::new(8 << 20, 10), &()).unwrap();
        assert_eq!(spooled.len(), 8 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "spools have no name");
    }

    #[test]
    fn a_cancelled_spool_stops() {
        struct Stop;
        impl Progress for Stop {
            fn cancelled(&self) -> bool {
                true
            }
        }
        let result =
            spool(&window_of(b"x"), "archive", Path::new("/"), Hashes::default(), &mut Budget::new(10, 10), &Stop);
        assert!(matches!(result, Err(ImageError::Cancelled)));
    }
}
