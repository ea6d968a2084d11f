//! Who runs a command: a user of the guest, by the image's `/etc/passwd` and `/etc/group`.
//!
//! Both are read anew for each command, because the guest may change them. The C library's look-up
//! is not used: a static program cannot load the image's name service modules. Names are taken as
//! container engines take them: what is a number is one, whether or not the image knows it.

use nix::unistd::{AccessFlags, access};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const FALLBACK_SHELL: &str = "/bin/sh";
const ROOT_HOME: &str = "/root";
/// Shells that turn people away, which images give to root and to the users of services; here they
/// would lock the VM's owner out.
const REFUSING: [&str; 2] = ["nologin", "false"];
/// Larger files are not what they claim to be.
const MAX_FILE: u64 = 4 << 20;

/// A user of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    /// `None` for a number that the image does not know.
    pub(super) name: Option<String>,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
}

/// There is no such user or group in the guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAccount {
    #[error("there is no user {0:?} in the guest's /etc/passwd; choose another one, such as with: -u root")]
    User(String),
    #[error("there is no group {0:?} in the guest's /etc/group; choose another one, such as with: -u root")]
    Group(String),
}

impl Account {
    /// The user that `wanted` means: `user`, `uid`, `user:group` or `uid:gid`. Root is always
    /// there.
    pub(super) fn find(wanted: &str, passwd: &Path) -> Result<Self, NoAccount> {
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            // What is missing or cannot be read has no entries.
            let _ = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut account = look_up(wanted, &read(passwd), &read(&passwd.with_file_name("group")))?;
        if !executable(&account.shell) {
            account.shell = FALLBACK_SHELL.into();
        }
        Ok(account)
    }

    /// The name under which a shell is started as a login shell: `-sh`.
    pub(super) fn shell_name(&self) -> OsString {
        let mut name = OsString::from("-");
        name.push(self.shell.file_name().unwrap_or(std::ffi::OsStr::new("sh")));
        name
    }

    /// Where commands start when nobody says where.
    pub(super) fn folder(&self) -> &Path {
        let enterable = self.home.is_dir() && access(&self.home, AccessFlags::X_OK).is_ok();
        if enterable { &self.home } else { Path::new("/") }
    }
}

/// The entries of a table with fields between colons, of which the third is the number. What is
/// behind that may be missing, as engines take it: images have tables that were written by hand.
fn entries(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table.lines().map(|line| line.trim().split(':').collect::<Vec<_>>()).filter(|found| found.len() >= 3)
}

/// A number that the kernel takes for a user or group: -1 means "unchanged" in its calls.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

fn look_up(wanted: &str, passwd: &str, group: &str) -> Result<Account, NoAccount> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user);
    let found = entries(passwd).find(|entry| match number {
        Some(number) => entry.get(2).copied().and_then(id) == Some(number),
        None => entry.first() == Some(&user),
    });
    let mut account = match (found.as_deref().and_then(of_entry), number) {
        (Some(account), _) => account,
        (None, Some(0)) => root(),
        (None, Some(uid)) => {
            Account { uid, gid: 0, groups: Vec::new(), name: None, home: "/".into(), shell: FALLBACK_SHELL.into() }
        }
        (None, None) if user == "root" => root(),
        (None, None) => return Err(NoAccount::User(user.to_owned())),
    };
    match wanted_group {
        Some(wanted) => account.gid = group_id(wanted, group)?,
        None => account.groups = groups_of(&account, group),
    }
    Ok(account)
}

/// Root of an image that says nothing about it.
fn root() -> Account {
    let name = Some("root".to_owned());
    Account { uid: 0, gid: 0, groups: Vec::new(), name, home: ROOT_HOME.into(), shell: FALLBACK_SHELL.into() }
}

/// An entry of passwd(5); `None` when its numbers are none. Whose group is not said is in that of
/// root.
fn of_entry(entry: &[&str]) -> Option<Account> {
    let path = |at: usize| entry.get(at).copied().filter(|text| text.starts_with('/'));
    let group = entry.get(3).copied().filter(|text| !text.is_empty());
    let (uid, gid) = (id(entry.get(2)?)?, group.map_or(Some(0), id)?);
    let shell = Path::new(path(6).unwrap_or(FALLBACK_SHELL));
    let name = shell.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    let refusing = REFUSING.iter().any(|other| name == other.as_bytes());
    let home = path(5).unwrap_or(if uid == 0 { ROOT_HOME } else { "/" });
    Some(Account {
        uid,
        gid,
        groups: Vec::new(),
        name: entry.first().map(|name| (*name).to_owned()),
        home: home.into(),
        shell: if refusing { FALLBACK_SHELL.into() } else { shell.to_owned() },
    })
}

fn group_id(wanted: &str, group: &str) -> Result<u32, NoAccount> {
    let named = || entries(group).find(|entry| entry.first() == Some(&wanted));
    let found = id(wanted).or_else(|| named().and_then(|entry| id(entry.get(2)?)));
    found.ok_or_else(|| NoAccount::Group(wanted.to_owned()))
}

/// The groups of group(5) that name the user.
fn groups_of(account: &Account, group: &str) -> Vec<u32> {
    let Some(name) = account.name.as_deref() else { return Vec::new() };
    let named = |entry: &Vec<&str>| entry.get(3).is_some_and(|users| users.split(',').any(|user| user == name));
    let mut groups: Vec<u32> = entries(group).filter(named).filter_map(|entry| id(entry.get(2)?)).collect();
    groups.sort_unstable();
    groups.dedup();
    // As many as the kernel takes (`NGROUPS_MAX` of linux/limits.h).
    groups.truncate(65_536);
    groups
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # a comment\n\
        broken:x:5\n\
        daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n\
        app:x:1000:1000:App,,,:/home/app:/bin/ash\n\
        1001:x:1002:1002::/home/number:/bin/sh\n\
        negative:x:-1:0::/:/bin/sh\n";
    const GROUP: &str =
        "root:x:0:\nstaff:x:50:other,app\nadm:x:4:app\nadm2:x:4:app\napp:x:1000:\nnear:x:60:application\n";

    fn found(wanted: &str) -> Account {
        look_up(wanted, PASSWD, GROUP).unwrap()
    }

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let account = found(wanted);
        (account.uid, account.gid, account.groups)
    }

    #[test]
    fn every_form_of_a_user_is_understood() {
        assert_eq!(ids("app"), (1000, 1000, vec![4, 50]));
        assert_eq!(ids("1000"), (1000, 1000, vec![4, 50]));
        assert_eq!(ids("app:staff"), (1000, 50, vec![]));
        assert_eq!(ids("app:"), (1000, 1000, vec![4, 50]));
        assert_eq!(ids("1000:1234"), (1000, 1234, vec![]));
        assert_eq!(ids("4711"), (4711, 0, vec![]));
        assert_eq!(ids("4711:4712"), (4711, 4712, vec![]));
        assert_eq!(ids(":staff"), (0, 50, vec![]));
        // A number is a number, even where somebody is called so.
        assert_eq!(ids("1001"), (1001, 0, vec![]));
        assert_eq!(ids("root"), (0, 0, vec![]));
        assert_eq!(ids(""), (0, 0, vec![]));
    }

    #[test]
    fn home_name_and_shell_come_from_the_entry() {
        let app = found("1000");
        assert_eq!(
            (app.name.as_deref(), app.home.as_path(), app.shell.as_path()),
            (Some("app"), Path::new("/home/app"), Path::new("/bin/ash"))
        );
        let stranger = found("4711");
        assert_eq!((stranger.name, stranger.home, stranger.shell), (None, "/".into(), "/bin/sh".into()));
        assert_eq!(found("daemon").shell, Path::new("/bin/sh"), "a shell that refuses locks nobody out");
    }

    #[test]
    fn an_entry_may_end_behind_its_number() {
        for (entry, gid, home) in [
            ("app:x:1000", 0, "/"),
            ("app:x:1000:", 0, "/"),
            ("app:x:1000:1001", 1001, "/"),
            ("  app:x:1000:1001:\r", 1001, "/"),
            ("app:x:1000:1001:App:/home/app", 1001, "/home/app"),
            ("app::1000:1001::/home/app:", 1001, "/home/app"),
        ] {
            for wanted in ["app", "1000"] {
                let app = look_up(wanted, &format!("root:x:0:0\n{entry}\n"), "staff:x:50:app\nodd:x:51\n").unwrap();
                let found = (app.uid, app.gid, app.name.as_deref(), app.home.as_path(), app.shell.as_path());
                assert_eq!(found, (1000, gid, Some("app"), Path::new(home), Path::new("/bin/sh")), "{entry:?}");
                assert_eq!(app.groups, [50], "{entry:?}");
            }
        }
        assert_eq!(look_up("app:odd", "app:x:1000\n", "odd:x:51\n").unwrap().gid, 51);
        for broken in ["app", "app:x", "app:x:", "app:x:a:0", "app:x:1000:b"] {
            assert!(look_up("app", &format!("{broken}\n"), "").is_err(), "{broken}");
        }
    }

    #[test]
    fn who_is_not_there_is_named() {
        for user in ["nobody", "ap", "-1", "4294967295", "99999999999", "negative", " app"] {
            assert_eq!(look_up(user, PASSWD, GROUP), Err(NoAccount::User(user.to_owned())), "{user}");
        }
        let refused = look_up("app:wheel", PASSWD, GROUP).unwrap_err();
        assert_eq!(refused, NoAccount::Group("wheel".into()));
        assert!(refused.to_string().contains("-u root"), "{refused}");
    }

    #[test]
    fn root_is_always_there() {
        for passwd in ["", "root:x:0:0\n", "rootless:x:5:5::/x:/bin/x\n"] {
            for wanted in ["root", "0", ""] {
                assert_eq!(look_up(wanted, passwd, "").unwrap(), root(), "{wanted} {passwd}");
            }
        }
        assert_eq!(look_up("0", "root:x:0:0:::\n", "").unwrap(), root());
        let strict = look_up("0", "root:x:0:0::/home/r:/usr/sbin/nologin\n", "").unwrap();
        assert_eq!((strict.home.as_path(), strict.shell.as_path()), (Path::new("/home/r"), Path::new("/bin/sh")));
        assert_eq!(look_up("root", "root:x:0:0::/root:/bin/false\n", "").unwrap().shell, Path::new("/bin/sh"));
        assert_eq!(look_up("root", PASSWD, "").unwrap().shell, Path::new("/bin/bash"));
    }

    #[test]
    fn tables_are_read_from_their_folder_whatever_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let passwd = folder.path().join("passwd");
        fs::write(&passwd, b"caf\xe9:x:7:7::/:/bin/sh\napp:x:1000:1000::/home/app:/no/such/shell\n").unwrap();
        fs::write(folder.path().join("group"), "staff:x:50:app\n").unwrap();
        let app = Account::find("app", &passwd).unwrap();
        assert_eq!((app.uid, app.groups.as_slice(), app.shell.as_path()), (1000, &[50][..], Path::new("/bin/sh")));
        assert_eq!(Account::find("root", &folder.path().join("none")).unwrap().uid, 0);
    }

    fn with_home(home: &str) -> Account {
        Account { home: home.into(), ..root() }
    }

    #[test]
    fn a_command_starts_in_the_root_folder_when_there_is_no_home() {
        assert_eq!(with_home("/").folder(), Path::new("/"));
        assert_eq!(with_home("/proc").folder(), Path::new("/proc"));
        for missing in ["/no/such/folder", "/proc/version", "/proc/version/below"] {
            assert_eq!(with_home(missing).folder(), Path::new("/"), "{missing}");
        }
    }

    #[test]
    fn a_login_shell_is_named_with_a_dash() {
        assert_eq!(Account { shell: "/usr/bin/fish".into(), ..root() }.shell_name(), "-fish");
    }
}
