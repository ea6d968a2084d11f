//! Any bytes as an archive: refused, or a file system. Compressed streams, tar with PAX and all its
//! dialects, OCI layouts, what `docker save` writes, ACLs, sparse maps, and the ext4 writer behind
//! them.
#![no_main]

use banger_fuzz::{hasher, import_of, judged};
use banger_image::{Limits, import};

/// The smallest that an image may hold, bytes.
const MOST: u64 = 128 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { entries: 5000, expanded_bytes: 4 << 20, ..Limits::for_build_size(MOST) };
    import_of("image", bytes, |source, folder, progress| {
        judged(import(source, folder, MOST, None, limits, &hasher(), progress));
    });
});
