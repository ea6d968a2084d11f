//! SHA-256 in a thread of its own, beside the decompression that makes the bytes.
//!
//! Used by `spool` (archives and layers). The thread is handed ranges of open files, which it
//! reads itself, so no buffer crosses, and what is hashed is what later reads of the file find. It
//! opens nothing and writes nothing. Its input is as hostile as the decoder's, so whoever confines
//! an import confines this thread, too: [`Hasher::start`] lets the caller do that inside the
//! thread.

use super::error::ImageError;
use super::source::{CHUNK, Progress, Window, check};
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::io::{self, Read as _};
use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;

/// Ranges that wait for the thread. A decoder that is faster waits, so that what is to be hashed is
/// still in the page cache; and a cancelled import waits for no more than this.
const QUEUE: usize = 16;
/// Bytes that the thread reads at once: they stay in a core's cache.
const PIECE: usize = 128 << 10;
/// The thread's stack, bytes: an eighth of what Rust gives, which is taken out of an address space
/// that may be limited.
const STACK: usize = 256 << 10;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Hasher {
    work: SyncSender<Work>,
    digests: Receiver<io::Result<[u8; 32]>>,
}

/// Which of the two digests of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of {
    /// The bytes as they came.
    Packed,
    /// What they decompress to.
    Plain,
}

#[derive(Debug)]
enum Work {
    Begin(Of),
    Range(Of, Window),
    End(Of),
}

impl Hasher {
    /// Starts the thread, which runs `confine` before it reads anything.
    ///
    /// # Errors
    /// When the host has no thread to give, and of `confine`.
    pub fn start(confine: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (work, todo) = sync_channel(QUEUE);
        let (answers, digests) = sync_channel(1);
        let (said, confined) = sync_channel(1);
        // Made here, because the thread itself asks for no memory.
        let mut piece = vec![0; PIECE];
        Builder::new().name("sha256".to_owned()).stack_size(STACK).spawn(move || {
            let result = confine();
            let is_confined = result.is_ok();
            if said.send(result).is_ok() && is_confined {
                serve(&todo, &answers, &mut piece);
            }
        })?;
        confined.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Self { work, digests })
    }

    /// A digest of no bytes yet. One of each kind at a time.
    pub(crate) fn begin(&self, of: Of) -> Hash<'_> {
        self.tell(Work::Begin(of));
        Hash { hasher: self, of, known: Cell::new(0) }
    }

    /// That the thread has ended shows when it is asked for a digest.
    fn tell(&self, work: Work) {
        drop(self.work.send(work));
    }
}

/// A digest that grows with what is there to be read.
#[derive(Debug)]
pub(crate) struct Hash<'a> {
    hasher: &'a Hasher,
    of: Of,
    /// Bytes that the thread knows of.
    known: Cell<u64>,
}

impl Hash<'_> {
    /// The next `len` bytes of `window`.
    pub(crate) fn add(&self, window: &Window, len: u64) {
        let at = self.known.get();
        if let Some(next) = window.part(at, len) {
            self.known.set(at + len);
            self.hasher.tell(Work::Range(self.of, next));
        }
    }

    /// The digest of the whole window, whatever of it was added before.
    ///
    /// # Errors
    /// `Read`, `Hashing`, `Cancelled`.
    pub(crate) fn finish(self, window: &Window, progress: &dyn Progress) -> Result<[u8; 32], ImageError> {
        while self.known.get() < window.len() {
            check(progress)?;
            self.add(window, (window.len() - self.known.get()).min(CHUNK as u64));
            progress.bytes(self.known.get(), window.len());
        }
        self.hasher.tell(Work::End(self.of));
        let digest = self.hasher.digests.recv().map_err(|_| ImageError::Hashing)?;
        digest.map_err(|source| ImageError::Read { source })
    }
}

fn ended() -> io::Error {
    io::Error::other("it has ended")
}

/// What the thread does.
fn serve(todo: &Receiver<Work>, answers: &SyncSender<io::Result<[u8; 32]>>, piece: &mut [u8]) {
    let mut both = Both::default();
    for work in todo {
        match work {
            Work::Begin(of) => *both.of(of) = Growing::default(),
            Work::Range(of, window) => both.of(of).read(&window, piece),
            Work::End(of) => {
                if answers.send(mem::take(both.of(of)).digest()).is_err() {
                    return;
                }
            }
        }
    }
}

#[derive(Default)]
struct Both {
    packed: Growing,
    plain: Growing,
}

impl Both {
    fn of(&mut self, of: Of) -> &mut Growing {
        match of {
            Of::Packed => &mut self.packed,
            Of::Plain => &mut self.plain,
        }
    }
}

#[derive(Default)]
struct Growing {
    hash: Sha256,
    failed: Option<io::Error>,
}

impl Growing {
    fn read(&mut self, window: &Window, piece: &mut [u8]) {
        let mut reader = window.reader();
        while self.failed.is_none() {
            match reader.read(piece) {
                Ok(0) => return,
                Ok(n) => self.hash.update(piece.get(..n).unwrap_or_default()),
                Err(error) => self.failed = Some(error),
            }
        }
    }

    fn digest(self) -> io::Result<[u8; 32]> {
        self.failed.map_or_else(|| Ok(self.hash.finalize().into()), Err)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::tests::maker::{Tar, file_of, gzip, window_of};
    use std::time::{Duration, Instant};

    fn sha256(data: &[u8]) -> [u8; 32] {
        Sha256::digest(data).into()
    }

    #[test]
    fn two_digests_grow_beside_each_other() {
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let (one, other) = (window_of(&data), window_of(b"other"));
        let hasher = Hasher::start(|| Ok(())).unwrap();
        let abandoned = hasher.begin(Of::Plain);
        abandoned.add(&one, 100);
        let (plain, packed) = (hasher.begin(Of::Plain), hasher.begin(Of::Packed));
        plain.add(&one, 1);
        packed.add(&other, 2);
        plain.add(&one, 2_000_000);
        // Not there: the rest is added by the end.
        plain.add(&one, 1_000_000);
        assert_eq!(packed.finish(&other, &()).unwrap(), sha256(b"other"));
        assert_eq!(plain.finish(&one, &()).unwrap(), sha256(&data));
        let none = hasher.begin(Of::Packed).finish(&window_of(b""), &()).unwrap();
        assert_eq!(none, sha256(b""));
    }

    #[test]
    fn a_file_that_is_cut_is_an_error_once() {
        let hasher = Hasher::start(|| Ok(())).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let window = Window::whole(file.try_clone().unwrap()).unwrap();
        file.set_len(5).unwrap();
        let result = hasher.begin(Of::Plain).finish(&window, &());
        assert!(matches!(result, Err(ImageError::Read { .. })), "{result:?}");
        assert_eq!(hasher.begin(Of::Plain).finish(&window_of(b"x"), &()).unwrap(), sha256(b"x"));
    }

    #[test]
    fn who_cannot_confine_it_has_none() {
        let error = Hasher::start(|| Err(io::Error::other("no Landlock"))).unwrap_err();
        assert_eq!(error.to_string(), "no Landlock");
        let error = Hasher::start(|| std::panic::resume_unwind(Box::new(()))).unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
    }

    /// However much it has taken before.
    #[test]
    fn a_thread_that_has_ended_is_an_error_and_never_waited_for() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        let window = Window::whole(file).unwrap();
        let archive = gzip(&Tar::default().file("a", b"x").end());
        let dying = |after: usize| {
            let (work, todo) = sync_channel::<Work>(QUEUE);
            let (answers, digests) = sync_channel(1);
            Builder::new()
                .spawn(move || {
                    let _kept = answers;
                    todo.iter().take(after).for_each(drop);
                    std::thread::sleep(Duration::from_millis(20));
                    std::panic::resume_unwind(Box::new(()));
                })
                .unwrap();
            Hasher { work, digests }
        };
        for after in [0, 1, 2, 3, 2 * QUEUE] {
            let begun = Instant::now();
            let hasher = dying(after);
            let result = hasher.begin(Of::Plain).finish(&window, &());
            assert!(matches!(result, Err(ImageError::Hashing)), "{after}: {result:?}");
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        let dir = tempfile::tempdir().unwrap();
        let limits = crate::Limits::for_build_size(64 << 20);
        let source = file_of(&archive);
        let result = crate::import(source, dir.path(), 64 << 20, None, limits, &dying(2), &());
        assert!(matches!(result, Err(ImageError::Hashing)), "{result:?}");
    }
}
