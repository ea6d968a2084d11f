//! The file that is written: positioned writes, gathered, and zeros left out.

use super::bytes::Block;
use super::{BLOCK, BLOCK_LEN};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// How much is gathered before it is written, bytes.
const GATHERED: usize = 1 << 20;

/// What follows each other on disk goes out in one write.
#[derive(Debug)]
pub(super) struct Out<'a> {
    file: &'a File,
    /// Byte offset of what is gathered.
    at: u64,
    gathered: Vec<u8>,
}

impl<'a> Out<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, at: 0, gathered: Vec::with_capacity(GATHERED + BLOCK_LEN) }
    }

    /// Whole blocks from `block` on.
    ///
    /// # Errors
    /// Of the write.
    pub(super) fn blocks(&mut self, block: u64, data: &[u8]) -> io::Result<()> {
        self.bytes(block * BLOCK, data)
    }

    /// One block; nothing happens when it is zero.
    ///
    /// # Errors
    /// Of the write.
    pub(super) fn block(&mut self, block: u64, data: &Block) -> io::Result<()> {
        if data.iter().all(|byte| *byte == 0) { Ok(()) } else { self.blocks(block, data) }
    }

    /// # Errors
    /// Of the write.
    pub(super) fn bytes(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let follows = offset == self.at + self.gathered.len() as u64;
        if !follows || self.gathered.len() + data.len() > GATHERED {
            self.flush()?;
            self.at = offset;
        }
        if data.len() >= GATHERED {
            self.file.write_all_at(data, offset)?;
            self.at = offset + data.len() as u64;
        } else {
            self.gathered.extend_from_slice(data);
        }
        Ok(())
    }

    /// # Errors
    /// Of the write.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.gathered, self.at)?;
        self.at += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}
