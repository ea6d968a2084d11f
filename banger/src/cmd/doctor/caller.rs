//! The checks of the caller's own process: what the daemon cannot see.

use crate::client::{GROUP, SOCKET_VARIABLE, socket_path, user_name};
use crate::programs;
use banger_policy::distribution::{Family, OS_RELEASE};
use banger_proto::model::Check;
use banger_proto::time::Timestamp;
use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, Gid, Group, User, access, getegid, geteuid, getgrouplist, getgroups};
use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Linux and systemd below these have no branches here: major and minor, and the version.
const LINUX_FLOOR: (u32, u32) = (6, 12);
const SYSTEMD_FLOOR: u32 = 254;
const FLOOR: &str = "boot Linux 6.12 and systemd 254 or newer: Debian 13, Ubuntu 26.04 (24.04: linux-generic-hwe-24.04), RHEL 10, Fedora";
/// Where the library lies whose name has systemd's version in it; asking `systemctl` would cost a
/// process.
const SYSTEMD_FOLDERS: [&str; 5] = [
    "/usr/lib/systemd",
    "/usr/lib64/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/usr/lib/aarch64-linux-gnu/systemd",
    "/lib/systemd",
];

pub(super) fn checks() -> Vec<Check> {
    let family = Family::of(&std::fs::read_to_string(OS_RELEASE).unwrap_or_default());
    let socket = socket_path();
    let own = std::env::var_os(SOCKET_VARIABLE).is_some_and(|path| !path.is_empty());
    let mut checks = vec![systemd()];
    if own {
        checks.push(Check::warn(
            "socket",
            format!("another daemon is asked: {}", socket.display()),
            "unset BANGER_SOCKET",
        ));
    } else {
        checks.extend([
            file(&socket),
            unit("bangerd.socket", "sockets.target"),
            unit("banger-priv.socket", "sockets.target"),
        ]);
        checks.push(unit("banger-guests.service", "multi-user.target"));
    }
    checks.extend([
        groups(&Membership::of_process()),
        programs_of("ssh", &["ssh", "ssh-keygen"], &family.install("openssh-client", "openssh-clients")),
        programs_of("git", &["git"], &family.install("git", "git")),
        catalogue(Path::new("/usr/share/banger/catalogue.toml"), family),
        home(),
    ]);
    checks
}

pub(super) fn linux() -> Check {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    match linux_version(&release) {
        Some(version) if version >= LINUX_FLOOR => Check::pass("kernel", release),
        Some(_) => Check::fail("kernel", format!("Linux {release} is too old"), FLOOR),
        None => Check::warn("kernel", format!("{release:?} is no version that is understood"), FLOOR),
    }
}

fn linux_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn systemd() -> Check {
    // sd_booted(3)
    let booted = Path::new("/run/systemd/system").is_dir();
    let names = SYSTEMD_FOLDERS.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    systemd_of(booted, names.filter_map(|entry| systemd_version(&entry.file_name().to_string_lossy())).max())
}

/// `libsystemd-shared-257.so`, `libsystemd-shared-257.9-1.fc42.so`.
fn systemd_version(file: &str) -> Option<u32> {
    let rest = file.strip_prefix("libsystemd-shared-")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn systemd_of(booted: bool, version: Option<u32>) -> Check {
    const NAME: &str = "systemd";
    match (booted, version) {
        (false, _) => Check::fail(NAME, "this host was not booted by systemd: the services do not run", FLOOR),
        (_, Some(version)) if version < SYSTEMD_FLOOR => Check::fail(NAME, format!("{version} is too old"), FLOOR),
        (_, Some(version)) => Check::pass(NAME, version.to_string()),
        (_, None) => Check::warn(NAME, "its version is not known", "systemctl --version   # 254 or newer is needed"),
    }
}

fn file(socket: &Path) -> Check {
    let restart = starting(&["bangerd.socket"], "sudo systemctl restart bangerd.socket".to_owned());
    match socket.metadata() {
        Err(error) => Check::fail("socket", format!("{}: {error}", socket.display()), restart),
        Ok(meta) if !meta.file_type().is_socket() => {
            Check::fail("socket", format!("{} is no socket", socket.display()), restart)
        }
        Ok(meta) => {
            let group = Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten().map(|group| group.name);
            owner(socket, group.as_deref(), meta.mode() & 0o777)
        }
    }
}

fn owner(socket: &Path, group: Option<&str>, mode: u32) -> Check {
    if group == Some(GROUP) && mode == 0o660 {
        return Check::pass("socket", socket.display().to_string());
    }
    let found = format!("{} is of group {} with mode {mode:o}", socket.display(), group.unwrap_or("unknown"));
    Check::fail("socket", found, "sudo systemctl restart bangerd.socket   # its unit says group banger, mode 660")
}

/// Enabled: otherwise nobody is answered after the next boot.
fn unit(name: &str, target: &str) -> Check {
    let links = ["/etc/systemd/system", "/usr/lib/systemd/system"];
    unit_of(
        name,
        links.iter().any(|folder| Path::new(&format!("{folder}/{target}.wants/{name}")).symlink_metadata().is_ok()),
        is_masked(name),
    )
}

/// `systemctl mask` makes the unit a link to nothing (systemctl(1)).
fn is_masked(unit: &str) -> bool {
    let link = |folder: &str| std::fs::read_link(Path::new(folder).join(unit));
    ["/etc/systemd/system", "/run/systemd/system"].iter().any(|folder| leads_nowhere(link(folder)))
}

fn leads_nowhere(link: std::io::Result<PathBuf>) -> bool {
    link.is_ok_and(|target| target == Path::new("/dev/null"))
}

/// A command that starts units, which nothing does as long as one of them is masked.
fn starting(units: &[&str], command: String) -> String {
    let masked: Vec<&str> = units.iter().copied().filter(|unit| is_masked(unit)).collect();
    if masked.is_empty() { command } else { format!("sudo systemctl unmask {} && {command}", masked.join(" ")) }
}

fn unit_of(name: &str, enabled: bool, masked: bool) -> Check {
    let enable = format!("sudo systemctl enable --now {name}");
    match (masked, enabled) {
        // What made it start with the host is still there, and has no effect.
        (true, _) => {
            // A socket that was masked while it listened is lost, and started it counts already.
            let enable = format!("sudo systemctl enable {name} && sudo systemctl restart {name}");
            let unmask = format!("sudo systemctl unmask {name} && {enable}");
            Check::warn(name, "masked: nothing can start it", unmask)
        }
        (false, true) => Check::pass(name, "enabled"),
        (false, false) => Check::warn(name, "not enabled: it does not start with the host", enable),
    }
}

/// What the database of groups says of the user, and what this process has been given at the login.
struct Membership {
    user: String,
    root: bool,
    listed: bool,
    held: bool,
}

impl Membership {
    fn of_process() -> Self {
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
        let listed = || {
            let user = User::from_uid(geteuid()).ok()??;
            let name = CString::new(user.name).ok()?;
            Some(getgrouplist(&name, user.gid).ok()?.contains(&group?))
        };
        let held = group.is_some_and(|group| getegid() == group || getgroups().is_ok_and(|all| all.contains(&group)));
        Self { user: user_name(), root: geteuid().is_root(), listed: listed().unwrap_or(false), held }
    }
}

fn groups(of: &Membership) -> Check {
    const NAME: &str = "group banger";
    let user = &of.user;
    match (of.root, of.listed, of.held) {
        (true, ..) => Check::pass(NAME, "root needs none"),
        (_, true, true) => Check::pass(NAME, format!("{user} is in it, and so is this session")),
        (_, true, false) => Check::fail(
            NAME,
            format!("{user} is in it, but this session began before that"),
            format!("newgrp {GROUP}   # or log out and in again"),
        ),
        (_, false, true) => Check::warn(
            NAME,
            format!("this session is in it, but {user} no longer is: the next login will not be"),
            format!("sudo usermod --append --groups {GROUP} {user}"),
        ),
        (_, false, false) => Check::fail(
            NAME,
            format!("{user} is not in it"),
            format!("sudo usermod --append --groups {GROUP} {user}   # then log out and in again"),
        ),
    }
}

fn programs_of(name: &str, needed: &[&str], install: &str) -> Check {
    let missing: Vec<&str> = needed.iter().copied().filter(|program| programs::find(program).is_err()).collect();
    if missing.is_empty() {
        return Check::pass(name, "found");
    }
    Check::warn(name, format!("not found: {}", missing.join(", ")), install)
}

fn catalogue(path: &Path, family: Family) -> Check {
    match std::fs::read_to_string(path).map(|text| text.parse::<toml::Table>()) {
        Ok(Ok(_)) => Check::pass("catalogue", path.display().to_string()),
        Ok(Err(error)) => {
            Check::warn("catalogue", format!("{}: {}", path.display(), error.message()), family.reinstall())
        }
        Err(error) => Check::warn("catalogue", format!("{}: {error}", path.display()), family.reinstall()),
    }
}

/// Keys, host keys and layers are kept in the home folder.
fn home() -> Check {
    let folder = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let account = User::from_uid(geteuid()).ok().flatten();
    let of_account = account.as_ref().map(|account| account.dir.as_path());
    home_of(folder.as_deref(), of_account, &user_name())
}

/// `of_account`: what the user database says.
fn home_of(folder: Option<&Path>, of_account: Option<&Path>, user: &str) -> Check {
    const NAME: &str = "home folder";
    let Some(folder) = folder else {
        return Check::warn(NAME, "HOME is not set: keys cannot be kept", "export HOME=/home/$(id -un)");
    };
    let place = folder.display();
    match access(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Check::pass(NAME, format!("{place} can be written")),
        Err(error) => Check::fail(
            NAME,
            format!("{place} cannot be written: {}", error.desc()),
            if may_be_given(folder, of_account) {
                format!("sudo mkdir -p {place} && sudo chown {user} {place} && sudo chmod u+rwx {place}")
            } else {
                "export HOME=/home/$(id -un)   # or another folder that you may write".to_owned()
            },
        ),
    }
}

/// Whether an administrator may be told to give this folder to the user: theirs by the user
/// database, below /home, and a name that a shell takes as it stands. HOME of a service, or one
/// that somebody else has set, may be any folder of the system.
fn may_be_given(folder: &Path, of_account: Option<&Path>) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let below_home = folder.strip_prefix("/home").is_ok_and(|rest| rest.components().count() > 0);
    of_account == Some(folder)
        && below_home
        && folder.to_str().is_some_and(|text| text.chars().all(plain) && !text.contains(".."))
}

/// What brings back a daemon that does not answer this user, unless it is another daemon, or the
/// user may not ask it: then something else is to be mended.
pub(super) fn restart() -> Option<String> {
    let own = std::env::var_os(SOCKET_VARIABLE).is_some_and(|path| !path.is_empty());
    let denied = access(&socket_path(), AccessFlags::W_OK) == Err(nix::errno::Errno::EACCES);
    (!own && !denied).then(|| {
        let restart =
            "sudo systemctl restart bangerd.socket bangerd   # sudo journalctl --unit bangerd says why it ended";
        starting(&["bangerd.socket", "bangerd.service"], restart.to_owned())
    })
}

/// Of one package, unless the daemon was not restarted.
pub(super) fn versions(daemon: &str) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    if daemon == own {
        return Check::pass("bangerd", format!("answers, version {daemon}"));
    }
    Check::warn(
        "bangerd",
        format!("it is of version {daemon}, and this program of {own}"),
        "sudo systemctl restart banger-priv bangerd   # VMs go on running",
    )
}

/// The daemon cannot have started after now.
pub(super) fn clock(started: Timestamp) -> Check {
    clock_of(started, Timestamp::now())
}

fn clock_of(started: Timestamp, now: Timestamp) -> Check {
    if started <= now {
        return Check::pass("clock's course", "the clock has not gone back since bangerd started");
    }
    Check::warn(
        "clock's course",
        format!("the clock went back: bangerd started at {started}, and it is {now}"),
        "sudo systemctl restart bangerd   # VMs go on running",
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    #[test]
    fn releases() {
        assert_eq!(linux_version("6.12.41+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(linux_version("7.0-rc1"), Some((7, 0)));
        assert_eq!(linux_version("strange"), None);
        assert!((6, 9) < LINUX_FLOOR && (7, 0) > LINUX_FLOOR);
    }

    #[test]
    fn systemds() {
        assert_eq!(systemd_version("libsystemd-shared-257.so"), Some(257));
        assert_eq!(systemd_version("libsystemd-shared-257.9-1.fc42.so"), Some(257));
        assert_eq!(systemd_version("libsystemd-core-257.so"), None);
        assert_eq!(systemd_of(true, Some(257)).status, Pass);
        assert_eq!(systemd_of(true, Some(252)).status, Fail);
        assert_eq!(systemd_of(false, Some(257)).status, Fail);
        assert_eq!(systemd_of(true, None).status, Warn);
    }

    #[test]
    fn a_session_from_before_the_group_is_told_so() {
        let of = |root, listed, held| groups(&Membership { user: "alice".to_owned(), root, listed, held });
        assert_eq!(of(false, true, true).status, Pass);
        assert_eq!(of(true, false, false).status, Pass);
        let early = of(false, true, false);
        assert!(early.status == Fail && early.mend.starts_with("newgrp banger"), "{early:?}");
        assert_eq!(of(false, false, true).status, Warn);
        let stranger = of(false, false, false);
        assert!(stranger.mend.starts_with("sudo usermod --append --groups banger alice"), "{stranger:?}");
    }

    #[test]
    fn sockets_and_units() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert_eq!(file(&path).status, Fail, "not there");
        std::fs::write(&path, "").unwrap();
        assert_eq!(file(&path).status, Fail, "no socket");
        assert_eq!(owner(&path, Some("banger"), 0o660).status, Pass);
        assert_eq!(owner(&path, Some("banger"), 0o666).status, Fail);
        assert_eq!(owner(&path, None, 0o660).status, Fail);
        assert_eq!(unit_of("bangerd.socket", true, false).status, Pass);
        assert_eq!(unit_of("bangerd.socket", false, false).mend, "sudo systemctl enable --now bangerd.socket");
        let link = dir.path().join("bangerd.socket");
        assert!(!leads_nowhere(std::fs::read_link(&link)));
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(leads_nowhere(std::fs::read_link(&link)));
        let masked = unit_of("bangerd.socket", true, true);
        let mend = "sudo systemctl unmask bangerd.socket && sudo systemctl enable bangerd.socket && sudo systemctl restart bangerd.socket";
        assert!(masked.status == Warn && masked.mend == mend, "{masked:?}");
    }

    #[test]
    fn what_the_user_needs_beside_the_daemon() {
        let absent = programs_of("git", &["no-such-program"], "sudo apt install git");
        assert_eq!((absent.status, absent.mend.as_str()), (Warn, "sudo apt install git"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue.toml");
        assert_eq!(catalogue(&path, Family::Fedora).mend, "sudo dnf reinstall ./banger.rpm");
        std::fs::write(&path, "no table").unwrap();
        assert_eq!(catalogue(&path, Family::Debian).mend, "sudo apt install --reinstall ./banger.deb");
        std::fs::write(&path, "[images]\n").unwrap();
        assert_eq!(catalogue(&path, Family::Debian).status, Pass);
        let home = |folder: Option<&Path>| home_of(folder, Some(Path::new("/home/al")), "al");
        assert_eq!((home(Some(dir.path())).status, home(None).status), (Pass, Warn));
    }

    #[test]
    fn no_folder_of_the_system_is_given_away_as_a_home() {
        let mend = |home: &str, of_account: &str| {
            home_of(Some(Path::new(home)), Some(Path::new(of_account)), "al-nobody-has").mend
        };
        let given = mend("/home/al-nobody-has", "/home/al-nobody-has");
        assert!(given.starts_with("sudo mkdir -p /home/al-nobody-has && sudo chown al-nobody-has /home/"), "{given}");
        for (home, of_account) in [
            ("/home/al-nobody-has", "/home/bob"),
            ("/nowhere", "/nowhere"),
            ("/home/al;nobody-has", "/home/al;nobody-has"),
            ("/home/../nowhere", "/home/../nowhere"),
        ] {
            let mend = mend(home, of_account);
            assert!(mend.starts_with("export HOME="), "{home}, {of_account}: {mend}");
        }
        assert!(!may_be_given(Path::new("/home"), Some(Path::new("/home"))));
    }

    #[test]
    fn a_clock_that_went_back_and_another_version() {
        let (early, late) = (Timestamp::from_unix(1_700_000_000), Timestamp::from_unix(1_800_000_000));
        assert_eq!((clock_of(early, late).status, clock_of(late, early).status), (Pass, Warn));
        assert_eq!((versions("0.0.1").status, versions(env!("CARGO_PKG_VERSION")).status), (Warn, Pass));
    }
}
