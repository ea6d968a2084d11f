//! How large a COW file must be.
//!
//! The kernel's persistent exception store (Linux, drivers/md/dm-snap-persistent.c) keeps in it: chunk 0, the
//! header; then areas, each of one metadata chunk and up to [`PER_AREA`] data chunks. When a new chunk does
//! not fit, the write fails and the snapshot stays good (table option `PO`). But when an area has been
//! filled, the metadata chunk of the next one is zeroed at once, whether or not it fits, and if it does not,
//! the whole snapshot becomes invalid. So the file ends with exactly that chunk.

/// Sectors (512 bytes) per chunk.
pub const CHUNK_SECTORS: u64 = 8;
/// Bytes per chunk.
pub const CHUNK_BYTES: u64 = CHUNK_SECTORS * 512;
/// Exceptions of 16 bytes that fit the metadata chunk of one area.
pub const PER_AREA: u64 = CHUNK_BYTES / 16;
/// Chunks of one area.
const AREA_CHUNKS: u64 = PER_AREA + 1;

/// Bytes of the COW file of a VM that may change `cow_bytes` of a base of `base_bytes`.
///
/// Never more than the base can need: with a cap of at least the base's size the snapshot cannot overflow.
/// With a smaller one, writes to chunks that were not changed before fail once the cap (rounded up to a whole
/// area, one MiB) is reached, and everything written until then stays readable.
#[must_use]
pub fn cow_file_bytes(cow_bytes: u64, base_bytes: u64) -> u64 {
    let data = cow_bytes.min(base_bytes).div_ceil(CHUNK_BYTES);
    let areas = data.div_ceil(PER_AREA).saturating_mul(AREA_CHUNKS);
    // The header before the areas, the next metadata chunk behind them.
    areas.saturating_add(2).saturating_mul(CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_DISK_BYTES, MIN_OVERLAY_BYTES};

    /// Fills a store of `chunks` as the kernel does: how many data chunks were taken, and whether it is
    /// still valid then.
    fn fill(chunks: u64) -> (u64, bool) {
        let (mut next_free, mut taken) = (2, 0);
        loop {
            // persistent_prepare_exception: is there room?
            if chunks < next_free + 1 {
                return (taken, true);
            }
            taken += 1;
            next_free += 1;
            // skip_metadata
            if next_free % AREA_CHUNKS == 1 {
                next_free += 1;
            }
            // persistent_commit_exception: the area is full, so the next one is zeroed.
            if taken % PER_AREA == 0 && 1 + taken / PER_AREA * AREA_CHUNKS >= chunks {
                return (taken, false);
            }
        }
    }

    #[test]
    fn the_model_of_the_kernel_knows_the_trap() {
        assert_eq!(fill(AREA_CHUNKS + 1), (PER_AREA, false), "one whole area and nothing behind it");
        assert_eq!(fill(AREA_CHUNKS + 2), (PER_AREA, true));
        assert_eq!(fill(AREA_CHUNKS), (PER_AREA - 1, true));
    }

    #[test]
    fn the_cap_fits_and_a_full_store_stays_valid() {
        for data in (1..1_100).chain([MIN_OVERLAY_BYTES / CHUNK_BYTES, 65_535, 65_536, 65_537]) {
            let bytes = cow_file_bytes(data * CHUNK_BYTES, MAX_DISK_BYTES);
            let (taken, valid) = fill(bytes / CHUNK_BYTES);
            assert!(valid && taken >= data && taken < data + PER_AREA, "{data}: {taken} {valid}");
        }
    }

    #[test]
    fn no_more_than_the_base_can_need_and_never_an_overflow() {
        assert_eq!(cow_file_bytes(MAX_DISK_BYTES, 1 << 30), cow_file_bytes(1 << 30, 1 << 30));
        assert!(cow_file_bytes(u64::MAX, u64::MAX) > MAX_DISK_BYTES);
        assert_eq!(cow_file_bytes(1, 1 << 30), cow_file_bytes(CHUNK_BYTES, 1 << 30));
    }
}
