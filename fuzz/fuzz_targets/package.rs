//! Any bytes as a distribution's package (.deb, .rpm) that `kernel import` sends: refused, or a
//! kernel with its modules.
#![no_main]

use banger_image::boot::kernel::import;
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
    let folder = PathBuf::from(format!("/dev/shm/banger-fuzz-package-{}", std::process::id()));
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

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = staging();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "package/0001", bytes).expect("in memory");
    let whole = archive.into_inner().expect("in memory");
    drop(import(source(&whole, &folder), &folder, &Silent));
    let _ = fs::remove_dir_all(&folder);
});
