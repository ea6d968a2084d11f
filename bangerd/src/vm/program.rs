//! Which Firecracker the next VM is started with, and which one a VM runs in: version line and
//! SHA-256. A sum is computed once of each file; a version is asked for once of each file, or once
//! of each VM.
//!
//! What a VM runs in is read and never executed: a VMM is confined, and a program that it has put
//! in its own place must not run outside. So its version is its own word, over its API, and the sum
//! is what the kernel says that it runs.

use crate::util::{WorkerEnded, blocking};
use banger_policy::Digest;
use banger_proto::model::ApiError;
use banger_vmm::VmmError;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// For how long a binary is not asked again that gave no version. Its file says when there is
/// another one.
const NO_VERSION: Duration = Duration::from_secs(10);
/// Files that are remembered: the one of now, and those of VMs that were started before upgrades.
const REMEMBERED: usize = 8;
/// How much of a file is read at a time, bytes.
const PIECE: usize = 64 << 10;
/// No Firecracker is larger, bytes. What a VMM has put in its own place may be of any size.
const MAX_PROGRAM: u64 = 256 << 20;

/// What a program says of itself, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// `Firecracker v1.16.0`.
    pub(crate) version: String,
    pub(crate) sha256: Digest,
}

/// The VMM's binary does not say what it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnknownProgram {
    #[error("firecracker: {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("firecracker")]
    Ask(#[from] VmmError),
    #[error(transparent)]
    Worker(#[from] WorkerEnded),
}

/// Which file it is: another one in its place is asked anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Result<Self, UnknownProgram> {
        path.metadata().map(|meta| Self::from(&meta)).map_err(|error| UnknownProgram::Read(path.to_owned(), error))
    }
}

impl From<&Metadata> for Identity {
    fn from(meta: &Metadata) -> Self {
        let changed = (meta.ctime(), meta.ctime_nsec());
        Self { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), changed }
    }
}

/// What a file has said, and when.
#[derive(Debug)]
struct Asked {
    file: Identity,
    at: Instant,
    answer: Result<String, ApiError>,
}

impl Asked {
    fn counts(&self, file: &Identity) -> bool {
        self.file == *file && (self.answer.is_ok() || self.at.elapsed() < NO_VERSION)
    }
}

/// What is known of files. Callers who come at the same time get one answer.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    versions: Mutex<VecDeque<Asked>>,
    sums: Mutex<VecDeque<(Identity, Digest)>>,
}

impl Programs {
    /// Of a file that VMs are started with.
    pub(crate) async fn installed(&self, path: &Path) -> Result<Program, ApiError> {
        Ok(Program { version: self.version(path).await?, sha256: self.sum(path).await? })
    }

    /// Of a VMM that runs. `executable` is the kernel's link to its file.
    pub(crate) async fn running(&self, executable: &Path, api_socket: &Path) -> Result<Program, ApiError> {
        let version = banger_vmm::api::version_of_running(api_socket).await.map_err(UnknownProgram::from)?;
        Ok(Program { version, sha256: self.sum(executable).await? })
    }

    async fn version(&self, path: &Path) -> Result<String, ApiError> {
        let mut known = self.versions.lock().await;
        let file = Identity::of(path)?;
        if let Some(asked) = known.iter().find(|asked| asked.counts(&file)) {
            return asked.answer.clone();
        }
        let answer = banger_vmm::api::version(path).await.map_err(|error| ApiError::from(UnknownProgram::from(error)));
        known.retain(|asked| asked.file != file);
        remember(&mut known, Asked { file, at: Instant::now(), answer: answer.clone() });
        answer
    }

    async fn sum(&self, path: &Path) -> Result<Digest, UnknownProgram> {
        let mut known = self.sums.lock().await;
        let unread = |error| UnknownProgram::Read(path.to_owned(), error);
        let file = File::open(path).map_err(unread)?;
        let identity = Identity::from(&file.metadata().map_err(unread)?);
        if let Some((_, sum)) = known.iter().find(|(known, _)| *known == identity) {
            return Ok(*sum);
        }
        let owned = path.to_owned();
        let sum = blocking(move || sum_of(file).map_err(|error| UnknownProgram::Read(owned, error))).await?;
        remember(&mut known, (identity, sum));
        Ok(sum)
    }
}

fn remember<T>(known: &mut VecDeque<T>, new: T) {
    known.push_back(new);
    if known.len() > REMEMBERED {
        known.pop_front();
    }
}

fn sum_of(file: File) -> io::Result<Digest> {
    let (mut bytes, mut sum, mut read) = (file.take(MAX_PROGRAM + 1), Sha256::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        match bytes.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => {
                read += length as u64;
                sum.update(piece.get(..length).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if read > MAX_PROGRAM {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_PROGRAM} bytes")));
    }
    Digest::from_bytes(sum.finalize().into()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn write(path: &Path, script: &str) {
        std::fs::write(path, script).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// As coreutils compute it.
    fn sum_by_tool(path: &Path) -> String {
        let said = std::process::Command::new("sha256sum").arg(path).output().unwrap().stdout;
        String::from_utf8(said).unwrap().split(' ').next().unwrap().to_owned()
    }

    /// A program that counts how often it was started.
    #[tokio::test]
    async fn a_binary_says_its_version_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, count) = (dir.path().join("firecracker"), dir.path().join("count"));
        let says = |version: &str| format!("#!/bin/sh\necho x >> {}\necho {version}\n", count.display());
        write(&path, &says("Firecracker v1"));
        let programs = Arc::new(Programs::default());
        let askers = (0..32).map(|_| {
            let (programs, path) = (Arc::clone(&programs), path.clone());
            tokio::spawn(async move { programs.installed(&path).await })
        });
        for answer in futures::future::join_all(askers).await {
            let program = answer.unwrap().unwrap();
            assert_eq!((program.version.as_str(), program.sha256.to_string()), ("Firecracker v1", sum_by_tool(&path)));
        }
        let started = || std::fs::read_to_string(&count).unwrap().lines().count();
        assert_eq!(started(), 1);
        write(&path, &says("Firecracker v22"));
        assert_eq!(programs.installed(&path).await.unwrap().version, "Firecracker v22");
        assert_eq!(started(), 2);
        // One that has none is not asked at each call either.
        write(&path, &says("; exit 1"));
        for _ in 0..32 {
            programs.installed(&path).await.unwrap_err();
        }
        assert_eq!(started(), 3);
    }

    #[tokio::test]
    async fn a_program_that_was_replaced_is_still_the_one_that_runs_and_is_not_executed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, socket) = (dir.path().join("firecracker"), dir.path().join("api.sock"));
        std::fs::copy("/bin/sleep", &path).unwrap();
        let mut child = std::process::Command::new(&path).arg("60").spawn().unwrap();
        let executable = PathBuf::from(format!("/proc/{}/exe", child.id()));
        let first = sum_by_tool(&path);
        std::fs::remove_file(&path).unwrap();
        write(&path, "#!/bin/sh\necho Firecracker v2\n");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            for said in ["1.99.0", "a version\\u0007"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                let body = format!("{{\"firecracker_version\": \"{said}\"}}");
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let programs = Programs::default();
        // `sleep --version` would say another one.
        let program = programs.running(&executable, &socket).await.unwrap();
        assert_eq!((program.version.as_str(), program.sha256.to_string()), ("Firecracker v1.99.0", first));
        programs.running(&executable, &socket).await.unwrap_err();
        let next = programs.installed(&path).await.unwrap();
        assert_eq!((next.version.as_str(), next.sha256.to_string()), ("Firecracker v2", sum_by_tool(&path)));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_file_of_any_size_is_not_read_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firecracker");
        File::create(&path).unwrap().set_len(MAX_PROGRAM + 1).unwrap();
        assert!(matches!(Programs::default().sum(&path).await, Err(UnknownProgram::Read(..))));
    }
}
