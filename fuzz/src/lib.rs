//! What the targets share that import something.

use banger_image::Progress;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &'static str) {}
    fn warn(&self, _: &str) {}
}

/// Has `import` take `bytes`, as a file without a name, into an empty folder in memory.
pub fn import_of(target: &str, bytes: &[u8], import: impl FnOnce(File, &Path, &dyn Progress)) {
    let folder = PathBuf::from(format!("/dev/shm/banger-fuzz-{target}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder in memory");
    import(source(bytes, &folder), &folder, &Silent);
    let _ = fs::remove_dir_all(&folder);
}

fn source(bytes: &[u8], folder: &Path) -> File {
    let path = folder.with_extension("source");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file in memory");
    fs::remove_file(&path).expect("it needs no name");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("a few bytes");
    file
}
