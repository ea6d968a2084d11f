//! Flags. There is no configuration file and no environment variable: what root's unit file says is all.

use crate::host::Daemon;
use crate::proc::CGROUPS;
use banger_policy::net::{Network, NetworkError};
use std::ffi::OsString;
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
  --bridge-name NAME      the link with the bridge address (default br-fc)
  --bridge-ip ADDRESS     the host's address towards VMs (default 172.16.0.1)
  --cidr BITS             prefix length of the VMs' network (default 24)
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
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
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
    #[error("--bridge-ip or --cidr: {0}")]
    Network(#[from] NetworkError),
}

/// Reads the command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, ConfigError> {
    let mut user = String::from("bangerd");
    let mut unit = Some(String::from("system.slice/bangerd.service"));
    let (mut images, mut state) = (PathBuf::from("/var/lib/banger/images"), PathBuf::from("/var/lib/banger-priv"));
    let (mut runtime, mut socket) = (PathBuf::from("/run/banger-priv"), None);
    let (mut bridge_name, mut address, mut prefix) = (String::from("br-fc"), Ipv4Addr::new(172, 16, 0, 1), 24);
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
            Some("--socket") => socket = Some(absolute("--socket", value("--socket")?)?),
            Some("--bridge-name") => bridge_name = link_name(value("--bridge-name")?)?,
            Some("--bridge-ip") => address = number("--bridge-ip", value("--bridge-ip")?, "an IPv4 address")?,
            Some("--cidr") => prefix = number("--cidr", value("--cidr")?, "a prefix length")?,
            _ => return Err(ConfigError::Unknown(argument)),
        }
    }
    let network = Network::new(address, prefix)?;
    let daemon = daemon(&user)?;
    if check {
        return Ok(Asked::Check);
    }
    Ok(Asked::Serve(Box::new(Config { daemon, unit, images, state, runtime, bridge_name, network, socket })))
}

fn bad(flag: &'static str, value: OsString, expected: &'static str) -> ConfigError {
    ConfigError::Value { flag, value, expected }
}

fn text(flag: &'static str, value: OsString) -> Result<String, ConfigError> {
    value.into_string().map_err(|value| bad(flag, value, "text"))
}

fn number<T: std::str::FromStr>(flag: &'static str, value: OsString, expected: &'static str) -> Result<T, ConfigError> {
    value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| bad(flag, value, expected))
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

/// Never one that a VM's tap could have.
fn link_name(value: OsString) -> Result<String, ConfigError> {
    let plain = |name: &&str| name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
    let fits = |name: &&str| (1..16).contains(&name.len()) && !name.starts_with(banger_policy::id::DEVICE_PREFIX);
    let name = value.to_str().filter(plain).filter(fits).map(str::to_owned);
    name.ok_or_else(|| bad("--bridge-name", value, "a link name of 1 to 15 characters, not beginning with bgr-"))
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
    #![expect(clippy::panic, reason = "a test fails by panicking")]
    use super::*;

    fn ask(line: &str) -> Result<Asked, ConfigError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_are_read() {
        let Ok(Asked::Serve(config)) = ask(
            "--daemon-user nobody --daemon-cgroup /sys/fs/cgroup/x.slice/y --bridge-ip 10.0.0.1 --cidr 16 --state /s",
        ) else {
            panic!("refused")
        };
        assert_eq!(config.unit.as_deref(), Some("x.slice/y"));
        assert_eq!((config.network.gateway(), config.network.prefix()), (Ipv4Addr::new(10, 0, 0, 1), 16));
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
            "--bridge-name bgr-x",
            "--bridge-name a/b",
            "--bridge-name 0123456789abcdef",
            "--bridge-ip 8.8.8.8",
            "--cidr 8",
            "--cidr",
            "--socket x",
            "serve",
        ] {
            assert!(ask(&format!("--daemon-user nobody {line}")).is_err(), "{line}");
        }
    }
}
