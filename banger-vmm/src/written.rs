//! Tells when a file was written to, without looking at it again and again (inotify(7)).
//!
//! Called for consoles, by the monitor and by whoever follows one. A user has 128 instances of
//! inotify (`fs.inotify.max_user_instances`), and the daemon has many consoles: one instance and
//! one thread, which sleeps while nothing is written, serve all. A watch tells once and is gone
//! (`IN_ONESHOT`), so a guest that floods its console wakes its readers as often as they ask, and
//! fills no queue of the kernel.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A file whose writes the kernel does not tell is looked at this often.
const LOOK: Duration = Duration::from_millis(250);
/// Events for [`thread`] to read at once, bytes.
const EVENTS: usize = 4096;

/// Who waits, by the kernel's number of the watch. A watch that has told is taken out, and its
/// receivers see that the sender is gone.
type Waiting = HashMap<i32, watch::Sender<()>>;

#[derive(Debug)]
struct Instance {
    inotify: OwnedFd,
    waiting: Mutex<Waiting>,
}

/// The one of this process; `None` where the kernel has none for it.
fn instance() -> Option<&'static Arc<Instance>> {
    static INSTANCE: OnceLock<Option<Arc<Instance>>> = OnceLock::new();
    let begin = || match Instance::begin() {
        Ok(instance) => Some(instance),
        Err(error) => {
            tracing::warn!(%error, "no inotify: consoles are looked at four times a second instead");
            None
        }
    };
    INSTANCE.get_or_init(begin).as_ref()
}

impl Instance {
    fn begin() -> io::Result<Arc<Self>> {
        let instance = Arc::new(Self { inotify: inotify::init(CreateFlags::CLOEXEC)?, waiting: Mutex::default() });
        let for_thread = Arc::clone(&instance);
        std::thread::Builder::new().name("written".to_owned()).spawn(move || thread(&for_thread))?;
        Ok(instance)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change is one insert or remove.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is held over the call: the thread cannot hear of a watch before it is known here.
    fn add(&self, path: &Path, events: WatchFlags) -> Result<Armed, Errno> {
        let mut waiting = self.waiting();
        let watch = inotify::add_watch(&self.inotify, path, events | WatchFlags::ONESHOT)?;
        // The kernel has one watch for a file, however many wait for it.
        let told = waiting.entry(watch).or_insert_with(|| watch::channel(()).0).subscribe();
        Ok(Armed { watch, told })
    }

    fn arm(&self, path: &Path) -> Result<Armed, Errno> {
        let written = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        match (self.add(path, written), path.parent()) {
            (Err(Errno::NOENT), Some(folder)) => {
                let folder = self.add(folder, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
                // It may have been made between the two.
                self.add(path, written).or(Ok(folder))
            }
            (armed, _) => armed,
        }
    }
}

/// Wakes those who wait for what the kernel tells about.
fn thread(instance: &Instance) {
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    let mut reader = inotify::Reader::new(&instance.inotify, &mut buffer);
    loop {
        match reader.next() {
            // Events were lost: everybody may have missed one.
            Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => instance.waiting().clear(),
            Ok(event) => drop(instance.waiting().remove(&event.wd())),
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot read from inotify");
                // Nobody may wait for what nobody would tell.
                instance.waiting().clear();
                std::thread::sleep(LOOK);
            }
        }
    }
}

#[derive(Debug)]
struct Armed {
    watch: i32,
    told: watch::Receiver<()>,
}

/// Waits for a file to be written to, made, cut or removed. Reading it after this was made, and
/// then waiting, misses nothing.
#[derive(Debug)]
pub struct Written(Option<Armed>);

impl Written {
    /// From now on. Opens nothing and reads nothing, but looks the path up: not for a thread that
    /// may not wait for a disk.
    #[must_use]
    pub fn after(path: &Path) -> Self {
        let armed = instance().map(|instance| instance.arm(path));
        if let Some(Err(error)) = &armed {
            tracing::debug!(%error, "{}: looked at four times a second", path.display());
        }
        Self(armed.and_then(Result::ok))
    }

    /// Of a file that was not looked up: it is looked at, now and then.
    #[must_use]
    pub fn unknown() -> Self {
        Self(None)
    }

    /// Returns when it was written to, at once when that is long ago; now and then for nothing.
    pub async fn wait(&mut self) {
        match &mut self.0 {
            // The sender sends nothing. It is dropped.
            Some(armed) => {
                let _ = armed.told.changed().await;
            }
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let (Some(armed), Some(instance)) = (self.0.take(), instance()) else { return };
        let mut waiting = instance.waiting();
        let last = waiting.get(&armed.watch).is_some_and(|told| told.receiver_count() <= 1);
        if last && waiting.remove(&armed.watch).is_some() {
            // One that has told meanwhile is gone already.
            let _ = inotify::remove_watch(&instance.inotify, armed.watch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write as _;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);

    fn append(path: &Path) {
        File::options().append(true).open(path).unwrap().write_all(b"x").unwrap();
    }

    async fn tells(written: &mut Written) {
        assert!(written.0.is_some(), "it would only be looked at");
        timeout(SOON, written.wait()).await.unwrap();
    }

    async fn is_silent(written: &mut Written) {
        assert!(timeout(2 * LOOK, written.wait()).await.is_err());
    }

    #[tokio::test]
    async fn everybody_who_waits_for_a_file_is_told_of_a_write_to_that_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("console"), folder.path().join("other"));
        File::create(&path).unwrap();
        File::create(&other).unwrap();
        let (mut one, mut two) = (Written::after(&path), Written::after(&path));
        let mut of_other = Written::after(&other);
        append(&path);
        tells(&mut one).await;
        tells(&mut two).await;
        is_silent(&mut of_other).await;
        // A watch tells once; the next tells again.
        let mut again = Written::after(&path);
        is_silent(&mut again).await;
        append(&path);
        tells(&mut again).await;
    }

    #[tokio::test]
    async fn what_was_written_before_the_wait_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        File::create(&path).unwrap();
        let mut written = Written::after(&path);
        append(&path);
        tokio::time::sleep(LOOK).await;
        tells(&mut written).await;
    }

    #[tokio::test]
    async fn a_file_that_is_made_cut_or_removed_is_told_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut made = Written::after(&path);
        fs::write(&path, "boot").unwrap();
        tells(&mut made).await;
        let mut cut = Written::after(&path);
        File::create(&path).unwrap();
        tells(&mut cut).await;
        let mut removed = Written::after(&path);
        fs::remove_file(&path).unwrap();
        tells(&mut removed).await;
    }

    #[tokio::test]
    async fn one_who_goes_takes_the_watch_of_no_other_away_and_the_last_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        File::create(&path).unwrap();
        let (gone, mut stays) = (Written::after(&path), Written::after(&path));
        let number = stays.0.as_ref().unwrap().watch;
        drop(gone);
        append(&path);
        tells(&mut stays).await;
        let last = Written::after(&path);
        let next = last.0.as_ref().unwrap().watch;
        assert_ne!(next, number);
        drop(last);
        assert!(!instance().unwrap().waiting().contains_key(&next));
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_no_endless_wait() {
        let mut written = Written::after(Path::new("/nowhere/console"));
        assert!(written.0.is_none());
        timeout(SOON, written.wait()).await.unwrap();
    }
}
