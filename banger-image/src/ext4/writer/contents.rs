//! Contents of files, without their zeros.

use super::super::alloc::{Allocator, Run};
use super::super::bytes::Block;
use super::super::extents::{Extents, SHORTEST_HOLE};
use super::super::out::Out;
use super::super::{BLOCK, BLOCK_LEN, Ext4Error};
use super::Writer;
use crate::tree::Node;

/// What is read of a file at once, bytes.
pub(super) const CHUNK: usize = 1 << 20;
/// Files are longer than any disk of ours when they have so many blocks.
const MOST_FILE_BLOCKS: u64 = u32::MAX as u64;

impl Writer<'_> {
    /// Writes a file's contents; blocks of zeros become holes. Returns its size.
    pub(super) fn file(&mut self, node: &Node) -> Result<u64, Ext4Error> {
        let Some(content) = node.kind.bytes(self.contents) else { return Ok(0) };
        let size = content.size();
        if size.div_ceil(BLOCK) > MOST_FILE_BLOCKS {
            return Err(Ext4Error::File { size });
        }
        self.content_bytes = self.content_bytes.saturating_add(size);
        let mut at = 0;
        // Only what has data is looked at: the rest may be terabytes.
        while let Some((data, data_end)) = content.next_data(at) {
            self.check()?;
            let from = data / BLOCK * BLOCK;
            let end = data_end.next_multiple_of(BLOCK).min(size);
            let length = (CHUNK as u64).min(end - from);
            let length = usize::try_from(length).unwrap_or(CHUNK);
            let padded = length.next_multiple_of(BLOCK_LEN);
            let chunk = self.chunk.get_mut(..padded).unwrap_or_default();
            let (filled, rest) = chunk.split_at_mut(length);
            content.read_at(from, filled)?;
            rest.fill(0);
            let (extents, allocator, out) = (&mut self.extents, &mut self.allocator, &mut self.out);
            place(chunk, from / BLOCK, extents, allocator, out)?;
            at = from + length as u64;
            self.done += length as u64;
            self.progress.bytes(self.done, 0);
        }
        Ok(size)
    }
}

/// Writes the blocks of `chunk` that are not zero; `first` is the number of its first block in the
/// file.
fn place(
    chunk: &[u8],
    first: u64,
    extents: &mut Extents,
    allocator: &mut Allocator,
    out: &mut Out<'_>,
) -> Result<(), Ext4Error> {
    static ZEROS: Block = [0; BLOCK_LEN];
    let zero = |number: u64| block_of(chunk, number).is_none_or(|block| *block == ZEROS);
    let count = (chunk.len() / BLOCK_LEN) as u64;
    let mut number = 0;
    while number < count {
        if zero(number) {
            number += 1;
            continue;
        }
        let from = number;
        while number < count && !zero(number) {
            number += 1;
        }
        // A short stretch of zeros since the last block is allocated, and not written.
        let gap = (first + from).saturating_sub(extents.end());
        if gap > 0 && gap < SHORTEST_HOLE {
            extents.map(allocator, extents.end(), gap, |_, _| Ok(()))?;
        }
        extents.map(allocator, first + from, number - from, |logical, run: Run| {
            let start = usize::try_from(logical - first).unwrap_or_default() * BLOCK_LEN;
            let length = usize::try_from(run.count).unwrap_or_default() * BLOCK_LEN;
            Ok(out.blocks(run.first, chunk.get(start..start + length).unwrap_or_default())?)
        })?;
    }
    Ok(())
}

fn block_of(chunk: &[u8], number: u64) -> Option<&[u8]> {
    let start = usize::try_from(number).ok()?.checked_mul(BLOCK_LEN)?;
    chunk.get(start..start + BLOCK_LEN)
}
