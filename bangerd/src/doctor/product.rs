//! What the package and Firecracker bring: the helper, programs and their versions, the
//! configuration.

use super::Doctor;
use crate::config::FileState;
use crate::privileged::PrivilegedError;
use crate::vm::Context;
use crate::vm::program::Program;
use banger_policy::distribution::Family;
use banger_policy::vmm::{NEWEST_TESTED, OLDEST, Release};
use banger_proto::model::{ApiError, Check};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// What brings a helper back that does not answer: with its socket, which systemd may have lost
/// while it says that the unit listens (a unit that was masked for a while).
pub(super) const RESTART: &str = "sudo systemctl restart banger-priv.socket banger-priv bangerd   # VMs go on running";

pub(super) async fn checks(ctx: &Context, doctor: &Doctor, family: Family) -> Vec<Check> {
    let program = doctor.program().await;
    let binary = doctor.vmm().ok();
    let mut found = vec![
        helper(ctx).await,
        socket("helper's socket", &ctx.paths.helper_socket, "banger-priv.socket"),
        vmm(program, &doctor.place()),
        guest_binary(&ctx.paths.guest_binary, family),
        configuration(&FileState::of(&ctx.paths.config), &ctx.config.read_of(), &ctx.config.waiting()),
        leftover_configuration(&ctx.paths.config),
    ];
    if let Some(path) = binary {
        found.push(vmm_owner(&path, way(&path)));
    }
    found
}

async fn helper(ctx: &Context) -> Check {
    const NAME: &str = "helper";
    match ctx.privileged.list(None).await {
        // The hello of the connection compared the protocol versions.
        Ok(_) => Check::pass(NAME, "banger-priv answers, with this protocol version"),
        Err(error @ PrivilegedError::Refused { .. }) => {
            Check::fail(NAME, crate::error::chain(&error), "sudo journalctl --unit banger-priv --lines 20")
        }
        Err(error) => {
            let error: ApiError = error.at("the helper").into();
            Check::fail(NAME, error.message, RESTART)
        }
    }
}

fn socket(name: &str, path: &Path, unit: &str) -> Check {
    match path.metadata() {
        Ok(meta) if meta.file_type().is_socket() => Check::pass(name, path.display().to_string()),
        Ok(_) => Check::fail(
            name,
            format!("{} is no socket", path.display()),
            format!("sudo rm -r {} && sudo systemctl restart {unit}", path.display()),
        ),
        Err(error) => {
            Check::fail(name, format!("{}: {error}", path.display()), format!("sudo systemctl restart {unit}"))
        }
    }
}

/// `Firecracker v1.16.0`.
fn vmm(program: Result<Program, ApiError>, place: &Path) -> Check {
    const NAME: &str = "firecracker";
    let install = format!(
        "sudo install -D -o root -g root -m 0755 firecracker {}   # of release {}, from \
         https://github.com/firecracker-microvm/firecracker/releases",
        place.display(),
        NEWEST_TESTED
    );
    let Program { version: line, sha256 } = match program {
        Ok(program) => program,
        Err(error) => return Check::fail(NAME, error.message, install),
    };
    match Release::of(&line) {
        Some(release) if release < OLDEST => Check::fail(NAME, format!("{line} is older than {OLDEST}"), install),
        Some(release) => {
            // A newer one is not a warning: each of its releases would bring one to every host.
            let newer = if release > NEWEST_TESTED { "newer than those, " } else { "" };
            Check::pass(NAME, format!("{line} ({newer}tested: {OLDEST} to {NEWEST_TESTED}), SHA-256 {sha256}"))
        }
        None => Check::warn(
            NAME,
            format!("its version cannot be read from {line:?}, and {OLDEST} or newer is needed"),
            install,
        ),
    }
}

/// A file, link or folder on the way to a program: path, owner and mode.
type Step = (PathBuf, u32, u32);

/// Everything whose owner decides what the path leads to: the program, links, and each folder above
/// one of them.
fn way(path: &Path) -> Vec<Step> {
    let (mut steps, mut next) = (Vec::<Step>::new(), vec![path.to_owned()]);
    // As many links as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        let Some(path) = next.pop() else { break };
        for part in path.ancestors() {
            let Ok(meta) = part.symlink_metadata() else { continue };
            if meta.file_type().is_symlink()
                && let Ok(target) = part.read_link()
            {
                // What stands behind the link is looked at on the other side of it.
                let target = part.parent().unwrap_or(Path::new("/")).join(target);
                // Joined with nothing it would end in a slash, behind which a link is followed.
                let rest = path.strip_prefix(part).ok().filter(|rest| *rest != Path::new(""));
                next.push(rest.map_or(target.clone(), |rest| target.join(rest)));
            }
            // The mode of a link says nothing (symlink(7)).
            let mode = if meta.file_type().is_symlink() { 0 } else { meta.mode() };
            steps.push((part.to_owned(), meta.uid(), mode));
        }
    }
    steps
}

/// Whoever can replace it runs programs as the daemon's user.
fn vmm_owner(path: &Path, way: Vec<Step>) -> Check {
    const NAME: &str = "firecracker's owner";
    for (step, uid, mode) in way {
        let step = step.display();
        if uid != 0 {
            // Of a link itself, not of what it leads to.
            let mend = format!("sudo chown --no-dereference root:root {step}");
            return Check::fail(NAME, format!("{step} belongs to uid {uid}"), mend);
        }
        // In a sticky folder nobody moves what is another's (inode(7)).
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            let found = format!("others than root may write {step} (mode {:o})", mode & 0o7777);
            return Check::fail(NAME, found, format!("sudo chmod go-w {step}"));
        }
    }
    Check::pass(NAME, format!("{} is root's, and so are the folders above it", path.display()))
}

fn guest_binary(path: &Path, family: Family) -> Check {
    const NAME: &str = "guest init";
    if path.is_file() {
        return Check::pass(NAME, path.display().to_string());
    }
    Check::fail(NAME, format!("{} is missing", path.display()), family.reinstall())
}

/// The configuration counts as it was when it was last read. `waiting`: keys that count after a
/// restart.
fn configuration(there: &FileState, read: &FileState, waiting: &[&str]) -> Check {
    const NAME: &str = "configuration";
    if there != read {
        return Check::warn(NAME, "it was changed after bangerd has read it", "sudo systemctl reload bangerd");
    }
    if !waiting.is_empty() {
        let found = format!("not in force yet: {}", waiting.join(", "));
        return Check::warn(NAME, found, RESTART);
    }
    match there {
        FileState::Absent => Check::pass(NAME, "there is no file: the defaults are in force"),
        FileState::There { .. } => Check::pass(NAME, "in force as it stands in the file"),
    }
}

/// What a package manager leaves beside a file that the administrator has changed.
fn leftover_configuration(config: &Path) -> Check {
    const NAME: &str = "configuration's other version";
    let beside = |ending: &str| {
        let mut path = config.as_os_str().to_owned();
        path.push(ending);
        Path::new(&path).exists().then_some(path)
    };
    match [".dpkg-dist", ".dpkg-new", ".rpmnew"].iter().find_map(|ending| beside(ending)) {
        None => Check::pass(NAME, "none is left to be merged"),
        Some(other) => Check::warn(
            NAME,
            format!("an upgrade has left {}", other.display()),
            format!(
                "diff {} {}; sudo rm --interactive {}   # say y when you have merged what you want of it",
                config.display(),
                other.display(),
                other.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::Digest;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};
    use banger_proto::model::ErrorCode;
    use std::time::Duration;

    #[test]
    fn versions_of_firecracker() {
        for (line, status) in [
            ("Firecracker v1.16.0", Pass),
            ("Firecracker v1.16.2-dev", Pass),
            ("Firecracker v2.0.0", Pass),
            ("Firecracker v1.9.1", Fail),
            ("something else", Warn),
        ] {
            let sha256 = Digest::from_bytes([7; 32]).unwrap();
            let check = vmm(Ok(Program { version: line.to_owned(), sha256 }), Path::new("/opt/firecracker"));
            assert_eq!(check.detail.contains(&sha256.to_string()), status == Pass, "{check:?}");
            assert_eq!(check.status, status, "{line}");
            assert_eq!(check.mend.is_empty(), status == Pass, "{check:?}");
        }
        let missing = ApiError::new(ErrorCode::HostNotReady, "there is no firecracker").hint("Install it.");
        let check = vmm(Err(missing), Path::new("/usr/local/bin/firecracker"));
        assert!(check.status == Fail && check.mend.contains(" firecracker /usr/local/bin/firecracker "), "{check:?}");
    }

    #[test]
    fn a_firecracker_that_others_may_replace_is_named() {
        let path = Path::new("/opt/fc/firecracker");
        let check = |uid, mode, folders| {
            vmm_owner(path, vec![(path.into(), uid, mode), ("/opt/fc".into(), 0, folders), ("/".into(), 0, 0o40_755)])
        };
        assert_eq!(check(0, 0o100_755, 0o40_755).status, Pass);
        let owned = "sudo chown --no-dereference root:root /opt/fc/firecracker";
        assert_eq!(check(1001, 0o100_755, 0o40_755).mend, owned);
        assert_eq!(check(0, 0o100_775, 0o40_755).mend, "sudo chmod go-w /opt/fc/firecracker");
        assert_eq!(check(0, 0o100_755, 0o40_775).mend, "sudo chmod go-w /opt/fc");
        assert_eq!(check(0, 0o100_755, 0o41_777).status, Pass);
    }

    #[test]
    fn the_way_to_firecracker_has_its_links_and_the_folders_of_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["bin", "releases/1.16"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("releases/1.16/firecracker"), "").unwrap();
        std::os::unix::fs::symlink("1.16", at("releases/new")).unwrap();
        std::os::unix::fs::symlink("../releases/new/firecracker", at("bin/firecracker")).unwrap();
        std::fs::set_permissions(at("releases"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let way = way(&at("bin/firecracker"));
        let has = |path: &Path| way.iter().any(|(step, ..)| *step == path);
        for path in ["bin", "bin/firecracker", "bin/../releases/new", "bin/../releases/1.16/firecracker"] {
            assert!(has(&at(path)), "{path}: {way:?}");
        }
        assert!(
            has(Path::new("/")) && way.iter().any(|(step, _, mode)| step.ends_with("releases") && mode & 0o002 != 0)
        );
        std::os::unix::fs::symlink("circle", at("circle")).unwrap();
        assert!(!super::way(&at("circle")).is_empty(), "a circle of links ends");
    }

    #[test]
    fn missing_files_fail() {
        let dir = tempfile::tempdir().unwrap();
        let (file, listener) = (dir.path().join("file"), dir.path().join("socket"));
        assert_eq!(guest_binary(&file, Family::Fedora).mend, "sudo dnf reinstall ./banger.rpm");
        assert_eq!(socket("s", &file, "banger-priv.socket").mend, "sudo systemctl restart banger-priv.socket");
        std::fs::write(&file, "").unwrap();
        assert_eq!(guest_binary(&file, Family::Debian).status, Pass);
        assert_eq!(socket("s", &file, "banger-priv.socket").status, Fail);
        let _listener = std::os::unix::net::UnixListener::bind(&listener).unwrap();
        assert_eq!(socket("s", &listener, "banger-priv.socket").status, Pass);
    }

    #[test]
    fn a_configuration_that_is_not_the_one_that_was_read_is_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.toml");
        let absent = FileState::of(&path);
        std::fs::write(&path, "cidr = 24").unwrap();
        let first = FileState::of(&path);
        assert_eq!(configuration(&absent, &absent, &[]).status, Pass);
        assert_eq!(configuration(&first, &absent, &[]).status, Warn, "it was made");
        assert_eq!(configuration(&absent, &first, &[]).status, Warn, "it was removed");
        assert_eq!(configuration(&first, &first, &[]).status, Pass);
        // As `mv` and `cp --preserve` of an older file do it: its time is of long ago.
        let older = dir.path().join("older");
        std::fs::write(&older, "cidr = 20").unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        std::fs::File::options().write(true).open(&older).unwrap().set_modified(long_ago).unwrap();
        std::fs::rename(&older, &path).unwrap();
        assert_eq!(configuration(&FileState::of(&path), &first, &[]).status, Warn);
        let waits = configuration(&first, &first, &["dns", "cidr"]);
        assert!(waits.status == Warn && waits.detail.ends_with(": dns, cidr") && waits.mend == RESTART, "{waits:?}");
    }

    #[test]
    fn what_an_upgrade_left_beside_the_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("banger.toml");
        assert_eq!(leftover_configuration(&config).status, Pass);
        std::fs::write(dir.path().join("banger.toml.rpmnew"), "").unwrap();
        let check = leftover_configuration(&config);
        assert!(check.status == Warn && check.mend.contains("banger.toml.rpmnew"), "{check:?}");
    }
}
