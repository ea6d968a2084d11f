//! The checks that only the daemon can make. Each says what was found and, when it is not well, what to do.

use crate::privileged::PrivilegedError;
use crate::vm::Context;
use crate::vm::host::{check_kvm, find_vmm};
use banger_proto::model::{ApiError, Check, CheckStatus};
use banger_vmm::confine;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The oldest kernel that is supported: Landlock of ABI 6, and filters in deletions of connection tracking.
const KERNEL_FLOOR: (u32, u32) = (6, 12);
/// Below this no VM can be made with the default sizes, bytes.
const FREE_FLOOR: u64 = 16 << 30;

/// For how long an answer is given again. Each costs a process, a walk through the helper's ledger and the database, and
/// any user may ask.
const FRESH: Duration = Duration::from_secs(1);
/// For how long a binary is not asked again that gave no version. Its file says when there is another one.
const NO_VERSION: Duration = Duration::from_secs(10);

/// Which file a version line is of: another one in its place is asked anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binary {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Binary {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = path.metadata()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { path: path.to_owned(), device: meta.dev(), inode: meta.ino(), bytes: meta.len(), changed })
    }
}

/// The VMM's binary does not say what it is.
#[derive(Debug, thiserror::Error)]
#[error("firecracker")]
pub(crate) struct Firecracker(#[source] Box<dyn std::error::Error + Send + Sync>);

/// What a binary has said of itself, and when.
#[derive(Debug)]
struct Asked {
    binary: Binary,
    at: Instant,
    version: Result<String, ApiError>,
}

/// The checks, and what they found last. Callers who come at the same time get one answer.
#[derive(Debug)]
pub(crate) struct Doctor {
    firecracker: Option<PathBuf>,
    version: Mutex<Option<Asked>>,
    found: Mutex<Option<(Instant, Vec<Check>)>>,
}

impl Doctor {
    /// `firecracker`: the configured one.
    pub(crate) fn new(firecracker: Option<PathBuf>) -> Self {
        Self { firecracker, version: Mutex::default(), found: Mutex::default() }
    }

    /// The VMM's own version line, asked once of each binary.
    pub(crate) async fn vmm_version(&self) -> Result<String, ApiError> {
        let path = find_vmm(self.firecracker.as_deref())?;
        let binary = Binary::of(&path).map_err(|error| ApiError::from(Firecracker(Box::new(error))))?;
        let mut known = self.version.lock().await;
        if let Some(asked) = known.as_ref()
            && asked.binary == binary
            && (asked.version.is_ok() || asked.at.elapsed() < NO_VERSION)
        {
            return asked.version.clone();
        }
        let version = banger_vmm::api::version(&path).await;
        let version = version.map_err(|error| ApiError::from(Firecracker(Box::new(error))));
        *known = Some(Asked { binary, at: Instant::now(), version: version.clone() });
        version
    }

    /// All checks; at most [`FRESH`] old.
    pub(crate) async fn checks(&self, ctx: &Context) -> Vec<Check> {
        let mut found = self.found.lock().await;
        if let Some((at, checks)) = found.as_ref()
            && at.elapsed() < FRESH
        {
            return checks.clone();
        }
        let now = checks(ctx, self.vmm_version().await).await;
        *found = Some((Instant::now(), now.clone()));
        now
    }

    /// Something was mended: the next caller gets a new answer.
    pub(crate) async fn forget(&self) {
        self.found.lock().await.take();
    }
}

async fn checks(ctx: &Context, vmm_version: Result<String, ApiError>) -> Vec<Check> {
    vec![
        helper(ctx).await,
        of("kvm", check_kvm().map(|()| "the daemon can use /dev/kvm".to_owned()).map_err(ApiError::from)),
        of("firecracker", vmm_version),
        guest_binary(&ctx.paths.guest_binary),
        kernel(&rustix::system::uname().release().to_string_lossy()),
        landlock(confine::supported()),
        cgroup(ctx),
        free_space(&ctx.paths.state),
        leaks(ctx).await,
    ]
}

fn check(name: &str, status: CheckStatus, detail: impl Into<String>) -> Check {
    Check { name: name.to_owned(), status, detail: detail.into() }
}

fn of(name: &str, found: Result<String, ApiError>) -> Check {
    match found {
        Ok(detail) => check(name, CheckStatus::Pass, detail),
        Err(error) => {
            check(name, CheckStatus::Fail, format!("{}. {}", error.message, error.hint).trim_end().to_owned())
        }
    }
}

async fn helper(ctx: &Context) -> Check {
    match ctx.privileged.list(None).await {
        // The hello of the connection compared the protocol versions.
        Ok(_) => check("helper", CheckStatus::Pass, "banger-priv answers, with this protocol version"),
        Err(error @ PrivilegedError::Refused { .. }) => check("helper", CheckStatus::Fail, crate::error::chain(&error)),
        Err(error) => of("helper", Err(error.at("the helper").into())),
    }
}

fn guest_binary(path: &Path) -> Check {
    if path.is_file() {
        check("guest init", CheckStatus::Pass, path.display().to_string())
    } else {
        check(
            "guest init",
            CheckStatus::Fail,
            format!("{} is missing. Install the package banger again.", path.display()),
        )
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let status = if version >= KERNEL_FLOOR { CheckStatus::Pass } else { CheckStatus::Fail };
    let floor = format!("{}.{}", KERNEL_FLOOR.0, KERNEL_FLOOR.1);
    let detail = match status {
        CheckStatus::Pass => format!("Linux {release}"),
        _ => format!(
            "Linux {release} is older than {floor}. banger needs Linux {floor} or newer and systemd 254 or newer."
        ),
    };
    check("kernel", status, detail)
}

/// Without it neither the helper nor a VMM starts: that it is compiled in does not mean that it is switched on.
fn landlock<E: std::fmt::Display>(supported: Result<(), E>) -> Check {
    match supported {
        Ok(()) => check("landlock", CheckStatus::Pass, "Landlock confines VMMs and the helper (ABI 6)"),
        Err(error) => check(
            "landlock",
            CheckStatus::Fail,
            format!(
                "this kernel does not confine VMMs ({error}). banger needs Landlock of ABI 6 or newer: Linux 6.12 with \
                 landlock in its list of security modules (lsm= on the kernel's command line, /sys/kernel/security/lsm)."
            ),
        ),
    }
}

fn cgroup(ctx: &Context) -> Check {
    if ctx.machine.delegated() {
        check("cgroup", CheckStatus::Pass, "delegated; VMs have limits of their own")
    } else {
        let detail = "not delegated: VMs run without limits and are found by pid. Start bangerd by its systemd unit.";
        check("cgroup", CheckStatus::Warn, detail)
    }
}

fn free_space(folder: &Path) -> Check {
    let Ok(free) = crate::room::free(folder) else {
        return check("disk space", CheckStatus::Warn, format!("cannot look at {}", folder.display()));
    };
    let detail = format!("{} GiB free at {}", free >> 30, folder.display());
    if free < FREE_FLOOR {
        let more = "A VM with the default sizes reserves 8 GiB at once and may use 8 GiB more.";
        return check("disk space", CheckStatus::Warn, format!("{detail}. {more}"));
    }
    check("disk space", CheckStatus::Pass, detail)
}

async fn leaks(ctx: &Context) -> Check {
    match crate::vm::sweep::count(ctx).await {
        Ok(0) => check("leaks", CheckStatus::Pass, "nothing is left behind"),
        Ok(count) => {
            let detail = format!("{count} things belong to no VM. As an administrator: banger doctor --leaks --fix");
            check("leaks", CheckStatus::Warn, detail)
        }
        Err(error) => check("leaks", CheckStatus::Warn, format!("cannot look: {}", error.message())),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_kernel_without_landlock_is_told_what_to_do() {
        let failed = landlock(Err("not supported"));
        assert_eq!(failed.status, CheckStatus::Fail);
        assert!(failed.detail.contains("(not supported)") && failed.detail.contains("lsm="), "{}", failed.detail);
        assert_eq!(landlock(Ok::<(), String>(())).status, CheckStatus::Pass);
    }

    #[test]
    fn the_kernel_floor() {
        for (release, status) in [
            ("6.12.0", CheckStatus::Pass),
            ("6.12.48+deb13-cloud-amd64", CheckStatus::Pass),
            ("7.0.1", CheckStatus::Pass),
            ("6.11.9-arch1-1", CheckStatus::Fail),
            ("5.14.0-503.el9", CheckStatus::Fail),
            ("odd", CheckStatus::Fail),
        ] {
            assert_eq!(kernel(release).status, status, "{release}");
        }
    }

    /// A program that counts how often it was started.
    #[tokio::test]
    async fn a_binary_says_its_version_once() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (path, count) = (dir.path().join("firecracker"), dir.path().join("count"));
        let write = |version: &str| {
            let script = format!("#!/bin/sh\necho x >> {}\necho {version}\n", count.display());
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        write("Firecracker v1");
        let doctor = std::sync::Arc::new(Doctor::new(Some(path.clone())));
        let askers = (0..32).map(|_| {
            let doctor = std::sync::Arc::clone(&doctor);
            tokio::spawn(async move { doctor.vmm_version().await })
        });
        for answer in futures::future::join_all(askers).await {
            assert_eq!(answer.unwrap().unwrap(), "Firecracker v1");
        }
        let started = || std::fs::read_to_string(&count).unwrap().lines().count();
        assert_eq!(started(), 1);
        write("Firecracker v22");
        assert_eq!(doctor.vmm_version().await.unwrap(), "Firecracker v22");
        assert_eq!(started(), 2);
        // One that has none is not asked at each call either.
        write("; exit 1");
        for _ in 0..32 {
            doctor.vmm_version().await.unwrap_err();
        }
        assert_eq!(started(), 3);
    }
}
