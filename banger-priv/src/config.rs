//! Flags, and the three keys of the daemon's configuration that say what the VMs' network is: one file for
//! both, root's. Everything else in it is the daemon's business. No environment variable is read.

use crate::host::Daemon;
use crate::proc::CGROUPS;
use banger_policy::net::{Network, NetworkError};
use serde::Deserialize;
use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Printed by `--help`.
pub(crate) const HELP: &str = "\
banger-priv: the root helper of banger. Started by systemd; see banger-priv.service.

  --daemon-user NAME|UID  the only user who is served (default bangerd)
  --daemon-cgroup PATH    cgroup of the daemon's unit; its leaf `daemon` is admitted, its `vms` are VMs
                          (default /sys/fs/cgroup/system.slice/bangerd.service)
  --no-cgroup-check       admit the user's processes wherever they are: for a build folder only
  --images DIR            the daemon's images (default /var/lib/banger/images)
  --state DIR             COW files and their records (default /var/lib/banger-priv)
  --runtime DIR           the ledger; must be a tmpfs (default /run/banger-priv)
  --config FILE           where bridge_name, bridge_ip and cidr are read (default /etc/banger/banger.toml;
                          a file that is not there means the defaults br-fc, 172.16.0.1 and 24)
  --boot-id HEX           the host's boot id, where /proc/sys is hidden from the helper (systemd's %b)
  --socket PATH           make this socket instead of taking systemd's: for a build folder only
  --check-config          check the flags and end
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
    pub(crate) bridge_name: String,
    pub(crate) network: Network,
    pub(crate) boot_id: Option<String>,
    pub(crate) socket: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    Help,
    Version,
    Check,
    Serve(Box<Config>),
}

/// A command line that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a flag of ours.
    #[error("unknown argument {0:?}; see --help")]
    Unknown(OsString),
    /// A flag without its value.
    #[error("{0} wants a value")]
    Missing(&'static str),
    /// A value that does not parse.
    #[error("{flag}: {value:?} is not {expected}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: OsString,
        /// What it must be.
        expected: &'static str,
    },
    /// No such user.
    #[error("--daemon-user: there is no user {0:?}; is the package installed?")]
    NoUser(String),
    /// Root has the helper's own rights; it must not be the daemon's user.
    #[error("--daemon-user: the daemon must not run as root")]
    Root,
    /// A network that cannot serve.
    #[error("bridge_ip or cidr in the configuration")]
    Network(#[from] NetworkError),
    /// A link name that cannot serve.
    #[error(
        "bridge_name {0:?} in the configuration is not 1 to 15 of letters, digits, - _ . and never begins with bgr-"
    )]
    BridgeName(String),
    /// A configuration that cannot be read.
    #[error("cannot read the configuration {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration that is not TOML, or whose keys are of another type.
    #[error("the configuration {path} is wrong: {problem}")]
    Toml {
        /// Which.
        path: PathBuf,
        /// What is wrong, with its line.
        problem: String,
    },
}

/// Reads the command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, ConfigError> {
    let mut user = String::from("bangerd");
    let mut unit = Some(String::from("system.slice/bangerd.service"));
    let (mut images, mut state) = (PathBuf::from("/var/lib/banger/images"), PathBuf::from("/var/lib/banger-priv"));
    let (mut runtime, mut socket) = (PathBuf::from("/run/banger-priv"), None);
    let mut boot_id = None;
    let mut file = PathBuf::from("/etc/banger/banger.toml");
    let mut check = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = |flag: &'static str| arguments.next().ok_or(ConfigError::Missing(flag));
        match argument.to_str() {
            Some("--help") => return Ok(Asked::Help),
            Some("--version") => return Ok(Asked::Version),
            Some("--check-config") => check = true,
            Some("--no-cgroup-check") => unit = None,
            Some("--daemon-user") => user = text("--daemon-user", value("--daemon-user")?)?,
            Some("--daemon-cgroup") => unit = Some(cgroup(value("--daemon-cgroup")?)?),
            Some("--images") => images = absolute("--images", value("--images")?)?,
            Some("--state") => state = absolute("--state", value("--state")?)?,
            Some("--runtime") => runtime = absolute("--runtime", value("--runtime")?)?,
            Some("--boot-id") => boot_id = Some(boot(value("--boot-id")?)?),
            Some("--socket") => socket = Some(absolute("--socket", value("--socket")?)?),
            Some("--config") => file = absolute("--config", value("--config")?)?,
            _ => return Err(ConfigError::Unknown(argument)),
        }
    }
    let Bridge { bridge_name, bridge_ip, cidr } = bridge(file)?;
    let network = Network::new(bridge_ip, cidr)?;
    let daemon = daemon(&user)?;
    if check {
        return Ok(Asked::Check);
    }
    Ok(Asked::Serve(Box::new(Config { daemon, unit, images, state, runtime, bridge_name, network, boot_id, socket })))
}

fn bad(flag: &'static str, value: OsString, expected: &'static str) -> ConfigError {
    ConfigError::Value { flag, value, expected }
}

fn text(flag: &'static str, value: OsString) -> Result<String, ConfigError> {
    value.into_string().map_err(|value| bad(flag, value, "text"))
}

fn boot(value: OsString) -> Result<String, ConfigError> {
    match value.to_str() {
        Some(id) if id.len() == 32 && id.bytes().all(|c| c.is_ascii_hexdigit()) => Ok(id.to_owned()),
        _ => Err(bad("--boot-id", value, "32 hexadecimal digits")),
    }
}

fn absolute(flag: &'static str, value: OsString) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(&value);
    if path.is_absolute() { Ok(path) } else { Err(bad(flag, value, "an absolute path")) }
}

fn cgroup(value: OsString) -> Result<String, ConfigError> {
    let below = value.to_str().and_then(|path| path.strip_prefix(CGROUPS)).and_then(|path| path.strip_prefix('/'));
    match below {
        Some(unit) if !unit.is_empty() => Ok(unit.to_owned()),
        _ => Err(bad("--daemon-cgroup", value, "a path below /sys/fs/cgroup")),
    }
}

/// The keys of the daemon's configuration that concern the helper.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Bridge {
    bridge_name: String,
    bridge_ip: Ipv4Addr,
    cidr: u8,
}

impl Default for Bridge {
    fn default() -> Self {
        Self { bridge_name: "br-fc".to_owned(), bridge_ip: Ipv4Addr::new(172, 16, 0, 1), cidr: 24 }
    }
}

fn bridge(path: PathBuf) -> Result<Bridge, ConfigError> {
    let bridge: Bridge = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Bridge::default(),
        Err(source) => return Err(ConfigError::File { path, source }),
        Ok(text) => toml::from_str(&text).map_err(|error| ConfigError::Toml { path, problem: error.to_string() })?,
    };
    let name = &bridge.bridge_name;
    let plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
    // Never one that a VM's tap could have.
    if plain && (1..16).contains(&name.len()) && !name.starts_with(banger_policy::id::DEVICE_PREFIX) {
        Ok(bridge)
    } else {
        Err(ConfigError::BridgeName(name.clone()))
    }
}

fn daemon(user: &str) -> Result<Daemon, ConfigError> {
    let found = match user.parse() {
        Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => nix::unistd::User::from_name(user),
    };
    // Not found and not answered are one: without a number there is nobody to serve.
    let entry = found.ok().flatten().ok_or_else(|| ConfigError::NoUser(user.to_owned()))?;
    if entry.uid.is_root() {
        return Err(ConfigError::Root);
    }
    Ok(Daemon { uid: entry.uid.as_raw(), gid: entry.gid.as_raw() })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

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
        assert_eq!((config.network.gateway(), config.network.prefix()), (Ipv4Addr::new(172, 16, 0, 1), 24));
        assert_eq!(config.state, PathBuf::from("/s"));
        assert!(matches!(ask("--daemon-user nobody --check-config"), Ok(Asked::Check)));
        assert!(matches!(ask("--no-cgroup-check --version"), Ok(Asked::Version)));
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
            "--boot-id x",
            "--socket x",
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
        assert_eq!((config.network.gateway(), config.network.prefix()), (Ipv4Addr::new(10, 0, 0, 1), 16));
        assert_eq!(config.bridge_name, "br-fc");
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
