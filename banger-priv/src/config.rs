//! Flags, and the three keys of the daemon's configuration that say what the VMs' network is: one
//! file for both, root's. Everything else in it is the daemon's business. No environment variable
//! is read.

use crate::host::Daemon;
use crate::proc::CGROUPS;
use crate::sys::call::END;
use banger_policy::net::{Bridge, BridgeError, BridgeKeys};
use nix::unistd::{Uid, User};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Printed by `--version`.
const VERSION: &str = concat!("banger-priv ", env!("CARGO_PKG_VERSION"), "\n");
/// Printed by `--help`.
const HELP: &str = "\
banger-priv: the root helper of banger. Started by systemd; see banger-priv.service.

  --daemon-user NAME|UID  the only user who is served (default bangerd)
  --daemon-cgroup PATH    cgroup of the daemon's unit; its leaf `daemon` is admitted, its `vms` are VMs
                          (default /sys/fs/cgroup/system.slice/bangerd.service)
  --no-cgroup-check       admit the user's processes wherever they are: for a build folder only
  --images DIR            the daemon's images (default /var/lib/banger/images)
  --state DIR             COW files and their records (default /var/lib/banger-priv)
  --runtime DIR           the ledger; must be a tmpfs (default /run/banger-priv)
  --config FILE           where bridge_name, bridge_ip and cidr are read (default /etc/banger/banger.toml;
                          a file that is not there means the defaults br-fc, 172.16.0.1 and 20)
  --boot-id HEX           the host's boot id, where /proc/sys is hidden from the helper (systemd's %b)
  --socket PATH           make this socket instead of taking systemd's: for a build folder only
  --check-config          check the flags and end
  --self-check            confine this process like the helper that serves, say what holds, list the system calls
  --self-check-call N A.. the same, then do that one system call: the tests see what it is answered, or killed
  --version, --help
";

/// What the flags come to.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) daemon: Daemon,
    /// The daemon's unit, below `/sys/fs/cgroup`.
    pub(crate) unit: Option<String>,
    pub(crate) images: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) runtime: PathBuf,
    pub(crate) bridge: Bridge,
    pub(crate) boot_id: Option<OsString>,
    pub(crate) socket: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// To print this and end.
    Say(&'static str),
    /// To serve.
    Serve(Box<Config>),
    /// To say what holds in a process that is confined like this; or to do one system call there.
    Check(Box<Config>, Option<Call>),
}

/// A system call: its number and arguments.
pub(crate) type Call = (u32, [u64; 6]);

/// A command line or configuration that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a flag of ours.
    #[error("unknown argument {0:?}; see --help")]
    Unknown(OsString),
    /// A flag without its value.
    #[error("{0} wants a value")]
    Missing(&'static str),
    /// A value that cannot serve.
    #[error("{name}: {value:?} is not {expected}")]
    Value {
        /// The flag or key.
        name: &'static str,
        /// What was given.
        value: OsString,
        /// What it must be.
        expected: &'static str,
    },
    /// Keys of the configuration that cannot serve.
    #[error("{} in the configuration", .0.key())]
    Bridge(#[from] BridgeError),
    /// A configuration that cannot be read.
    #[error("cannot read the configuration {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why; with the line.
        #[source]
        source: io::Error,
    },
}

/// Reads the command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, ConfigError> {
    let mut user = OsString::from("bangerd");
    let mut file = PathBuf::from("/etc/banger/banger.toml");
    let mut config = Config {
        daemon: Daemon { uid: 0, gid: 0 },
        unit: Some("system.slice/bangerd.service".to_owned()),
        images: "/var/lib/banger/images".into(),
        state: "/var/lib/banger-priv".into(),
        runtime: "/run/banger-priv".into(),
        bridge: BridgeKeys::default().check()?,
        boot_id: None,
        socket: None,
    };
    let (mut check, mut confined, mut call) = (false, false, None);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let rest = &mut arguments;
        match argument.to_str() {
            Some("--help") => return Ok(Asked::Say(HELP)),
            Some("--version") => return Ok(Asked::Say(VERSION)),
            Some("--check-config") => check = true,
            Some("--self-check") => confined = true,
            Some(CALL) => {
                confined = true;
                call = Some(system_call(rest)?);
            }
            Some("--no-cgroup-check") => config.unit = None,
            Some("--images") => config.images = path("--images", rest)?,
            Some("--state") => config.state = path("--state", rest)?,
            Some("--runtime") => config.runtime = path("--runtime", rest)?,
            Some("--socket") => config.socket = Some(path("--socket", rest)?),
            Some("--config") => file = path("--config", rest)?,
            Some("--daemon-user") => user = value("--daemon-user", rest)?,
            Some("--daemon-cgroup") => config.unit = Some(cgroup(value("--daemon-cgroup", rest)?)?),
            Some("--boot-id") => config.boot_id = Some(value("--boot-id", rest)?),
            _ => return Err(ConfigError::Unknown(argument)),
        }
    }
    config.bridge = bridge(file)?;
    config.daemon = daemon(user)?;
    if check {
        Ok(Asked::Say(""))
    } else if confined {
        Ok(Asked::Check(Box::new(config), call))
    } else {
        Ok(Asked::Serve(Box::new(config)))
    }
}

const CALL: &str = "--self-check-call";

/// All that is left of the command line: a number, and up to six arguments.
fn system_call(words: &mut impl Iterator<Item = OsString>) -> Result<Call, ConfigError> {
    let mut numbers = Vec::new();
    for word in words {
        let number = word.to_str().and_then(|word| word.parse().ok()).filter(|number| *number < END);
        numbers.push(number.ok_or_else(|| bad(CALL, word, "a number below 2^34"))?);
    }
    let (number, rest) = numbers.split_first().ok_or(ConfigError::Missing(CALL))?;
    let mut arguments = [0; 6];
    for (argument, given) in arguments.iter_mut().zip(rest) {
        *argument = *given;
    }
    let number = u32::try_from(*number).map_err(|_| bad(CALL, number.to_string().into(), "a system call"))?;
    Ok((number, arguments))
}

fn bad(name: &'static str, value: OsString, expected: &'static str) -> ConfigError {
    ConfigError::Value { name, value, expected }
}

/// The word behind a flag.
fn value(flag: &'static str, rest: &mut impl Iterator<Item = OsString>) -> Result<OsString, ConfigError> {
    rest.next().ok_or(ConfigError::Missing(flag))
}

/// The word behind a flag, as an absolute path.
fn path(flag: &'static str, rest: &mut impl Iterator<Item = OsString>) -> Result<PathBuf, ConfigError> {
    let value = value(flag, rest)?;
    if Path::new(&value).is_absolute() { Ok(value.into()) } else { Err(bad(flag, value, "an absolute path")) }
}

fn cgroup(value: OsString) -> Result<String, ConfigError> {
    match value.to_str().and_then(|path| path.strip_prefix(CGROUPS)).and_then(|path| path.strip_prefix('/')) {
        Some(unit) if !unit.is_empty() => Ok(unit.to_owned()),
        _ => Err(bad("--daemon-cgroup", value, "a path below /sys/fs/cgroup")),
    }
}

fn bridge(path: PathBuf) -> Result<Bridge, ConfigError> {
    let keys: BridgeKeys = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => BridgeKeys::default(),
        Err(source) => return Err(ConfigError::File { path, source }),
        Ok(text) => {
            toml::from_str(&text).map_err(|error| ConfigError::File { path, source: io::Error::other(error) })?
        }
    };
    Ok(keys.check()?)
}

/// Not found and not answered are one: without a number there is nobody to serve. Root has the
/// helper's own rights already.
fn daemon(name: OsString) -> Result<Daemon, ConfigError> {
    let text = name.to_str().unwrap_or_default();
    let found = text.parse().map_or_else(|_| User::from_name(text), |uid| User::from_uid(Uid::from_raw(uid)));
    match found {
        Ok(Some(user)) if !user.uid.is_root() => Ok(Daemon { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        _ => Err(bad("--daemon-user", name, "a user of this host other than root; is the package installed?")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::net::Network;
    use std::net::Ipv4Addr;

    fn ask(line: &str) -> Result<Asked, ConfigError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_are_read() {
        let Ok(Asked::Serve(config)) =
            ask("--daemon-user nobody --daemon-cgroup /sys/fs/cgroup/x.slice/y --config /none --state /s")
        else {
            panic!("refused")
        };
        assert_eq!(config.unit.as_deref(), Some("x.slice/y"));
        assert_eq!(Ok(config.bridge.network()), Network::new(Ipv4Addr::new(172, 16, 0, 1), 20));
        assert_eq!(config.state, PathBuf::from("/s"));
        assert!(matches!(ask("--daemon-user nobody --check-config"), Ok(Asked::Say(""))));
        assert!(matches!(ask("--daemon-user nobody --self-check"), Ok(Asked::Check(_, None))));
        let call = ask("--daemon-user nobody --self-check-call 16 4294967295 19586");
        assert!(matches!(call, Ok(Asked::Check(_, Some((16, [4_294_967_295, 19_586, 0, 0, 0, 0]))))));
        assert!(matches!(ask("--no-cgroup-check --version"), Ok(Asked::Say(VERSION))));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for line in [
            "--daemon-user root",
            "--daemon-user 0",
            "--daemon-user no-such-user-here",
            "--images relative",
            "--daemon-cgroup /etc",
            "--daemon-cgroup /sys/fs/cgroup/",
            "--config relative",
            "--config",
            "--boot-id",
            "--socket x",
            "--self-check-call",
            "--self-check-call x",
            "--self-check-call 1 17179869184",
            "--self-check-call 4294967296",
            "serve",
        ] {
            assert!(ask(&format!("--daemon-user nobody {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn the_daemons_configuration_is_read_for_three_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("banger.toml");
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ask(&format!("--daemon-user nobody --config {}", path.display()))
        };
        let Ok(Asked::Serve(config)) =
            with("log_level = \"info\"\nbridge_ip = \"10.0.0.1\"\ncidr = 16\n[vm_defaults]\n")
        else {
            panic!("refused")
        };
        assert_eq!(Ok(config.bridge.network()), Network::new(Ipv4Addr::new(10, 0, 0, 1), 16));
        assert_eq!(config.bridge.name(), "br-fc");
        for bad in [
            "bridge_name = \"bgr-x\"",
            "bridge_name = \"a/b\"",
            "bridge_name = \"\"",
            "bridge_name = \"0123456789abcdef\"",
            "bridge_ip = \"8.8.8.8\"",
            "bridge_ip = 7",
            "cidr = 8",
            "cidr = 300",
            "cidr",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_shipped_configuration_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/banger.toml");
        assert!(matches!(ask(&format!("--daemon-user nobody --config {path}")), Ok(Asked::Serve(_))));
    }
}
