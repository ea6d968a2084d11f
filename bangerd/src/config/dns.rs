//! `[dns]`: where names of VMs are answered, and who may ask for everybody.

use super::Refused;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddrV4};

/// What turns it off.
const OFF: &str = "off";
/// Whoever asks at another address is on another host, or a guest: nobody could say who it is.
const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 42069);
/// The user of systemd-resolved, which is hooked up by the package. Without it no program that asks
/// the host's resolver would find a name.
const RESOLVER: &str = "systemd-resolve";

/// The checked section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dns {
    /// `None`: nothing is answered.
    pub(crate) listen: Option<SocketAddrV4>,
    /// Login names of programs that ask for all users.
    pub(crate) resolvers: Vec<String>,
}

impl Dns {
    /// `listen` as the file would have it.
    pub(crate) fn said(&self) -> String {
        self.listen.map_or_else(|| OFF.to_owned(), |address| address.to_string())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDns {
    listen: String,
    resolvers: Vec<String>,
}

impl Default for RawDns {
    fn default() -> Self {
        Self { listen: LISTEN.to_string(), resolvers: vec![RESOLVER.to_owned()] }
    }
}

pub(super) fn check(raw: RawDns) -> Result<Dns, Refused> {
    let wrong = |why: &str| ("dns.listen", format!("{:?} {why}", raw.listen));
    let listen = match raw.listen.as_str() {
        OFF => None,
        text => Some(text.parse::<SocketAddrV4>().map_err(|_| wrong("is not an address with a port, or \"off\""))?),
    };
    if listen.is_some_and(|listen| !listen.ip().is_loopback() || listen.port() == 0) {
        return Err(wrong("is not a port of 127.0.0.0/8: only of a process of this host is known whose it is"));
    }
    Ok(Dns { listen, resolvers: raw.resolvers })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_addresses_of_this_host_are_listened_on() {
        let listen = |text: &str| check(RawDns { listen: text.into(), ..RawDns::default() }).map(|dns| dns.listen);
        assert_eq!(check(RawDns::default()).unwrap().listen, Some(LISTEN));
        assert_eq!(listen("off").unwrap(), None);
        assert!(listen("127.0.0.2:53").unwrap().is_some());
        for wrong in ["", "on", "127.0.0.1", "127.0.0.1:0", "0.0.0.0:42069", "172.16.0.1:53", "[::1]:53"] {
            assert_eq!(listen(wrong).unwrap_err().0, "dns.listen", "{wrong}");
        }
    }
}
