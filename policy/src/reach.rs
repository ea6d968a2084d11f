//! How far a guest reaches out of its VM: the modes, what a list of destinations holds, and which
//! addresses are not of the public internet. The helper's rules follow from it
//! (`helper::firewall`); the daemon resolves names.
//!
//! Whatever the mode, a guest reaches neither the host, nor a metadata service, nor another user's
//! guest.

use crate::id::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The most ranges of one VM, with the addresses of all names in its list.
pub const MAX_TARGETS: usize = 256;

/// Where a guest may begin a flow to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nowhere.
    #[default]
    None,
    /// To the public internet, and to no private network: see [`NOT_PUBLIC`].
    Public,
    /// Wherever the host routes to.
    Nat,
    /// To what a list names.
    Allow,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 4] = [Mode::None, Mode::Public, Mode::Nat, Mode::Allow];

    /// As on the command line, in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Public => "public",
            Mode::Nat => "nat",
            Mode::Allow => "allow",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network mode: it is `none`, `public`, `nat` or `allow`")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

/// Ranges that are not of the public internet: private (RFC 1918), shared (RFC 6598), link-local,
/// loopback, multicast, and what IANA's registry of special-purpose addresses reserves. Ordered,
/// and none touches another.
pub const NOT_PUBLIC: [(Ipv4Addr, u8); 13] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Is this an address of the public internet?
#[must_use]
pub fn is_public(address: Ipv4Addr) -> bool {
    !NOT_PUBLIC.into_iter().any(|(network, prefix)| Range { network, prefix }.contains(address))
}

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    network: Ipv4Addr,
    prefix: u8,
}

impl Range {
    /// The range around an address; bits of it beyond the prefix are dropped. `None` for a prefix
    /// above 32.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        if prefix > 32 {
            return None;
        }
        Some(Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix })
    }

    /// One address.
    #[must_use]
    pub fn one(address: Ipv4Addr) -> Self {
        Self { network: address, prefix: 32 }
    }

    /// Its first address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.network
    }

    /// Its last address.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Is the address in it?
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Is all of `other` in it?
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.network)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(prefix))).unwrap_or(0)
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Range {
    type Err = Malformed;

    /// `ADDRESS` or `ADDRESS/PREFIX`; in its shortest form only.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = || Malformed::new(text);
        let (address, prefix) = match text.split_once('/') {
            None => (text, 32),
            Some((address, prefix)) => (address, number(prefix).ok_or_else(wrong)?),
        };
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let range = Self::new(address, prefix).ok_or_else(wrong)?;
        if range.network == address { Ok(range) } else { Err(Malformed::bits(text, range)) }
    }
}

/// Digits without a sign or a leading zero.
pub(crate) fn number<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if plain && (text == "0" || !text.starts_with('0')) { text.parse().ok() } else { None }
}

/// What has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

    /// Its number in the header of IPv4.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// As in a list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// A text that is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct Malformed {
    text: String,
    why: String,
}

impl Malformed {
    pub(crate) fn new(text: &str) -> Self {
        let why = "is no destination: it is an address, ADDRESS/PREFIX or a name, perhaps with :PORT or :PORT/tcp";
        Self::because(text, why)
    }

    pub(crate) fn because(text: &str, why: &str) -> Self {
        // Quoted in answers and in the journal.
        Self { text: text.chars().take(80).collect(), why: why.to_owned() }
    }

    fn bits(text: &str, range: Range) -> Self {
        Self::because(text, &format!("has bits beyond its prefix; the range is {range}"))
    }
}

/// A range that a guest may reach, wholly or at one port of one protocol. This is what the helper
/// is told: no name is left in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// Where.
    pub range: Range,
    /// At which port; `None`: everything.
    pub service: Option<(Protocol, u16)>,
}

impl Target {
    /// Is all that `other` allows allowed by this one?
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.service == other.service && self.range.covers(other.range)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.service {
            None => self.range.fmt(f),
            Some((protocol, port)) => write!(f, "{}:{port}/{}", self.range, protocol.as_str()),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = Malformed;

    /// What [`Target`]'s `Display` writes, and nothing else.
    fn try_from(text: String) -> Result<Self, Malformed> {
        let wrong = || Malformed::new(&text);
        let (range, service) = match text.split_once(':') {
            None => (text.as_str(), None),
            Some((range, service)) => {
                let (port, protocol) = service.split_once('/').ok_or_else(wrong)?;
                let protocol = Protocol::ALL.into_iter().find(|known| known.as_str() == protocol);
                (range, Some((protocol.ok_or_else(wrong)?, number(port).ok_or_else(wrong)?)))
            }
        };
        let target = Self { range: range.parse()?, service };
        if target.to_string() == text { Ok(target) } else { Err(wrong()) }
    }
}

/// What the helper is asked to let a guest reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// How far.
    pub mode: Mode,
    /// With [`Mode::Allow`]: to these.
    pub targets: Vec<Target>,
    /// The private network that it is in, by an id that the daemon makes from its owner's name and
    /// its own. Only VMs of one owner that give the same id reach each other.
    pub group: Option<Digest>,
}

impl Reach {
    /// Without a list, in no network.
    #[must_use]
    pub fn of(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// The same with every target once and none that another covers, in order; `None` when there
    /// are more than [`MAX_TARGETS`], or some in another mode than [`Mode::Allow`].
    #[must_use]
    pub fn checked(mut self) -> Option<Self> {
        if self.targets.len() > MAX_TARGETS || (self.mode != Mode::Allow && !self.targets.is_empty()) {
            return None;
        }
        self.targets.sort_unstable();
        self.targets.dedup();
        let all = self.targets.clone();
        self.targets.retain(|target| !all.iter().any(|other| other != target && other.covers(*target)));
        Some(self)
    }

    /// What both let pass, and perhaps less: from one to the other by way of it, nothing passes in
    /// between that neither of them allows.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let mode = match (self.mode, other.mode) {
            (mode, same) if mode == same => mode,
            (Mode::Public, Mode::Nat) | (Mode::Nat, Mode::Public) => Mode::Public,
            _ => Mode::None,
        };
        let both = |target: &&Target| mode == Mode::Allow && other.targets.contains(target);
        Self {
            mode,
            targets: self.targets.iter().filter(both).copied().collect(),
            group: self.group.filter(|_| self.group == other.group),
        }
    }
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
