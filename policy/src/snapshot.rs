//! How large a COW file must be.
//!
//! The kernel's persistent exception store (Linux, drivers/md/dm-snap-persistent.c) keeps in it: one header
//! chunk, then areas, each of one metadata chunk and up to [`PER_AREA`] data chunks. When an area has been
//! filled, the next one's metadata chunk is zeroed at once, before anybody asks for it; a write past the end
//! there would invalidate the whole snapshot. So one whole area is added.

/// Sectors (512 bytes) per chunk.
pub const CHUNK_SECTORS: u64 = 8;
/// Bytes per chunk.
pub const CHUNK_BYTES: u64 = CHUNK_SECTORS * 512;
/// Exceptions of 16 bytes that fit the metadata chunk of one area.
pub const PER_AREA: u64 = CHUNK_BYTES / 16;

/// Bytes of the COW file of a VM that may change `cow_bytes` of a base of `base_bytes`.
///
/// Never more than the base can need: with a cap of at least the base's size the snapshot cannot overflow.
/// With a smaller one, writes to chunks that were not changed before fail once the cap is reached, and
/// everything written until then stays readable (table option `PO`).
#[must_use]
pub fn cow_file_bytes(cow_bytes: u64, base_bytes: u64) -> u64 {
    let data = cow_bytes.min(base_bytes).div_ceil(CHUNK_BYTES);
    let areas = data.div_ceil(PER_AREA).saturating_add(1);
    let spare = PER_AREA;
    let chunks = data.saturating_add(areas).saturating_add(spare).saturating_add(1);
    chunks.saturating_mul(CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_DISK_BYTES, MIN_OVERLAY_BYTES};

    /// What the kernel needs to store `data` chunks, counted as it does: chunk 0 is the header, area `n`
    /// has its metadata in chunk `1 + n * (PER_AREA + 1)`.
    fn end_of_store(data: u64) -> u64 {
        let next_metadata = 1 + (data / PER_AREA) * (PER_AREA + 1);
        let last_data =
            if data == 0 { 0 } else { 1 + (data - 1) / PER_AREA * (PER_AREA + 1) + 1 + (data - 1) % PER_AREA };
        next_metadata.max(last_data) + 1
    }

    #[test]
    fn the_cap_fits_with_its_metadata() {
        for data in [1, 255, 256, 257, 65_536, MIN_OVERLAY_BYTES / CHUNK_BYTES, MAX_DISK_BYTES / CHUNK_BYTES] {
            let bytes = data * CHUNK_BYTES;
            let chunks = cow_file_bytes(bytes, MAX_DISK_BYTES) / CHUNK_BYTES;
            assert!(end_of_store(data) <= chunks, "{data}");
            assert!(chunks <= end_of_store(data) + 2 * PER_AREA, "{data}: no more than needed");
        }
    }

    #[test]
    fn no_more_than_the_base_can_need_and_never_an_overflow() {
        assert_eq!(cow_file_bytes(MAX_DISK_BYTES, 1 << 30), cow_file_bytes(1 << 30, 1 << 30));
        assert!(cow_file_bytes(u64::MAX, u64::MAX) >= u64::MAX - CHUNK_BYTES);
        assert_eq!(cow_file_bytes(1, 1 << 30), cow_file_bytes(CHUNK_BYTES, 1 << 30));
    }
}
