//! `bangerd convert`: reads its orders, gives everything else up, and converts.
//!
//! Started by [`super::Converter`] only, with what a user has brought as standard input and a
//! socket as standard output. Two threads, no runtime: the second computes digests, and is confined
//! before the first is. Every step of [`confine`] is irreversible; nothing of the input is read
//! before the last one.

use super::{ConvertError, Orders, Said, calls, work};
use banger_image::Progress;
use banger_image::hashing::Hasher;
use banger_vmm::confine::floor;
use landlock::{AccessFs, BitFlags, make_bitflags};
use nix::sys::resource::{Resource, setrlimit};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The word after `bangerd` that selects this.
pub(crate) const COMMAND: &str = "convert";

/// Orders are some hundred bytes.
const MAX_ORDERS: u64 = 64 * 1024;
/// Address space, bytes: the tree of the largest image that is accepted, the window of an xz
/// stream, and this program.
const MEMORY: u64 = 1 << 30;
/// Seconds of a CPU: a hundred times what a Debian desktop takes.
const SECONDS: u64 = 3600;
/// Descriptors: the input, its spools, what is written.
const DESCRIPTORS: u64 = 1024;
/// How often it is told how far this is.
const TELL: Duration = Duration::from_millis(200);

/// What it may do in its folder, and nowhere else.
const RIGHTS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir
});

#[derive(Debug, thiserror::Error)]
enum Step {
    #[error("no orders: this is not started by hand")]
    Orders,
    #[error("cannot take over its descriptors: {0}")]
    Descriptors(#[source] io::Error),
    #[error("cannot end with the daemon, or limit itself: {0}")]
    Limits(#[from] nix::Error),
    #[error(transparent)]
    Landlock(#[from] floor::LandlockError),
    #[error("its filter of system calls: {0}")]
    Filter(#[from] calls::FilterError),
    #[error("the thread that computes digests: {0}")]
    Hasher(#[source] io::Error),
}

/// Converts; the exit status tells nobody anything.
#[must_use]
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(step) => {
            eprintln!("bangerd {COMMAND}: {step}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Step> {
    let channel = io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(Step::Descriptors)?;
    let source = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(Step::Descriptors)?;
    let mut line = String::new();
    BufReader::new(&channel).take(MAX_ORDERS).read_line(&mut line).map_err(Step::Descriptors)?;
    let orders: Orders = serde_json::from_str(&line).map_err(|_| Step::Orders)?;
    let teller = Teller { channel: RefCell::new(channel), gone: Cell::new(false), told: Cell::new(None) };
    let result = match confine(&orders.staging, confine_hasher) {
        Ok(hasher) => work(&orders, source, &hasher, &teller),
        Err(step) => Err(ConvertError::Host(format!("cannot convert: {step}"))),
    };
    teller.say(&Said::Ended(Box::new(result)));
    Ok(())
}

fn confine(staging: &Path, hasher: impl FnOnce() -> Result<(), Step> + Send + 'static) -> Result<Hasher, Step> {
    // 1. It ends with the thread that waits for it, so that nothing is written behind the back of
    //    the next daemon.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // 2. A bomb meets a limit here, not the host's.
    for (resource, limit) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, SECONDS),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    // 3. No exec from here on gains anything.
    nix::sys::prctl::set_no_new_privs()?;
    // 4. One folder. No port, no signal, no abstract socket.
    let rules = floor::nothing().map_err(floor::LandlockError::Kernel)?;
    floor::enforce(floor::allow(rules, staging, RIGHTS)?)?;
    // 5. The second thread, before no thread may be started. Landlock and the filter are each
    //    thread's own: it inherits what is above, and is confined when this returns.
    let hasher = Hasher::start(|| hasher().map_err(io::Error::other)).map_err(Step::Hasher)?;
    // 6. The system calls of a program that reads and writes files.
    calls::restrict(calls::CONVERTING)?;
    Ok(hasher)
}

/// In the thread that computes digests. The two share their memory, so this is no wall between
/// them; but through neither does the process reach more than [`confine`] leaves.
fn confine_hasher() -> Result<(), Step> {
    floor::enforce(floor::nothing().map_err(floor::LandlockError::Kernel)?)?;
    Ok(calls::restrict(calls::HASHING)?)
}

/// Says how far it is, and notices when nobody listens any more.
struct Teller {
    channel: RefCell<File>,
    gone: Cell<bool>,
    told: Cell<Option<Instant>>,
}

impl Teller {
    fn say(&self, said: &Said) {
        let Ok(mut line) = serde_json::to_vec(said) else { return };
        line.push(b'\n');
        if self.channel.borrow_mut().write_all(&line).is_err() {
            self.gone.set(true);
        }
    }
}

impl Progress for Teller {
    fn stage(&self, name: &'static str) {
        self.say(&Said::Stage(name.to_owned()));
    }

    fn bytes(&self, done: u64, total: u64) {
        let now = Instant::now();
        if self.told.get().is_none_or(|told| now.duration_since(told) > TELL) {
            self.told.set(Some(now));
            self.say(&Said::Bytes(done, total));
        }
    }

    fn warn(&self, text: &str) {
        self.say(&Said::Warning(text.to_owned()));
    }

    fn cancelled(&self) -> bool {
        self.gone.get()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use nix::sys::resource::getrlimit;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    /// Says to this test that it is the process which is confined, and where.
    const WHERE: &str = "BANGER_TEST_CONFINED";

    /// In a process of its own: the limits are the process's, and cannot be taken back.
    #[test]
    fn a_converter_reaches_its_folder_and_nothing_else() {
        if let Some(folder) = std::env::var_os(WHERE) {
            return attempts(Path::new(&folder));
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("own")).unwrap();
        std::fs::write(folder.path().join("own/known"), "known").unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        let name = "convert::child::tests::a_converter_reaches_its_folder_and_nothing_else";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = again.args(["--exact", name, "--nocapture"]).env(WHERE, folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
        assert!(!folder.path().join("made").exists() && folder.path().join("own/made").exists());
    }

    fn attempts(folder: &Path) {
        let path = |name: &str| -> PathBuf { folder.join(name) };
        let denied = |what: &'static str, done: io::Result<()>| match done {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            other => Some(format!("{what}: {other:?}")),
        };
        // Confined is the thread: what it has found out is looked at outside.
        let own = path("own");
        let (known, made, secret, outside) = (path("own/known"), path("own/made"), path("secret"), path("made"));
        let hashers = [path("own/known"), path("own/made")];
        let beyond = move || {
            [
                denied("reads a file outside", std::fs::read(secret).map(drop)),
                denied("makes a file outside", std::fs::write(outside, "x")),
                denied("lists a folder outside", std::fs::read_dir("/").map(drop)),
                denied("connects", TcpStream::connect(("127.0.0.1", 9)).map(drop)),
                denied("has a socket", UnixStream::pair().map(drop)),
                denied("starts a thread", std::thread::Builder::new().spawn(|| {}).map(drop)),
                denied("runs a program", std::process::Command::new("/bin/true").status().map(drop)),
            ]
        };
        let (say, said) = std::sync::mpsc::channel();
        let second = {
            let beyond = beyond.clone();
            move || {
                confine_hasher()?;
                let own = hashers.map(|path| denied("the second thread opens a file", std::fs::read(path).map(drop)));
                say.send((own, beyond())).unwrap();
                Ok(())
            }
        };
        let confined = std::thread::spawn(move || {
            let hasher = confine(&own, second).unwrap();
            let good = std::fs::write(made, "x").is_ok() && std::fs::read(known).is_ok_and(|text| text == b"known");
            (good, beyond(), hasher)
        });
        let (good, refused, _hasher) = confined.join().unwrap();
        let (second, as_first) = said.recv().unwrap();
        let wrong: Vec<String> = refused.into_iter().chain(second).chain(as_first).flatten().collect();
        assert!(good && wrong.is_empty(), "its own files: {good}, {wrong:?}");
        for (resource, limit) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_AS, MEMORY),
            (Resource::RLIMIT_CPU, SECONDS),
            (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        ] {
            assert_eq!(getrlimit(resource).unwrap(), (limit, limit), "{resource:?}");
        }
    }
}
