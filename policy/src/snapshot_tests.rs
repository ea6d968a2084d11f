use super::*;
use crate::limits::{MAX_DISK_BYTES, MIN_ROOT_BYTES, ROOT_STEP_BYTES};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The kernel's store of exceptions, as far as it decides what fits.
struct Store {
    /// Chunks of the COW file.
    chunks: u64,
    /// Chunk of the disk to chunk of the file.
    taken: BTreeMap<u64, u64>,
    next_free: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Lost {
    /// A chunk found no room.
    Overflow,
    /// The next area's metadata found none.
    Invalid,
}

impl Store {
    fn new(chunks: u64) -> Self {
        Self { chunks, taken: BTreeMap::new(), next_free: 2 }
    }

    /// persistent_prepare_exception and persistent_commit_exception, for a write to one chunk of
    /// the disk.
    fn write(&mut self, chunk: u64) -> Result<(), Lost> {
        if self.taken.contains_key(&chunk) {
            return Ok(());
        }
        if self.chunks < self.next_free + 1 {
            return Err(Lost::Overflow);
        }
        self.taken.insert(chunk, self.next_free);
        self.next_free += 1;
        self.skip_metadata();
        let count = u64::try_from(self.taken.len()).unwrap();
        // The area is full, so the next one is zeroed.
        if count.is_multiple_of(PER_AREA) && 1 + count / PER_AREA * AREA_CHUNKS >= self.chunks {
            return Err(Lost::Invalid);
        }
        Ok(())
    }

    fn skip_metadata(&mut self) {
        if self.next_free % AREA_CHUNKS == 1 {
            self.next_free += 1;
        }
    }

    /// read_exceptions, when the disk is attached again.
    fn attach_again(&mut self) {
        self.next_free = self.taken.values().map(|chunk| chunk + 1).max().unwrap_or(2);
        self.skip_metadata();
    }

    /// The VM's disk was made larger.
    fn grow(&mut self, chunks: u64) {
        assert!(chunks >= self.chunks);
        self.chunks = chunks;
    }
}

fn file_chunks(root_chunks: u64) -> u64 {
    cow_file_bytes(root_chunks * CHUNK_BYTES) / CHUNK_BYTES
}

#[test]
fn the_model_of_the_kernel_knows_both_traps() {
    let fill = |chunks: u64| {
        let mut store = Store::new(chunks);
        let lost = (0..).find_map(|chunk| store.write(chunk).err());
        (store.taken.len(), lost.unwrap())
    };
    assert_eq!(fill(AREA_CHUNKS + 1), (256, Lost::Invalid), "one whole area and nothing behind it");
    assert_eq!(fill(AREA_CHUNKS + 2), (256, Lost::Overflow));
    assert_eq!(fill(AREA_CHUNKS), (255, Lost::Overflow));
    // What an overlay of 512 MiB over 8 GiB came to.
    let mut small = Store::new(file_chunks(1024));
    assert_eq!((0..2048).find_map(|chunk| small.write(chunk).err()), Some(Lost::Overflow));
}

/// All sizes that a root disk can have, each written from its first chunk to its last: one run over
/// the largest disk, in which the file of each size is compared with what was taken when that size
/// was full.
#[test]
fn a_disk_of_any_size_that_is_written_whole_fits() {
    let (mut taken, mut next_free) = (0_u64, 2_u64);
    for root in (1..=MAX_DISK_BYTES / ROOT_STEP_BYTES).map(|steps| steps * ROOT_STEP_BYTES) {
        let file = file_chunks(root / CHUNK_BYTES);
        while taken < root / CHUNK_BYTES {
            // The last chunk that this write touches: its own.
            assert!(next_free < file, "{root}: chunk {taken} would overflow");
            taken += 1;
            next_free += 1;
            if next_free % AREA_CHUNKS == 1 {
                next_free += 1;
            }
        }
        let next_area = 1 + taken.div_ceil(PER_AREA) * AREA_CHUNKS;
        assert_eq!(file, next_area + 1, "{root}: the next area's metadata is the file's last chunk");
    }
    assert_eq!(taken * CHUNK_BYTES, MAX_DISK_BYTES);
}

#[test]
fn the_file_is_little_more_than_the_disk() {
    for root in [MIN_ROOT_BYTES, 8 << 30, MAX_DISK_BYTES] {
        let more = cow_file_bytes(root) - root;
        assert!(more <= root / 250 + 2 * CHUNK_BYTES, "{root}: {more}");
    }
    assert!(cow_file_bytes(u64::MAX) > MAX_DISK_BYTES, "no wrap");
}

#[derive(Clone, Debug)]
enum Event {
    Write(u64),
    AttachAgain,
    Grow(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        40 => any::<u64>().prop_map(Event::Write),
        2 => Just(Event::AttachAgain),
        1 => (1..600_u64).prop_map(Event::Grow),
    ]
}

proptest! {
    /// Whatever was written before, however often the disk was attached and made larger in between:
    /// in the end every chunk has been written, and the store holds them all.
    #[test]
    fn no_pattern_of_writes_overflows(
        chunks in 1..1_500_u64,
        events in proptest::collection::vec(event(), 0..400),
        stride in 1..97_u64,
    ) {
        let (mut chunks, mut store) = (chunks, Store::new(file_chunks(chunks)));
        for event in events {
            match event {
                Event::Write(chunk) => prop_assert_eq!(store.write(chunk % chunks), Ok(())),
                Event::AttachAgain => store.attach_again(),
                Event::Grow(more) => {
                    chunks += more;
                    store.grow(file_chunks(chunks));
                }
            }
        }
        for offset in 0..stride {
            for chunk in (offset..chunks).step_by(usize::try_from(stride).unwrap()) {
                prop_assert_eq!(store.write(chunk), Ok(()));
            }
            store.attach_again();
        }
        prop_assert_eq!(u64::try_from(store.taken.len()).unwrap(), chunks);
    }
}
