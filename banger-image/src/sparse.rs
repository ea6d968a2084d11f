//! Maps of sparse files, as GNU tar writes them ("Storing Sparse Files" in its manual).

use super::content::Piece;
use super::header::BLOCK;
use super::source::Window;

/// Pieces of a sparse file.
pub(crate) const MAX_PIECES: usize = 1 << 20;

/// The map of format 1.0: the number of pieces, then offset and length of each, a line for each
/// number, padded to a block.
pub(crate) fn decimal_map(data: &Window) -> Option<(Vec<u64>, u64)> {
    let mut numbers = Vec::new();
    let mut digits = Vec::new();
    let mut wanted = None;
    let mut read = 0;
    while wanted.is_none_or(|wanted| numbers.len() < wanted) {
        let mut block = [0; 512];
        data.read_exact_at(&mut block, read).ok()?;
        read += BLOCK;
        for byte in block {
            match byte {
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                b'\n' => {
                    let number: u64 = std::str::from_utf8(&digits).ok()?.parse().ok()?;
                    digits.clear();
                    match wanted {
                        None => {
                            let pieces = usize::try_from(number).ok().filter(|pieces| *pieces <= MAX_PIECES)?;
                            wanted = Some(2 * pieces);
                        }
                        Some(_) => numbers.push(number),
                    }
                    if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
                        break;
                    }
                }
                _ => return None,
            }
        }
    }
    Some((numbers, read))
}

/// The pieces of a map; `None` when they do not fit the `stored` bytes of data or the file.
pub(crate) fn pieces(map: &[u64], stored: u64, size: u64) -> Option<Box<[Piece]>> {
    if !map.len().is_multiple_of(2) {
        return None;
    }
    let mut pieces = Vec::with_capacity(map.len() / 2);
    let (mut from, mut end) = (0_u64, 0_u64);
    for pair in map.chunks_exact(2) {
        let &[at, length] = pair else { return None };
        let next = at.checked_add(length)?;
        if at < end || next > size {
            return None;
        }
        // GNU tar ends a map with an empty piece at the file's end.
        if length > 0 {
            pieces.push(Piece { at, size: length, from });
        }
        from = from.checked_add(length)?;
        end = next;
    }
    (from <= stored).then(|| pieces.into())
}
