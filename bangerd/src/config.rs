//! `/etc/banger/banger.toml`: read at the start and at each reload, checked as a whole, refused
//! with key and line.
//!
//! Used by the start-up and, through [`Live`], by whoever needs a default.

pub(crate) mod dns;
pub(crate) mod limits;
mod live;

use crate::start_error::StartError;
use banger_policy::file_sync::FileSync;
use banger_policy::limits::{DEFAULT_STATS_POLL_SECONDS, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use banger_policy::net::{BridgeKeys, Network};
use banger_policy::publish::rules::{Subnet, SubnetError};
use banger_policy::reach::Mode;
use banger_policy::{ByteSize, ImageName};
use dns::{Dns, RawDns};
use limits::{Limits, RawLimits};
pub(crate) use live::{FileState, Live, Reloaded, reload};
use serde::Deserialize;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `guest_ready_timeout` may be.
const READY_TIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);

/// The checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter.
    pub(crate) log_level: String,
    /// The VMM; looked for in the fixed folders when `None`.
    pub(crate) firecracker_bin: Option<PathBuf>,
    /// VMs untouched for longer are stopped; zero: never.
    pub(crate) auto_stop_stale_after: Duration,
    /// How often running VMs are measured.
    pub(crate) stats_poll_interval: Duration,
    /// How long a guest may take to say that it is ready.
    pub(crate) guest_ready_timeout: Duration,
    /// The dummy link that carries the gateway's address; made by the helper.
    pub(crate) bridge_name: String,
    /// Gateway and prefix of the VMs' network.
    pub(crate) network: Network,
    /// The guests' resolver.
    pub(crate) default_dns: Ipv4Addr,
    /// What `vm run` takes when no image is named.
    pub(crate) default_image_name: Option<ImageName>,
    /// Copied into new VMs by the command line, which reads the file itself: nobody else decides
    /// which files of a user it opens. Checked here, and said to have changed.
    pub(crate) file_sync: Vec<FileSync>,
    /// Sizes when no flag says otherwise.
    pub(crate) vm_defaults: VmDefaults,
    /// How much a user may have.
    pub(crate) limits: Limits,
    /// Names of VMs.
    pub(crate) dns: Dns,
    /// Networks of the host's addresses on which ports may be published, beside loopback.
    pub(crate) publish: Vec<Subnet>,
}

/// Sizes and network of new VMs, as far as the administrator decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VmDefaults {
    pub(crate) vcpu: Option<u32>,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) disk_size: Option<u64>,
    pub(crate) system_overlay_size: Option<u64>,
    /// How far guests reach.
    pub(crate) net: Mode,
}

/// The file as it is written. Names are a contract (docs/contract.md, "Limits and defaults"): add,
/// never rename.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    log_level: String,
    firecracker_bin: Option<PathBuf>,
    /// Has no effect: the daemon logs in to no guest any more.
    ssh_key_path: Option<PathBuf>,
    auto_stop_stale_after: String,
    stats_poll_interval: String,
    guest_ready_timeout: String,
    bridge_name: String,
    bridge_ip: Ipv4Addr,
    cidr: u8,
    /// Accepted and without effect: making a tap takes about 2 ms, which a pool would have to hide.
    tap_pool_size: u32,
    default_dns: Ipv4Addr,
    default_image_name: Option<String>,
    file_sync: Vec<FileSync>,
    vm_defaults: RawDefaults,
    limits: RawLimits,
    dns: RawDns,
    publish: RawPublish,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPublish {
    networks: Vec<String>,
}

impl Default for RawPublish {
    /// Every user can listen on the network with a program of their own anyway: to forbid it here
    /// only is for who has forbidden that, too.
    fn default() -> Self {
        Self { networks: ["0.0.0.0/0", "::/0"].map(str::to_owned).into() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDefaults {
    vcpu: Option<u32>,
    memory_mib: Option<u32>,
    disk_size: Option<String>,
    system_overlay_size: Option<String>,
    net: Option<String>,
}

impl Default for Raw {
    fn default() -> Self {
        let bridge = BridgeKeys::default();
        Self {
            log_level: "info".to_owned(),
            firecracker_bin: None,
            ssh_key_path: None,
            auto_stop_stale_after: "0s".to_owned(),
            stats_poll_interval: format!("{DEFAULT_STATS_POLL_SECONDS}s"),
            guest_ready_timeout: "3m".to_owned(),
            bridge_name: bridge.bridge_name,
            bridge_ip: bridge.bridge_ip,
            cidr: bridge.cidr,
            tap_pool_size: 0,
            default_dns: Ipv4Addr::new(1, 1, 1, 1),
            default_image_name: None,
            file_sync: Vec::new(),
            vm_defaults: RawDefaults::default(),
            limits: RawLimits::default(),
            dns: RawDns::default(),
            publish: RawPublish::default(),
        }
    }
}

/// Reads the file at `path`; when it does not exist and was not `named` by the administrator, the
/// defaults.
///
/// # Errors
/// [`StartError::ConfigRead`], or [`StartError::Config`] with key and line.
pub(crate) fn load(path: &Path, named: bool) -> Result<Config, StartError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => parse("", path),
        Err(source) => Err(StartError::ConfigRead { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
impl Config {
    /// As without a file.
    pub(crate) fn built_in() -> Self {
        #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
        let config = parse("", Path::new("banger.toml")).unwrap();
        // Tests run on a machine of any size.
        Self { limits: Limits::of_host(banger_policy::quota::HostLimits::NONE), ..config }
    }
}

fn parse(text: &str, path: &Path) -> Result<Config, StartError> {
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        let why = error.message().lines().next().unwrap_or("not TOML").to_owned();
        StartError::Config { path: path.to_owned(), place: format!("line {line}"), why }
    })?;
    check(raw).map_err(|(key, why)| StartError::Config { path: path.to_owned(), place: place_of(text, key), why })
}

/// The line on which a key of the last dotted part stands, for messages.
fn place_of(text: &str, key: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let line = text.lines().position(|line| line.trim_start().starts_with(last));
    line.map_or_else(|| key.to_owned(), |line| format!("line {}: {key}", line + 1))
}

/// A key, and why its value is refused.
pub(crate) type Refused = (&'static str, String);

fn check(raw: Raw) -> Result<Config, Refused> {
    let stats_poll_interval = duration("stats_poll_interval", &raw.stats_poll_interval)?;
    if stats_poll_interval < Duration::from_secs(1) {
        return Err(("stats_poll_interval", "the shortest interval is 1s".to_owned()));
    }
    let guest_ready_timeout = duration("guest_ready_timeout", &raw.guest_ready_timeout)?;
    if !READY_TIMES.contains(&guest_ready_timeout) {
        return Err(("guest_ready_timeout", "a guest gets 5s to 1h".to_owned()));
    }
    let keys = BridgeKeys { bridge_name: raw.bridge_name, bridge_ip: raw.bridge_ip, cidr: raw.cidr };
    let bridge = keys.check().map_err(|error| (error.key(), error.to_string()))?;
    for (key, path) in [("firecracker_bin", &raw.firecracker_bin), ("ssh_key_path", &raw.ssh_key_path)] {
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err((key, "the path must be absolute".to_owned()));
        }
    }
    raw.file_sync.iter().try_for_each(FileSync::check)?;
    Ok(Config {
        network: bridge.network(),
        auto_stop_stale_after: duration("auto_stop_stale_after", &raw.auto_stop_stale_after)?,
        stats_poll_interval,
        guest_ready_timeout,
        log_level: raw.log_level,
        firecracker_bin: raw.firecracker_bin,
        bridge_name: bridge.name().to_owned(),
        default_dns: raw.default_dns,
        default_image_name: raw
            .default_image_name
            .map(|name| name.parse())
            .transpose()
            .map_err(|error: banger_policy::name::NameError| ("default_image_name", error.to_string()))?,
        file_sync: raw.file_sync,
        vm_defaults: defaults(&raw.vm_defaults)?,
        limits: limits::check(raw.limits)?,
        dns: dns::check(raw.dns)?,
        publish: raw
            .publish
            .networks
            .iter()
            .map(|text| text.parse().map_err(|error: SubnetError| ("publish.networks", error.to_string())))
            .collect::<Result<_, _>>()?,
    })
}

fn defaults(raw: &RawDefaults) -> Result<VmDefaults, Refused> {
    if raw.vcpu.is_some_and(|vcpu| !(1..=MAX_VCPUS).contains(&vcpu)) {
        return Err(("vm_defaults.vcpu", format!("a VM has 1 to {MAX_VCPUS} vCPUs")));
    }
    if raw.memory_mib.is_some_and(|mib| !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mib)) {
        return Err(("vm_defaults.memory_mib", format!("a VM has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB")));
    }
    let net = raw.net.as_deref().map_or(Ok(Mode::None), str::parse::<Mode>);
    let net = net.map_err(|error| ("vm_defaults.net", error.to_string()))?;
    if net == Mode::Allow {
        return Err(("vm_defaults.net", "a list belongs to one VM: this is `none`, `public` or `nat`".to_owned()));
    }
    let size = |key, text: &Option<String>| match text.as_deref().map(str::parse::<ByteSize>) {
        None => Ok(None),
        Some(Ok(size)) => Ok(Some(size.bytes())),
        Some(Err(error)) => Err((key, error.to_string())),
    };
    Ok(VmDefaults {
        vcpu: raw.vcpu,
        memory_mib: raw.memory_mib,
        disk_size: size("vm_defaults.disk_size", &raw.disk_size)?,
        system_overlay_size: size("vm_defaults.system_overlay_size", &raw.system_overlay_size)?,
        net,
    })
}

fn duration(key: &'static str, text: &str) -> Result<Duration, Refused> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|error| (key, format!("{text:?} is not a time such as 10s or 2h: {error}")))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text, Path::new("/etc/banger/banger.toml")).unwrap_err().to_string()
    }

    #[test]
    fn the_packaged_example_is_the_defaults() {
        let example = include_str!("../../packaging/banger.toml");
        let read = parse(example, Path::new("banger.toml")).unwrap();
        assert_eq!(read, parse("", Path::new("")).unwrap());
        // What it shows commented out must be valid too: it is there to be uncommented.
        let lines = example.lines().map(|line| line.strip_prefix("#:").unwrap_or(line).to_owned() + "\n");
        let all = parse(&lines.collect::<String>(), Path::new("banger.toml")).unwrap();
        assert_eq!(all.file_sync.len(), 1);
        assert!(all.firecracker_bin.is_some() && all.vm_defaults.vcpu.is_some());
    }

    #[test]
    fn the_example_of_the_page_for_administrators_is_valid() {
        let page = include_str!("../../docs/admin.md");
        let examples: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(!examples.is_empty());
        for example in examples {
            assert_ne!(parse(example, Path::new("docs/admin.md")).unwrap(), parse("", Path::new("")).unwrap());
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_name_and_line() {
        let why = refusal("log_level = \"info\"\n\nbrige_name = \"br-fc\"\n");
        assert!(why.contains("banger.toml") && why.contains("line 3") && why.contains("brige_name"), "{why}");
        let why = refusal("[vm_defaults]\nvcpus = 2\n");
        assert!(why.contains("line 2") && why.contains("vcpus"), "{why}");
    }

    #[test]
    fn bad_values_are_refused_with_key_and_line() {
        for (text, key) in [
            ("[vm_defaults]\ndisk_size = \"9X\"", "line 2: vm_defaults.disk_size"),
            ("[vm_defaults]\nvcpu = 99", "line 2: vm_defaults.vcpu"),
            ("cidr = 31", "line 1: cidr"),
            ("bridge_ip = \"8.8.8.8\"", "line 1: bridge_ip"),
            ("stats_poll_interval = \"soon\"", "line 1: stats_poll_interval"),
            ("stats_poll_interval = \"1ms\"", "line 1: stats_poll_interval"),
            ("guest_ready_timeout = \"0\"", "line 1: guest_ready_timeout"),
            ("bridge_name = \"a/b\"", "line 1: bridge_name"),
            // Names that the helper keeps for VMs: what it would refuse is refused here as well.
            ("bridge_name = \"bgr-x\"", "line 1: bridge_name"),
            ("bridge_name = \"..\"", "line 1: bridge_name"),
            ("firecracker_bin = \"bin/fc\"", "line 1: firecracker_bin"),
            ("[[file_sync]]\nhost = \"~/x\"\nguest = \"/etc/x\"", "line 3: file_sync.guest"),
            ("[[file_sync]]\nhost = \"~/x\"\nguest = \"/root/x\"\nmode = \"9\"", "line 4: file_sync.mode"),
            ("default_image_name = \"../x\"", "line 1: default_image_name"),
            ("[dns]\nlisten = \"0.0.0.0:53\"", "line 2: dns.listen"),
            ("[publish]\nnetworks = [\"10.0.0.1/8\"]", "line 2: publish.networks"),
            ("[limits.users.alice]\ndisk = \"much\"", "line 2: limits.disk"),
            ("[vm_defaults]\nnet = \"all\"", "line 2: vm_defaults.net"),
            ("[vm_defaults]\nnet = \"allow\"", "line 2: vm_defaults.net"),
        ] {
            let why = refusal(text);
            assert!(why.contains(key), "{text}: {why}");
        }
    }

    #[test]
    fn a_missing_file_is_refused_only_when_it_was_named() {
        let path = Path::new("/nonexistent/banger.toml");
        assert!(load(path, false).is_ok());
        assert!(matches!(load(path, true), Err(StartError::ConfigRead { .. })));
    }
}
