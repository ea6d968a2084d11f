//! Ports of guests that are published on the host: what users write, and what it means. Which of
//! them a user may have is decided in [`rules`].

pub mod rules;

use crate::limits::MASQUERADED;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The lowest host port that is published: those below belong to root (ip(7)), and 1024 itself is
/// left out so that "above 1024" is true.
pub const LOWEST_PORT: u16 = 1025;
/// The highest: from those behind it, guests' connections leave, and whatever comes to such a port
/// may be an answer for a guest.
pub const HIGHEST_PORT: u16 = MASQUERADED.0 - 1;
/// Ports from which a free one is chosen when nobody has given the user a range. They lie below
/// those that Linux gives to outgoing connections by default (32768, ip(7)), so that a port which
/// was chosen once is free again at the next start.
pub const FREE_PORTS: PortRange = PortRange { first: 20_000, last: 32_767 };

/// The most of one VM: all are in each answer about it, which must fit a frame.
pub const MAX_PER_VM: usize = 64;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// What is meant when nothing is written.
    #[default]
    Tcp,
    #[expect(missing_docs, reason = "as it says")]
    Udp,
}

impl Protocol {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(PortError::Protocol(shown(text))),
        }
    }
}

/// A text that is no mapping, no port and no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Neither tcp nor udp.
    #[error("{0:?} is not a protocol: it is tcp or udp")]
    Protocol(String),
    /// Not a number from 1 to 65535.
    #[error("{0:?} is not a port: it is a number from 1 to 65535")]
    Port(String),
    /// Not an address.
    #[error("{0:?} is not an address of this host, such as 127.0.0.1 or [::1]")]
    Address(String),
    /// `ADDRESS:PORT`, in which a port is missing.
    #[error("{0:?} lacks a port: write ADDRESS:PORT:PORT, or ADDRESS::PORT for a free one")]
    OnePort(String),
    /// Not `FIRST-LAST`.
    #[error("{0:?} is not a range of ports from {LOWEST_PORT} to {HIGHEST_PORT}, such as 20000-20099")]
    Range(String),
}

/// For messages: a text of a user's, cut and without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// Ports from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Is it one of them?
    #[must_use]
    pub fn has(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.last).saturating_sub(u32::from(self.first)).saturating_add(1)
    }

    /// All of them, each once, from one on that a random number chooses.
    pub fn from(self, random: u32) -> impl Iterator<Item = u16> {
        let skip = random.checked_rem(self.count()).unwrap_or(0);
        let start = self.first.saturating_add(u16::try_from(skip).unwrap_or(0));
        (start..=self.last).chain(self.first..start)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let range = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (port(first.trim()).ok()?, port(last.trim()).ok()?);
            (LOWEST_PORT <= first && first <= last && last <= HIGHEST_PORT).then_some(Self { first, last })
        };
        range().ok_or_else(|| PortError::Range(shown(text)))
    }
}

/// What a user wants: `[ADDRESS:]PORT:PORT[/udp]`, the host's port first. The host's may be left
/// out, or be 0: then a free one is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The host's address; loopback when none is written.
    pub address: IpAddr,
    /// The host's port; `None`: one that is free.
    pub host_port: Option<u16>,
    /// The guest's port.
    pub guest_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl FromStr for Mapping {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let (ports, protocol) = split_protocol(text)?;
        let (host, guest) = ports.rsplit_once(':').unwrap_or(("", ports));
        let guest_port = port(guest)?;
        let (address, host) = match host.rsplit_once(':') {
            // The colons of an address in brackets are its own.
            Some(_) if host.ends_with(']') => return Err(PortError::OnePort(shown(text))),
            Some((address, port)) => (parse_address(address)?, port),
            None if host.parse::<Ipv4Addr>().is_ok() => return Err(PortError::OnePort(shown(text))),
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
        };
        let host_port = if matches!(host, "" | "0") { None } else { Some(port(host)?) };
        Ok(Self { address, host_port, guest_port, protocol })
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = SocketAddr::new(self.address, self.host_port.unwrap_or(0));
        write!(f, "{host}:{}/{}", self.guest_port, self.protocol)
    }
}

/// What a published port is called: `[ADDRESS:]PORT[/udp]`, or the mapping that it was published
/// with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortName {
    /// `None`: whichever.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PortName {
    /// Is it this one?
    #[must_use]
    pub fn means(&self, published: &Published) -> bool {
        self.port == published.host_port
            && self.protocol == published.protocol
            && self.address.is_none_or(|address| address == published.address)
    }
}

impl FromStr for PortName {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        if let Ok(Mapping { address, host_port: Some(port), protocol, .. }) = text.parse() {
            return Ok(Self { address: Some(address), port, protocol });
        }
        let (name, protocol) = split_protocol(text)?;
        match name.rsplit_once(':') {
            Some((address, number)) => {
                Ok(Self { address: Some(parse_address(address)?), port: port(number)?, protocol })
            }
            None => Ok(Self { address: None, port: port(name)?, protocol }),
        }
    }
}

/// A port of a guest that the host listens on for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address.
    pub address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
    /// Whoever reaches it may use it; otherwise the VM's owner and root.
    pub public: bool,
    /// The guest's program is told who connects, by a header (PROXY protocol, version 2).
    pub proxy_protocol: bool,
}

impl Published {
    /// Where the host listens.
    #[must_use]
    pub fn host(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.host_port)
    }

    /// Can the host not listen for both at a time?
    #[must_use]
    pub fn excludes(&self, other: &Self) -> bool {
        let same_kind = self.protocol == other.protocol && self.address.is_ipv4() == other.address.is_ipv4();
        let everywhere = self.address.is_unspecified() || other.address.is_unspecified();
        same_kind && self.host_port == other.host_port && (everywhere || self.address == other.address)
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}/{}", self.host(), self.guest_port, self.protocol)
    }
}

fn split_protocol(text: &str) -> Result<(&str, Protocol), PortError> {
    match text.rsplit_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((ports, protocol)) => Ok((ports, protocol.parse()?)),
    }
}

/// IPv6 in brackets, as in a URL: without them nobody can tell where it ends.
fn parse_address(text: &str) -> Result<IpAddr, PortError> {
    let bad = || PortError::Address(shown(text));
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse().map(IpAddr::V6).map_err(|_| bad()),
        None => text.parse().map(IpAddr::V4).map_err(|_| bad()),
    }
}

/// Digits only: `u16` would take a sign, too.
fn port(text: &str) -> Result<u16, PortError> {
    let number = text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|port| *port != 0).ok_or_else(|| PortError::Port(shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping(address: &str, host_port: Option<u16>, guest_port: u16, protocol: Protocol) -> Mapping {
        Mapping { address: address.parse().unwrap(), host_port, guest_port, protocol }
    }

    #[test]
    fn mappings_as_users_write_them() {
        use Protocol::{Tcp, Udp};
        for (text, want) in [
            ("8080:80", mapping("127.0.0.1", Some(8080), 80, Tcp)),
            ("8080:80/tcp", mapping("127.0.0.1", Some(8080), 80, Tcp)),
            ("5353:53/udp", mapping("127.0.0.1", Some(5353), 53, Udp)),
            ("80", mapping("127.0.0.1", None, 80, Tcp)),
            (":80", mapping("127.0.0.1", None, 80, Tcp)),
            ("0:80", mapping("127.0.0.1", None, 80, Tcp)),
            ("53/udp", mapping("127.0.0.1", None, 53, Udp)),
            ("0.0.0.0:8080:80", mapping("0.0.0.0", Some(8080), 80, Tcp)),
            ("192.0.2.1::80", mapping("192.0.2.1", None, 80, Tcp)),
            ("[::1]:8080:80", mapping("::1", Some(8080), 80, Tcp)),
            ("[::1]::80/udp", mapping("::1", None, 80, Udp)),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for bad in [
            "",
            ":",
            "::",
            "x",
            "0",
            "80:0",
            "8080:",
            "+80",
            "8080:+80",
            "-1:80",
            "65536",
            "80/",
            "80/sctp",
            "80/TCP",
            "127.0.0.1:80",
            "[::1]:80",
            "::1:8080:80",
            "1.2.3:8080:80",
            "localhost:8080:80",
            "8080:80:90",
            "[127.0.0.1]:1:2",
            "8080 :80",
            " 80",
        ] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
        assert_eq!("127.0.0.1:80".parse::<Mapping>(), Err(PortError::OnePort("127.0.0.1:80".into())));
        assert_eq!("[::1]:80".parse::<Mapping>(), Err(PortError::OnePort("[::1]:80".into())));
    }

    #[test]
    fn a_published_port_is_named_by_its_port_its_address_or_its_mapping() {
        let published = Published {
            protocol: Protocol::Tcp,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host_port: 8080,
            guest_port: 80,
            public: false,
            proxy_protocol: false,
        };
        for (text, means) in [
            ("8080", true),
            ("8080/tcp", true),
            ("127.0.0.1:8080", true),
            ("8080:80", true),
            ("8080/udp", false),
            ("80", false),
            ("127.0.0.2:8080", false),
            ("[::1]:8080", false),
            ("[::1]:8080:80", false),
        ] {
            assert_eq!(text.parse::<PortName>().unwrap().means(&published), means, "{text}");
        }
        assert!("".parse::<PortName>().is_err());
    }

    #[test]
    fn a_range_begins_above_1024_and_ends_below_what_guests_leave_from_and_not_before_it_begins() {
        for bad in ["", "20000", "1024-2000", "20-10", "3000-2000", "2000-65536", "2000-52000", "a-b", "-"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        let range: PortRange = "2000-2000".parse().unwrap();
        assert_eq!((range.count(), range.has(2000), range.has(1999), range.has(2001)), (1, true, false, false));
        assert_eq!(FREE_PORTS.to_string().parse(), Ok(FREE_PORTS));
    }

    fn published() -> impl Strategy<Value = Published> {
        let address = prop_oneof![
            Just("127.0.0.1"),
            Just("127.0.0.2"),
            Just("0.0.0.0"),
            Just("::1"),
            Just("::"),
            Just("2001:db8::1")
        ];
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        (protocol, address, 1025_u16..1028, any::<u16>()).prop_map(|(protocol, address, host_port, guest_port)| {
            let address = address.parse().unwrap();
            Published {
                protocol,
                address,
                host_port,
                guest_port: guest_port.max(1),
                public: false,
                proxy_protocol: false,
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(published in published(), free in any::<bool>()) {
            let Published { address, host_port, guest_port, protocol, .. } = published;
            let mapping = Mapping { address, host_port: (!free).then_some(host_port), guest_port, protocol };
            prop_assert_eq!(mapping.to_string().parse::<Mapping>(), Ok(mapping));
            let name: PortName = format!("{}/{protocol}", published.host()).parse().unwrap();
            prop_assert!(name.means(&published));
        }

        #[test]
        fn no_text_does_harm(text in "[0-9:.\\[\\]/a-z+ -]{0,40}") {
            if let Ok(mapping) = text.parse::<Mapping>() {
                prop_assert!(mapping.guest_port > 0 && mapping.host_port != Some(0));
            }
            drop((text.parse::<PortName>(), text.parse::<PortRange>()));
        }

        #[test]
        fn two_that_exclude_each_other_do_so_both_ways(one in published(), other in published()) {
            prop_assert_eq!(one.excludes(&other), other.excludes(&one));
            prop_assert!(one.excludes(&one));
            if one.protocol != other.protocol || one.host_port != other.host_port {
                prop_assert!(!one.excludes(&other));
            }
        }

        #[test]
        fn a_range_is_gone_through_once_from_wherever_it_begins(first in 1025_u16.., more in 0_u16..300, random: u32) {
            let range = PortRange { first, last: first.saturating_add(more) };
            let mut all: Vec<u16> = range.from(random).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (range.first..=range.last).collect::<Vec<_>>());
        }
    }
}
