//! The user's own git, on the user's own repository. No repository, configuration or hook of a
//! guest is ever given to it.

use crate::error::explained;
use crate::work;
use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// What a shell or a hook around us may have set: it would lead git to another repository than the
/// one that was named.
const FORGET: [&str; 12] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INDEX_VERSION",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_ATTR_SOURCE",
    "GIT_EXTERNAL_DIFF",
    "GIT_DIFF_OPTS",
];
/// Work in the background and helpers would outlive us, and hooks are for what the user does. The
/// index is our own copy.
const SETTINGS: [&str; 9] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.safecrlf=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "color.ui=false",
];
/// Memory of a git that reads what a guest has packed, bytes. A pack of a few megabytes can hold an
/// object of any size, and git unpacks those that are no files, and what is told as a difference,
/// in memory. Files above `core.bigFileThreshold` (512 MiB) it reads piece by piece.
const GUESTS_MEMORY: u64 = 2 << 30;
/// Of what git says when it fails, bytes.
const MAX_SAID: usize = 2000;

/// The oldest that has `--attr-source`, without which an export would obey the guest's attributes.
const OLDEST: (u32, u32) = (2, 41);

/// # Errors
/// There is no git here, or an old one.
pub(crate) fn check_version() -> anyhow::Result<()> {
    let said = Command::new("git").arg("version").output();
    let said = said.map_err(|error| explained(format!("cannot run git: {error}"), "install git on this host"))?;
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if version(&said).is_some_and(|found| found >= OLDEST) {
        return Ok(());
    }
    let (major, minor) = OLDEST;
    Err(explained(format!("this host has {said}"), format!("workspaces need git {major}.{minor} or newer")))
}

/// Of `git version 2.47.3`, and of what others append.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// How git is called.
#[derive(Clone, Debug)]
pub(crate) struct Git {
    options: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    memory: Option<u64>,
}

impl Git {
    /// In a folder of the user's.
    pub(crate) fn within(folder: &Path) -> Self {
        let mut git = Self { options: vec!["-C".into(), folder.into()], env: Vec::new(), memory: None };
        for setting in SETTINGS {
            git = git.set(setting);
        }
        git
    }

    /// With a setting, `name=value`.
    pub(crate) fn set(mut self, setting: &str) -> Self {
        self.options.extend(["-c".into(), setting.into()]);
        self
    }

    /// With an option of git itself.
    pub(crate) fn option(mut self, option: impl Into<OsString>) -> Self {
        self.options.push(option.into());
        self
    }

    /// With a variable.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// For what a guest has packed.
    pub(crate) fn for_guests(self) -> Self {
        self.with_memory(GUESTS_MEMORY)
    }

    fn with_memory(mut self, most: u64) -> Self {
        self.memory = Some(most);
        self
    }

    /// The process, not started. [`Git::start`] starts it.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new("git");
        command.args(&self.options).args(arguments);
        for name in FORGET {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").env("GIT_NO_REPLACE_OBJECTS", "1");
        command.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_DEFAULT_REF_FORMAT", "files").envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it writes.
    ///
    /// # Errors
    /// What it says when it fails.
    pub(crate) fn bytes<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<Vec<u8>> {
        self.feed(arguments, b"")
    }

    /// What it writes, without the end of the last line.
    ///
    /// # Errors
    /// What it says when it fails; text that is not UTF-8.
    pub(crate) fn text<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<String> {
        line(self.bytes(arguments)?)
    }

    /// The same, and `None` when it fails.
    ///
    /// # Errors
    /// When git cannot be started.
    pub(crate) fn maybe<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<Option<String>> {
        let output = self.output(arguments, b"")?;
        if output.status.success() { line(output.stdout).map(Some) } else { Ok(None) }
    }

    /// What it writes when it reads `input`.
    ///
    /// # Errors
    /// As [`Git::bytes`].
    pub(crate) fn feed<A: AsRef<OsStr>>(&self, arguments: &[A], input: &[u8]) -> anyhow::Result<Vec<u8>> {
        let output = self.output(arguments, input)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(said(arguments.first().map(AsRef::as_ref), &output))
    }

    /// Status and outputs.
    ///
    /// # Errors
    /// When git cannot be started.
    pub(crate) fn output<A: AsRef<OsStr>>(&self, arguments: &[A], input: &[u8]) -> anyhow::Result<Output> {
        let mut command = self.command(arguments);
        if input.is_empty() {
            return self.ended(&mut command);
        }
        let mut child = self.start(command.stdin(Stdio::piped()))?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // Git answers while it still reads.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            work::outcome(child).context("git cannot be waited for")
        })
    }

    /// Status and outputs of a command that this git has made.
    ///
    /// # Errors
    /// When git cannot be started.
    pub(crate) fn ended(&self, command: &mut Command) -> anyhow::Result<Output> {
        work::outcome(self.start(command)?).context("git cannot be waited for")
    }

    /// Starts a command that this git has made.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, command: &mut Command) -> anyhow::Result<Child> {
        match self.memory {
            None => command.spawn(),
            Some(most) => spawn_within(command, most),
        }
        .map_err(not_started)
    }
}

/// Starts a process that may have so much memory (`RLIMIT_DATA` of setrlimit(2), which does not
/// count the packs that git maps). It is our own limit while it is started, because nothing else
/// sets one before the process runs.
fn spawn_within(command: &mut Command, most: u64) -> io::Result<Child> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ours = getrlimit(Resource::Data);
    let current = Some(ours.current.map_or(most, |current| current.min(most)));
    setrlimit(Resource::Data, Rlimit { current, ..ours })?;
    let child = command.spawn();
    setrlimit(Resource::Data, ours)?;
    child
}

/// Two commands, each with the git that has made it, the first one's output being the second one's
/// input.
///
/// # Errors
/// What the one says that fails.
pub(crate) fn pipe((git, mut from): (&Git, Command), (other, mut to): (&Git, Command)) -> anyhow::Result<Vec<u8>> {
    let mut first = git.start(&mut from)?;
    let between = first.stdout.take().context("a pipe is missing")?;
    let second = other.start(to.stdin(between))?;
    // Dropped, so that the first one learns when the second has ended.
    drop(to);
    // Both are waited for, whatever becomes of one.
    let (second, first) = (work::outcome(second), work::outcome(first));
    let (second, first) = (second?, first?);
    if !second.status.success() {
        return Err(said(None, &second));
    }
    if !first.status.success() {
        return Err(said(None, &first));
    }
    Ok(second.stdout)
}

pub(crate) fn not_started(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return explained("there is no git on this host", "install it (Debian, Fedora: git)");
    }
    anyhow::Error::new(error).context("git cannot be started")
}

fn said(verb: Option<&OsStr>, output: &Output) -> anyhow::Error {
    let text = String::from_utf8_lossy(&output.stderr);
    let text: String = text.trim().chars().take(MAX_SAID).collect();
    let verb = verb.map(|verb| format!("git {}", verb.to_string_lossy())).unwrap_or_else(|| "git".to_owned());
    if text.is_empty() {
        anyhow::anyhow!("{verb} ended with {}", output.status)
    } else {
        anyhow::anyhow!("{verb}: {text}")
    }
}

fn line(bytes: Vec<u8>) -> anyhow::Result<String> {
    let text =
        String::from_utf8(bytes).context("git wrote a name that is not UTF-8, which banger does not support here")?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_small_pack_that_is_large_in_memory_is_refused() {
        if check_version().is_err() {
            eprintln!("skipped: no git");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let git = Git::within(folder.path());
        git.bytes(&["init", "--quiet"]).unwrap();
        // A tree of 256 MiB, which git reads in memory before it looks at it.
        const SIZE: u64 = 256 << 20;
        let mut pack = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        io::copy(&mut io::Read::take(io::repeat(b'x'), SIZE), &mut pack).unwrap();
        // Kind and size in sevens of bits (gitformat-pack(5)): 2 is a tree.
        let bits = |from: u64, count: u64| u8::try_from(from & ((1 << count) - 1)).unwrap();
        let (mut head, mut size) = (vec![0x80 | (2 << 4) | bits(SIZE, 4)], SIZE >> 4);
        while size > 0 {
            head.push(bits(size, 7) | if size > 127 { 0x80 } else { 0 });
            size >>= 7;
        }
        let bytes = [b"PACK\0\0\0\x02\0\0\0\x01".to_vec(), head, pack.finish().unwrap(), vec![0; 20]].concat();
        let ours = getrlimit(Resource::Data);
        let read = |git: Git| git.output(&["index-pack", "--stdin"], &bytes);
        let text = |output: Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let said = text(read(git.clone().with_memory(100 << 20)).unwrap());
        assert!(said.contains("ut of memory"), "{said}");
        // Otherwise it is read, and refused for its wrong sum.
        let said = text(read(git).unwrap());
        assert!(!said.is_empty() && !said.contains("ut of memory"), "{said}");
        assert_eq!(getrlimit(Resource::Data), ours, "our own limit stayed");
    }

    #[test]
    fn versions_are_read_as_git_says_them() {
        assert_eq!(version("git version 2.47.3"), Some((2, 47)));
        assert_eq!(version("git version 2.39.5 (Apple Git-154)"), Some((2, 39)));
        assert_eq!(version("git version 2.9.rc1"), Some((2, 9)));
        assert_eq!(version("hub version 1.2"), None);
    }
}
