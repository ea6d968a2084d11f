//! Where the bytes of files are: in a range of a window, or, for a sparse file, in several.

use crate::source::Window;
use std::io;

/// A range of a window of the import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Number of the window.
    pub(crate) window: u32,
    /// In the window, bytes.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: u64,
}

/// A stretch of a sparse file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// In the file, bytes.
    pub(crate) at: u64,
    /// Bytes, not 0.
    pub(crate) size: u64,
    /// In the data of all pieces, bytes.
    pub(crate) from: u64,
}

/// A sparse file: the pieces' data follow each other in `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) data: Content,
    /// Of the file, bytes.
    pub(crate) size: u64,
    /// In rising order, not overlapping, inside the file.
    pub(crate) pieces: Box<[Piece]>,
}

/// The windows that the files of a tree refer to.
#[derive(Debug)]
pub(crate) struct Contents<'a>(pub(crate) &'a [Window]);

/// The bytes of one file.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    window: &'a Window,
    data: Content,
    size: u64,
    pieces: &'a [Piece],
}

impl Contents<'_> {
    /// A file of that size whose data lies in these pieces of it, or is all of it when there are
    /// none.
    /// `None`: the window is not there.
    pub(crate) fn bytes<'b>(&'b self, data: Content, size: u64, pieces: &'b [Piece]) -> Option<Bytes<'b>> {
        let window = self.0.get(usize::try_from(data.window).ok()?)?;
        Some(Bytes { window, data, size, pieces })
    }
}

impl Bytes<'_> {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn is_sparse(&self) -> bool {
        !self.pieces.is_empty() || self.data.size != self.size
    }

    /// The next stretch of the file, at or behind `at`, that has data: its beginning and its end.
    pub(crate) fn next_data(&self, at: u64) -> Option<(u64, u64)> {
        if at >= self.size {
            return None;
        }
        if !self.is_sparse() {
            return Some((at, self.size));
        }
        let next = self.pieces.partition_point(|piece| piece.at + piece.size <= at);
        self.pieces.get(next).map(|piece| (piece.at.max(at), piece.at + piece.size))
    }

    /// Fills `buf` with the bytes from `at` on, all of which are in the file.
    ///
    /// # Errors
    /// Of reading; `UnexpectedEof` when the window was cut.
    pub(crate) fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.is_sparse() {
            return self.window.read_exact_at(buf, self.data.offset + at);
        }
        buf.fill(0);
        let end = at + buf.len() as u64;
        let first = self.pieces.partition_point(|piece| piece.at + piece.size <= at);
        for piece in self.pieces.iter().skip(first).take_while(|piece| piece.at < end) {
            let from = piece.at.max(at);
            let to = (piece.at + piece.size).min(end);
            let index = |at_byte: u64| usize::try_from(at_byte - at).unwrap_or(usize::MAX);
            let part = buf.get_mut(index(from)..index(to)).ok_or(io::ErrorKind::InvalidInput)?;
            self.window.read_exact_at(part, self.data.offset + piece.from + (from - piece.at))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::io::Write as _;

    #[test]
    fn pieces_are_where_they_belong() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"..abcdefgh").unwrap();
        let windows = [Window::whole(file).unwrap()];
        let pieces = [Piece { at: 2, size: 3, from: 0 }, Piece { at: 10, size: 5, from: 3 }].into();
        let data = Content { window: 0, offset: 2, size: 8 };
        let sparse = Sparse { data, size: 20, pieces };
        let contents = Contents(&windows);
        let bytes = contents.bytes(sparse.data, sparse.size, &sparse.pieces).unwrap();
        let mut whole = vec![1; 20];
        bytes.read_at(0, &mut whole).unwrap();
        assert_eq!(whole, b"\0\0abc\0\0\0\0\0defgh\0\0\0\0\0");
        for at in 0..20_u64 {
            for end in at..=20 {
                let mut part = vec![1; usize::try_from(end - at).unwrap()];
                bytes.read_at(at, &mut part).unwrap();
                assert_eq!(part, whole[usize::try_from(at).unwrap()..usize::try_from(end).unwrap()]);
            }
        }
        let next = [0, 2, 4, 5, 11, 15].map(|at| bytes.next_data(at));
        assert_eq!(next, [Some((2, 5)), Some((2, 5)), Some((4, 5)), Some((10, 15)), Some((11, 15)), None]);
    }
}
