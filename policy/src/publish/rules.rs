//! Which ports may be published, and who may use one that is.

use super::{HIGHEST_PORT, LOWEST_PORT, Mapping, PortRange, Protocol};
use crate::decision::Decision;
use crate::net::Network;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Addresses with the same beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

/// A text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network such as 192.0.2.0/24 or 2001:db8::/32, with all bits behind the prefix zero")]
pub struct SubnetError(String);

impl Subnet {
    /// Is the address in it?
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix.into())).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(self.prefix.into())).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }

    /// Is every bit behind the prefix zero?
    fn is_plain(&self) -> bool {
        let host_bits = match self.address {
            IpAddr::V4(address) => {
                u128::from(address.to_bits() & u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0))
            }
            IpAddr::V6(address) => address.to_bits() & u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0),
        };
        host_bits == 0
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let parsed = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let digits = !prefix.is_empty() && prefix.bytes().all(|c| c.is_ascii_digit());
            let prefix: u8 = prefix.parse().ok().filter(|_| digits)?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            (prefix <= most).then_some(Self { address, prefix }).filter(Self::is_plain)
        };
        parsed().ok_or_else(|| SubnetError(super::shown(text)))
    }
}

/// What an administrator has decided, and where the guests are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Networks of the host's addresses that may be listened on beside loopback.
    pub networks: Vec<Subnet>,
    /// The VMs' own.
    pub guests: Network,
}

/// Why a port is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Below the lowest.
    #[error("port {0} is the system's: published ports begin with {LOWEST_PORT}")]
    Low(u16),
    /// Above the highest.
    #[error("from port {0} guests may reach out: published ports end with {HIGHEST_PORT}")]
    High(u16),
    /// Outside the user's range.
    #[error("port {port} is not one of yours, which are {range}")]
    NotYours {
        #[expect(missing_docs, reason = "as it says")]
        port: u16,
        #[expect(missing_docs, reason = "as it says")]
        range: PortRange,
    },
    /// The administrator's networks do not have it.
    #[error("ports are not published on {0}: the administrator has not allowed that")]
    Forbidden(IpAddr),
    /// An address of the VMs' network, or one that guests ask for data about themselves.
    #[error("{0} belongs to the VMs' side of the host: no port is published there")]
    Guests(IpAddr),
    /// No address that can be listened on.
    #[error("{0} is not an address that a host has")]
    Odd(IpAddr),
    /// Everybody would reach it.
    #[error("everybody reaches {0}: to publish a port there, add --public")]
    NotPublic(IpAddr),
    /// An answer would come from another address than the one that was asked.
    #[error("name one address for UDP, such as 192.0.2.1: an answer from {0} could come from another one")]
    EverywhereUdp(IpAddr),
    /// The header begins a connection, and UDP has none.
    #[error("the PROXY protocol is for TCP")]
    ProxyUdp,
}

/// Of the VMs' network, or link-local as 169.254.169.254 is, where guests ask for metadata.
#[must_use]
pub fn is_guests(address: IpAddr, guests: Network) -> bool {
    match address {
        IpAddr::V4(address) => {
            let prefix = guests.prefix();
            let own = Subnet { address: IpAddr::V4(guests.gateway()), prefix };
            own.has(IpAddr::V4(address)) || address.is_link_local()
        }
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether a port may be published so. `range`: the user's ports; without, all from the lowest to
/// the highest.
///
/// # Errors
/// The first rule that is against it.
pub fn may(
    wanted: &Mapping,
    public: bool,
    proxy_protocol: bool,
    range: Option<PortRange>,
    rules: &Rules,
) -> Result<(), Refused> {
    let address = wanted.address;
    wanted.host_port.map_or(Ok(()), |port| has(port, range))?;
    if wanted.protocol == Protocol::Udp {
        if proxy_protocol {
            return Err(Refused::ProxyUdp);
        }
        if address.is_unspecified() {
            return Err(Refused::EverywhereUdp(address));
        }
    }
    listen(address, public, rules)
}

/// Whether a port that was published may still be the user's.
///
/// # Errors
/// As [`may`].
pub fn has(port: u16, range: Option<PortRange>) -> Result<(), Refused> {
    if port < LOWEST_PORT {
        return Err(Refused::Low(port));
    }
    if port > HIGHEST_PORT {
        return Err(Refused::High(port));
    }
    match range.filter(|range| !range.has(port)) {
        Some(range) => Err(Refused::NotYours { port, range }),
        None => Ok(()),
    }
}

/// Whether the host may listen on an address. Asked again whenever a VM starts: the administrator
/// may have changed the rules since the port was published.
///
/// # Errors
/// As [`may`].
pub fn listen(address: IpAddr, public: bool, rules: &Rules) -> Result<(), Refused> {
    let odd = match address {
        IpAddr::V4(address) => {
            address.is_multicast() || address.is_broadcast() || address.octets().first() >= Some(&240)
        }
        // One of IPv4 in disguise would pass the rules for IPv4.
        IpAddr::V6(address) => address.is_multicast() || address.to_ipv4_mapped().is_some(),
    };
    if odd || (address.is_ipv4() && !address.is_unspecified() && is_zero_net(address)) {
        return Err(Refused::Odd(address));
    }
    if is_guests(address, rules.guests) {
        return Err(Refused::Guests(address));
    }
    if address.is_loopback() {
        return Ok(());
    }
    // Everywhere is more than any network but the whole: 0.0.0.0 is in 0.0.0.0/0 only.
    let allowed = |network: &Subnet| network.has(address) && (!address.is_unspecified() || network.prefix == 0);
    if !rules.networks.iter().any(allowed) {
        return Err(Refused::Forbidden(address));
    }
    if public { Ok(()) } else { Err(Refused::NotPublic(address)) }
}

/// 0.0.0.0/8 beside 0.0.0.0 itself: "this network" (RFC 1122).
fn is_zero_net(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets().first() == Some(&0))
}

/// Who is at the other end of a connection to a port that is not public: the uid of the socket's
/// owner, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A socket of this host with this owner.
    Uid(u32),
    /// The kernel names no owner: the socket is not here, or is closed already. A closed one is
    /// shown as root's, which is why it must not count as anybody's.
    Unknown,
}

/// May they use a port that is not public?
pub fn may_use(owner: u32, caller: Caller) -> Decision<(), Caller> {
    match caller {
        Caller::Uid(uid) if uid == owner || uid == 0 => Decision::Allow(()),
        other => Decision::Deny(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn rules(networks: &[&str]) -> Rules {
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        Rules { networks, guests: Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap() }
    }

    fn answer(mapping: &str, public: bool, networks: &[&str]) -> Result<(), Refused> {
        may(&mapping.parse().unwrap(), public, false, None, &rules(networks))
    }

    #[test]
    fn loopback_is_always_there_and_the_network_only_when_both_sides_say_so() {
        let all = ["0.0.0.0/0", "::/0"];
        let lan = ["192.0.2.0/24"];
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (mapping, public, networks, want) in [
            ("8080:80", false, &[][..], Ok(())),
            ("127.0.0.9:8080:80", true, &[], Ok(())),
            ("[::1]:8080:80", false, &[], Ok(())),
            ("192.0.2.7:8080:80", true, &lan, Ok(())),
            ("192.0.2.7:8080:80", false, &lan, Err(Refused::NotPublic(ip("192.0.2.7")))),
            ("192.0.3.7:8080:80", true, &lan, Err(Refused::Forbidden(ip("192.0.3.7")))),
            ("192.0.2.7:8080:80", true, &[], Err(Refused::Forbidden(ip("192.0.2.7")))),
            ("0.0.0.0:8080:80", true, &all, Ok(())),
            ("0.0.0.0:8080:80", false, &all, Err(Refused::NotPublic(ip("0.0.0.0")))),
            ("0.0.0.0:8080:80", true, &lan, Err(Refused::Forbidden(ip("0.0.0.0")))),
            ("0.0.0.0:8080:80", true, &["0.0.0.0/1"], Err(Refused::Forbidden(ip("0.0.0.0")))),
            ("[::]:8080:80", true, &all, Ok(())),
            ("[::]:8080:80", true, &["0.0.0.0/0"], Err(Refused::Forbidden(ip("::")))),
            ("172.16.0.1:8080:80", true, &all, Err(Refused::Guests(ip("172.16.0.1")))),
            ("172.16.0.77:8080:80", true, &all, Err(Refused::Guests(ip("172.16.0.77")))),
            ("169.254.169.254:8080:80", true, &all, Err(Refused::Guests(ip("169.254.169.254")))),
            ("[fe80::1]:8080:80", true, &all, Err(Refused::Guests(ip("fe80::1")))),
            ("[::ffff:172.16.0.1]:8080:80", true, &all, Err(Refused::Odd(ip("::ffff:172.16.0.1")))),
            ("224.0.0.1:8080:80", true, &all, Err(Refused::Odd(ip("224.0.0.1")))),
            ("0.0.0.1:8080:80", true, &all, Err(Refused::Odd(ip("0.0.0.1")))),
            ("0.0.0.0:5353:53/udp", true, &all, Err(Refused::EverywhereUdp(ip("0.0.0.0")))),
            ("1024:80", false, &[], Err(Refused::Low(1024))),
            ("1025:80", false, &[], Ok(())),
            ("51999:80", false, &[], Ok(())),
            ("52000:80", false, &[], Err(Refused::High(52_000))),
            ("192.0.2.7:65535:80", true, &lan, Err(Refused::High(65_535))),
        ] {
            assert_eq!(answer(mapping, public, networks), want, "{mapping} {public} {networks:?}");
        }
    }

    #[test]
    fn a_user_with_a_range_gets_no_other_port_and_udp_no_header() {
        let range: PortRange = "20000-20099".parse().unwrap();
        let of = |text: &str, proxy| may(&text.parse().unwrap(), false, proxy, Some(range), &rules(&[]));
        assert_eq!(of("20099:80", true), Ok(()));
        assert_eq!(of("80", false), Ok(()));
        assert_eq!(of("20100:80", false), Err(Refused::NotYours { port: 20100, range }));
        assert_eq!(of("20000:53/udp", true), Err(Refused::ProxyUdp));
    }

    #[test]
    fn the_owner_and_root_use_a_port_and_nobody_who_is_not_known() {
        for (caller, allowed) in [
            (Caller::Uid(1001), true),
            (Caller::Uid(0), true),
            (Caller::Uid(1002), false),
            (Caller::Uid(u32::MAX), false),
            (Caller::Unknown, false),
        ] {
            assert_eq!(may_use(1001, caller).granted().is_ok(), allowed, "{caller:?}");
        }
        assert!(may_use(0, Caller::Unknown).granted().is_err());
    }

    #[test]
    fn networks_are_written_with_their_own_first_address() {
        for bad in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::1/64", "::/129", "x/8"]
        {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        for good in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.7/32", "::/0", "2001:db8::/32", "::1/128"] {
            assert_eq!(good.parse::<Subnet>().unwrap().to_string(), good);
        }
    }

    proptest! {
        /// Whatever is allowed: never on the guests' side, and never open to the network without a
        /// word.
        #[test]
        fn nothing_is_published_on_the_guests_side(bits: u32, low in 0_u32..256, near: bool, public: bool, port: u16) {
            let gateway = Ipv4Addr::new(172, 16, 0, 1).to_bits();
            let address = Ipv4Addr::from_bits(if near { (gateway & !0xff) | low } else { bits });
            let mapping = Mapping {
                address: IpAddr::V4(address), host_port: Some(port), guest_port: 80, protocol: Protocol::Tcp,
            };
            let rules = rules(&["0.0.0.0/0", "::/0"]);
            if may(&mapping, public, false, None, &rules).is_ok() {
                prop_assert!(!is_guests(mapping.address, rules.guests));
                prop_assert!(public || address.is_loopback());
                prop_assert!((LOWEST_PORT..=HIGHEST_PORT).contains(&port));
                prop_assert!(!address.is_multicast() && !address.is_broadcast());
            }
        }

        #[test]
        fn a_network_has_what_begins_as_it_does(own: u32, other: u32, prefix in 0_u8..=32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let subnet = Subnet { address: Ipv4Addr::from_bits(own & mask).into(), prefix };
            prop_assert!(subnet.is_plain() && subnet.has(Ipv4Addr::from_bits(own).into()));
            prop_assert_eq!(subnet.has(Ipv4Addr::from_bits(other).into()), own & mask == other & mask);
            prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
        }
    }
}
