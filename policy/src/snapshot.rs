//! How large a COW file must be.
//!
//! The kernel's persistent exception store (Linux, drivers/md/dm-snap-persistent.c) keeps in it:
//! chunk 0, the header; then areas, each of one metadata chunk and up to [`PER_AREA`] data chunks.
//! A write to a chunk that was not written before takes the next data chunk; chunks are taken and
//! committed in the same order, so that a crash leaves no hole. A chunk that finds no room puts the
//! whole snapshot into the state "Overflow", and the disk is lost. When an area has been filled,
//! the metadata chunk of the next one is zeroed at once, whether or not it fits, and if it does
//! not, the snapshot becomes invalid.
//!
//! So the file holds every chunk of the root disk, the metadata of all areas, and one more metadata
//! chunk. Areas lie where they lie whatever the file's length: a longer file keeps what is in it.

/// Sectors (512 bytes) per chunk.
pub const CHUNK_SECTORS: u64 = 8;
/// Bytes per chunk.
pub const CHUNK_BYTES: u64 = CHUNK_SECTORS * 512;
/// Exceptions of 16 bytes that fit the metadata chunk of one area.
pub const PER_AREA: u64 = CHUNK_BYTES / 16;
/// Chunks of one area.
const AREA_CHUNKS: u64 = PER_AREA + 1;

/// Bytes of the COW file under a root disk of `root_bytes`: however often and in whichever order
/// its chunks are written, all of them fit.
#[must_use]
pub fn cow_file_bytes(root_bytes: u64) -> u64 {
    let areas = root_bytes.div_ceil(CHUNK_BYTES).div_ceil(PER_AREA).saturating_mul(AREA_CHUNKS);
    // The header before the areas, the next metadata chunk behind them.
    areas.saturating_add(2).saturating_mul(CHUNK_BYTES)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
