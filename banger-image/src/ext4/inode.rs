//! Inodes (`struct ext4_inode`, `fs/ext4/ext4.h`): 256 bytes, 32 of them beyond the old 128, and 96
//! for attributes.

use super::BLOCK;
use super::bytes::{checksum, low16, low32, put, put_u16, put_u32};

/// Bytes of an inode.
pub(super) const INODE: usize = 256;
/// What lies beyond the first 128 bytes (`i_extra_isize`): up to and with `i_projid`.
const EXTRA: u16 = 32;
/// Where attributes begin.
const ATTRIBUTES: usize = 128 + 32;
/// Bytes for attributes in an inode.
pub(super) const ATTRIBUTE_ROOM: usize = INODE - ATTRIBUTES;

pub(super) const TYPE_FIFO: u16 = 0o010_000;
pub(super) const TYPE_CHAR: u16 = 0o020_000;
pub(super) const TYPE_FOLDER: u16 = 0o040_000;
pub(super) const TYPE_BLOCK: u16 = 0o060_000;
pub(super) const TYPE_FILE: u16 = 0o100_000;
pub(super) const TYPE_SYMLINK: u16 = 0o120_000;

/// `EXT4_EXTENTS_FL`, `EXT4_INDEX_FL`.
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
pub(super) const FLAG_INDEX: u32 = 0x1000;

/// One inode.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// Type and permission bits.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes.
    pub(super) size: u64,
    pub(super) links: u16,
    /// Blocks of 4 KiB, all that belong to it.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    /// Extents, or the target of a short symlink, or a device number.
    pub(super) map: [u8; 60],
    /// Seconds and nanoseconds; for all four times.
    pub(super) time: (i64, u32),
    /// A block of attributes, or 0.
    pub(super) attribute_block: u64,
    /// Attributes that lie in the inode; may be empty.
    pub(super) attributes: Vec<u8>,
}

impl Inode {
    /// A file of the file system's own.
    pub(super) fn internal(time: i64) -> Self {
        Self {
            mode: TYPE_FILE | 0o600,
            uid: 0,
            gid: 0,
            size: 0,
            links: 1,
            blocks: 0,
            flags: FLAG_EXTENTS,
            map: [0; 60],
            time: (time, 0),
            attribute_block: 0,
            attributes: Vec::new(),
        }
    }

    pub(super) fn render(&self, seed: u32) -> [u8; INODE] {
        let mut raw = [0; INODE];
        let (time, extra) = self.time();
        put_u16(&mut raw, 0, self.mode);
        put_u16(&mut raw, 2, low16(self.uid));
        put_u32(&mut raw, 4, low32(self.size));
        for at in [8, 12, 16, 144] {
            put_u32(&mut raw, at, time);
        }
        put_u16(&mut raw, 24, low16(self.gid));
        put_u16(&mut raw, 26, self.links);
        // In units of 512 bytes.
        let sectors = self.blocks * (BLOCK / 512);
        put_u32(&mut raw, 28, low32(sectors));
        put_u32(&mut raw, 32, self.flags);
        put(&mut raw, 40, &self.map);
        put_u32(&mut raw, 104, low32(self.attribute_block));
        put_u32(&mut raw, 108, low32(self.size >> 32));
        put_u16(&mut raw, 116, low16(low32(sectors >> 32)));
        put_u16(&mut raw, 118, low16(low32(self.attribute_block >> 32)));
        put_u16(&mut raw, 120, low16(self.uid >> 16));
        put_u16(&mut raw, 122, low16(self.gid >> 16));
        put_u16(&mut raw, 128, EXTRA);
        for at in [132, 136, 140, 148] {
            put_u32(&mut raw, at, extra);
        }
        put(&mut raw, ATTRIBUTES, &self.attributes);
        let sum = checksum(seed, &raw);
        put_u16(&mut raw, 124, low16(sum));
        put_u16(&mut raw, 130, low16(sum >> 16));
        raw
    }

    /// The old field, and the one that has two more bits of seconds and the nanoseconds. Times that
    /// 34 bits do not hold are those at their ends.
    fn time(&self) -> (u32, u32) {
        let (seconds, nanos) = self.time;
        let held = seconds.clamp(i64::from(i32::MIN), 0x3_7fff_ffff);
        let low = low32(held.cast_unsigned());
        let epoch = low32(((held - i64::from(low.cast_signed())) >> 32).cast_unsigned()) & 3;
        (low, epoch | nanos.min(999_999_999) << 2)
    }
}

/// The seed of all checksums of an inode: its number, and its generation, which is 0.
pub(super) fn seed(file_system: u32, ino: u32) -> u32 {
    checksum(checksum(file_system, &ino.to_le_bytes()), &[0; 4])
}

/// `i_block` of a device (`new_encode_dev`, or the old form where it suffices).
pub(super) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut map = [0; 60];
    if major < 256 && minor < 256 {
        put_u32(&mut map, 0, major << 8 | minor);
    } else {
        put_u32(&mut map, 4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_34_bits() {
        let time = |seconds| Inode { time: (seconds, 7), ..Inode::internal(0) }.time();
        assert_eq!(time(0), (0, 28));
        assert_eq!(time(-1), (0xffff_ffff, 28));
        assert_eq!(time(0x7fff_ffff), (0x7fff_ffff, 28));
        assert_eq!(time(0x8000_0000), (0x8000_0000, 29));
        assert_eq!(time(0x3_7fff_ffff), (0x7fff_ffff, 31));
        assert_eq!(time(i64::MAX), (0x7fff_ffff, 31));
        assert_eq!(time(i64::MIN), (0x8000_0000, 28));
    }
}
