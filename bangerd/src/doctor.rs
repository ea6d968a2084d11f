//! The checks that only the daemon can make. Each says what was found and, when it is not well, what to do.

use crate::firecracker::confine;
use crate::privileged::PrivilegedError;
use crate::vm::Context;
use crate::vm::host::{check_kvm, find_vmm};
use banger_proto::model::{ApiError, Check, CheckStatus};
use std::path::Path;

/// The oldest kernel that is supported; see spec.md.
const KERNEL_FLOOR: (u32, u32) = (6, 12);
/// Below this no VM can be made with the default sizes, bytes.
const FREE_FLOOR: u64 = 16 << 30;

pub(crate) async fn checks(ctx: &Context, firecracker: Option<&Path>) -> Vec<Check> {
    vec![
        helper(ctx).await,
        of("kvm", check_kvm().map(|()| "the daemon can use /dev/kvm".to_owned())),
        of("firecracker", vmm_version(firecracker).await),
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

/// The VMM's own version line.
pub(crate) async fn vmm_version(named: Option<&Path>) -> Result<String, ApiError> {
    let binary = find_vmm(named)?;
    let version = crate::firecracker::api::version(&binary).await;
    version.map_err(|error| crate::error::failed("firecracker", &error))
}

async fn helper(ctx: &Context) -> Check {
    match ctx.privileged.list(None).await {
        // The hello of the connection compared the protocol versions.
        Ok(_) => check("helper", CheckStatus::Pass, "banger-priv answers, with this protocol version"),
        Err(error @ PrivilegedError::Refused { .. }) => check("helper", CheckStatus::Fail, crate::error::chain(&error)),
        Err(error) => of("helper", Err(error.api("the helper"))),
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
    match crate::vm::orphans::count(ctx).await {
        Ok(0) => check("leaks", CheckStatus::Pass, "nothing is left behind"),
        Ok(count) => {
            let detail = format!("{count} things belong to no VM. As an administrator: banger doctor --leaks --fix");
            check("leaks", CheckStatus::Warn, detail)
        }
        Err(error) => check("leaks", CheckStatus::Warn, format!("cannot look: {}", error.message)),
    }
}

#[cfg(test)]
mod tests {
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
}
