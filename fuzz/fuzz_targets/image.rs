//! Any bytes as an archive: refused, or a file system. Compressed streams, tar with PAX and all its
//! dialects, OCI layouts, what `docker save` writes, ACLs, sparse maps, and the ext4 writer behind
//! them.
#![no_main]

use banger_image::{Limits, Wanted, import};
use banger_image::Progress;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;

struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &'static str) {}
    fn warn(&self, _: &str) {}
}

/// In memory, emptied each time.
fn staging() -> PathBuf {
    let folder = PathBuf::from(format!("/dev/shm/banger-fuzz-image-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder in memory");
    folder
}

fn source(bytes: &[u8], folder: &std::path::Path) -> File {
    let path = folder.with_extension("source");
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file in memory");
    fs::remove_file(&path).expect("it needs no name");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("a few bytes");
    file
}

/// The smallest that an image may hold, bytes.
const MOST: u64 = 128 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = staging();
    let limits = Limits { entries: 5000, expanded_bytes: 4 << 20, ..Limits::for_build_size(MOST) };
    drop(import(source(bytes, &folder), &folder, MOST, &Wanted::default(), limits, &Silent));
    let _ = fs::remove_dir_all(&folder);
});
