//! What the targets share that import something.

pub mod documents;
pub mod stack;

use banger_image::Progress;
use banger_image::hashing::Hasher;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Warnings go to a user's terminal.
struct Judge;

impl Progress for Judge {
    fn stage(&self, _: &'static str) {}
    fn warn(&self, text: &str) {
        judge(text);
    }
}

fn judge(text: &str) {
    assert!(!text.chars().any(char::is_control), "steers a terminal: {text:?}");
}

/// What was made, if it was; the message of a refusal must be fit for a terminal.
pub fn judged<T>(result: Result<T, impl Display>) -> Option<T> {
    result.inspect_err(|error| judge(&error.to_string())).ok()
}

/// For an import.
pub fn hasher() -> Hasher {
    Hasher::start(|| Ok(())).expect("a thread")
}

/// Has `import` take `bytes`, as a file without a name, into an empty folder in memory.
pub fn import_of<T>(target: &str, bytes: &[u8], import: impl FnOnce(File, &Path, &dyn Progress) -> T) -> T {
    let folder = PathBuf::from(format!("/dev/shm/banger-fuzz-{target}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder in memory");
    let made = import(source(bytes, &folder), &folder, &Judge);
    let _ = fs::remove_dir_all(&folder);
    made
}

fn source(bytes: &[u8], folder: &Path) -> File {
    let path = folder.with_extension("source");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file in memory");
    fs::remove_file(&path).expect("it needs no name");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("a few bytes");
    file
}

/// An ext4 of ours: its superblock and its descriptors say the same, and nothing is behind its end.
pub fn is_ext4(path: &Path, bytes: u64) {
    const BLOCK: u64 = 4096;
    /// Blocks of a group.
    const GROUP: u64 = 8 * BLOCK;
    let file = File::open(path).expect("what was made is there");
    let number = |at: u64, len: usize| {
        let mut raw = [0; 4];
        file.read_exact_at(&mut raw[..len], at).expect("inside");
        u64::from(u32::from_le_bytes(raw))
    };
    assert_eq!(number(1024 + 56, 2), 0xef53, "the magic number");
    assert_eq!(number(1024 + 4, 4) * BLOCK, bytes, "the size");
    let groups = bytes.div_ceil(BLOCK * GROUP);
    // A folder is counted in the descriptor of its group; the root and lost+found are always there.
    let (mut blocks, mut inodes, mut folders) = (0, 0, 0);
    for group in 0..groups {
        let descriptor = BLOCK + group * 32;
        let bitmap = number(descriptor, 4);
        assert!((group * GROUP..(group + 1) * GROUP).contains(&bitmap), "the bitmap is in its group");
        // Without BLOCK_UNINIT.
        if number(descriptor + 18, 2) & 2 == 0 {
            let mut bits = [0; BLOCK as usize];
            file.read_exact_at(&mut bits, bitmap * BLOCK).expect("inside");
            // By words: the instrumentation makes each step of a loop dear.
            let words = bits.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
            let free: u32 = words.map(u64::count_zeros).sum();
            assert_eq!(u64::from(free), number(descriptor + 12, 2), "free blocks of group {group}");
        }
        blocks += number(descriptor + 12, 2);
        inodes += number(descriptor + 14, 2);
        folders += number(descriptor + 16, 2);
    }
    assert_eq!(blocks, number(1024 + 12, 4), "free blocks");
    assert_eq!(inodes, number(1024 + 16, 4), "free inodes");
    assert!(folders >= 2, "folders");
    let (mut behind, zeros) = ([0; BLOCK as usize], [0; BLOCK as usize]);
    let read = file.read_at(&mut behind, bytes).expect("readable");
    assert!(behind[..read] == zeros[..read], "something is behind its end");
}
