//! Little-endian fields in blocks of a fixed layout.

use super::BLOCK_LEN;

/// One block.
pub(super) type Block = [u8; BLOCK_LEN];

/// The checksum of the format: CRC-32C without the inversion at its end, `seed` being an earlier
/// one.
pub(crate) fn checksum(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// Writes `value` at `at`. A place outside of `buf` is a mistake in this module: nothing is written
/// there.
pub(super) fn put(buf: &mut [u8], at: usize, value: &[u8]) {
    let slot = at.checked_add(value.len()).and_then(|end| buf.get_mut(at..end));
    debug_assert!(slot.is_some(), "{} bytes at {at}", value.len());
    if let Some(slot) = slot {
        slot.copy_from_slice(value);
    }
}

pub(super) fn put_u16(buf: &mut [u8], at: usize, value: u16) {
    put(buf, at, &value.to_le_bytes());
}

pub(super) fn put_u32(buf: &mut [u8], at: usize, value: u32) {
    put(buf, at, &value.to_le_bytes());
}

/// The low bits, for fields that the format splits in two.
#[expect(clippy::cast_possible_truncation, reason = "the high bits go into another field")]
pub(super) const fn low16(value: u32) -> u16 {
    value as u16
}

#[expect(clippy::cast_possible_truncation, reason = "as low16()")]
pub(super) const fn low32(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_goes_on_and_is_not_inverted() {
        // "123456789" has the CRC-32C 0xe3069283.
        assert_eq!(checksum(!0, b"123456789"), !0xe306_9283);
        assert_eq!(checksum(checksum(!0, b"1234"), b"56789"), !0xe306_9283);
    }
}
