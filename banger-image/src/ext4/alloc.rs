//! Blocks, one after the other.

use super::geometry::Geometry;
use super::{BLOCK, Ext4Error, GROUP_BLOCKS};

/// Hands out blocks in rising order; metadata of groups is passed over.
#[derive(Debug)]
pub(super) struct Allocator {
    geometry: Geometry,
    next: u64,
    /// Handed out so far.
    pub(super) used: u64,
}

/// Consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Allocator {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, next: geometry.overhead(0), used: 0 }
    }

    /// No block from here on is in use, but for metadata.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    /// Up to `wanted` consecutive blocks, one at least.
    ///
    /// # Errors
    /// [`Ext4Error::Full`].
    pub(super) fn run(&mut self, wanted: u64) -> Result<Run, Ext4Error> {
        if self.next.is_multiple_of(GROUP_BLOCKS) {
            self.next += self.geometry.overhead(self.next / GROUP_BLOCKS);
        }
        let group_end = (self.next / GROUP_BLOCKS + 1) * GROUP_BLOCKS;
        let end = group_end.min(self.geometry.most_blocks);
        let count = wanted.min(end.saturating_sub(self.next));
        if count == 0 {
            return Err(Ext4Error::Full { most: self.geometry.most_blocks * BLOCK });
        }
        let first = self.next;
        self.next += count;
        self.used += count;
        Ok(Run { first, count })
    }

    /// One block.
    ///
    /// # Errors
    /// [`Ext4Error::Full`].
    pub(super) fn one(&mut self) -> Result<u64, Ext4Error> {
        self.run(1).map(|run| run.first)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::Size;
    use super::*;

    #[test]
    fn every_block_is_handed_out_once_and_metadata_never() {
        let bytes = 300 << 20;
        let geometry = Geometry::new(Size::Exactly { bytes, inodes: 4096 }, 0).unwrap();
        let mut allocator = Allocator::new(geometry);
        let mut last = 0;
        let mut sum = 0;
        for wanted in [1, 5, 40_000, 3, 70_000].into_iter().cycle() {
            let Ok(run) = allocator.run(wanted) else { break };
            let group = run.first / GROUP_BLOCKS;
            assert!(run.first > last || sum == 0);
            assert!(run.first >= group * GROUP_BLOCKS + geometry.overhead(group));
            last = run.first + run.count - 1;
            assert_eq!(last / GROUP_BLOCKS, group);
            sum += run.count;
        }
        assert_eq!(sum, geometry.room(bytes / BLOCK));
        assert_eq!(sum, allocator.used);
    }
}
