//! Root's entry in the image's `/etc/passwd`: which shell, which home.
//!
//! Read anew for each command, because the guest may change it. The C library's lookup is not used: a
//! static program cannot load the image's name service modules.

use nix::unistd::{AccessFlags, access};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const FALLBACK_SHELL: &str = "/bin/sh";
const FALLBACK_HOME: &str = "/root";
/// Shells that turn people away, which an image may give to root; here they would lock its owner out.
const REFUSING: [&str; 2] = ["nologin", "false"];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) shell: PathBuf,
    pub(super) home: PathBuf,
}

impl Login {
    pub(super) fn of_root(passwd: &Path) -> Self {
        let passwd = fs::read_to_string(passwd).unwrap_or_default();
        let mut login = parse(&passwd);
        if !executable(&login.shell) {
            login.shell = FALLBACK_SHELL.into();
        }
        login
    }

    /// The name under which a shell is started as a login shell: `-sh`.
    pub(super) fn shell_name(&self) -> OsString {
        let mut name = OsString::from("-");
        name.push(self.shell.file_name().unwrap_or(std::ffi::OsStr::new("sh")));
        name
    }

    /// Where commands start.
    pub(super) fn folder(&self) -> &Path {
        let enterable = self.home.is_dir() && access(&self.home, AccessFlags::X_OK).is_ok();
        if enterable { &self.home } else { Path::new("/") }
    }
}

fn parse(passwd: &str) -> Login {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let root = fields.into_iter().find(|fields| fields.len() == 7 && fields.first() == Some(&"root"));
    let field =
        |at: usize| root.as_ref().and_then(|fields| fields.get(at)).copied().filter(|text| text.starts_with('/'));
    let shell = PathBuf::from(field(6).unwrap_or(FALLBACK_SHELL));
    let refusing =
        shell.file_name().is_some_and(|name| REFUSING.iter().any(|other| name.as_bytes() == other.as_bytes()));
    Login {
        shell: if refusing { FALLBACK_SHELL.into() } else { shell },
        home: field(5).unwrap_or(FALLBACK_HOME).into(),
    }
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(shell: &str, home: &str) -> Login {
        Login { shell: shell.into(), home: home.into() }
    }

    #[test]
    fn root_is_found_and_the_rest_ignored() {
        let passwd = "daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\nroot:x:0:0:root:/root:/bin/bash\n";
        assert_eq!(parse(passwd), login("/bin/bash", "/root"));
        assert_eq!(parse("rootless:x:5:5::/x:/bin/x\n"), login("/bin/sh", "/root"));
    }

    #[test]
    fn a_missing_broken_or_refusing_entry_falls_back() {
        assert_eq!(parse(""), login("/bin/sh", "/root"));
        assert_eq!(parse("root:x:0:0\n"), login("/bin/sh", "/root"));
        assert_eq!(parse("root:x:0:0:::\n"), login("/bin/sh", "/root"));
        assert_eq!(parse("root:x:0:0::/home/r:/usr/sbin/nologin\n"), login("/bin/sh", "/home/r"));
        assert_eq!(parse("root:x:0:0::/root:/bin/false\n"), login("/bin/sh", "/root"));
    }

    #[test]
    fn a_command_starts_in_the_root_folder_when_there_is_no_home() {
        assert_eq!(login("/bin/sh", "/").folder(), Path::new("/"));
        assert_eq!(login("/bin/sh", "/proc").folder(), Path::new("/proc"));
        for missing in ["/no/such/folder", "/proc/version", "/proc/version/below"] {
            assert_eq!(login("/bin/sh", missing).folder(), Path::new("/"), "{missing}");
        }
    }

    #[test]
    fn a_login_shell_is_named_with_a_dash() {
        assert_eq!(login("/usr/bin/fish", "/root").shell_name(), "-fish");
    }
}
