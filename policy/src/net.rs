//! Which address, CID and control port a VM has: all three follow from one small number, its
//! address index, so that none of them can clash when the index does not. And what of the
//! configuration says where that is.

use crate::id::DEVICE_PREFIX;
use serde::Deserialize;
use std::net::Ipv4Addr;

/// The number of a VM's address, 1-based: guest address = bridge address + index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressIndex(u16);

/// The first control port. Below it lie the agent's ports.
const CONTROL_PORT_BASE: u32 = 10_000;
/// CIDs 0 to 2 are the hypervisor, local and the host (linux/vm_sockets.h).
const CID_BASE: u32 = 3;

/// The index lies outside the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address index {index} lies outside a network with {hosts} guest addresses")]
pub struct IndexError {
    /// What was asked for.
    pub index: u32,
    /// How many there are.
    pub hosts: u32,
}

/// The routed network of the VMs: the bridge address and the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    gateway: Ipv4Addr,
    prefix: u8,
}

/// A network that cannot serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Too few or too many addresses.
    #[error("cidr {0} is not usable: it must be 16 to 30")]
    Prefix(u8),
    /// Guests outside the private ranges would shadow real hosts.
    #[error("bridge_ip {0} is not a private address (RFC 1918)")]
    NotPrivate(Ipv4Addr),
    /// The network or broadcast address, or no room above it.
    #[error("bridge_ip {0} must be the first host address of its network")]
    NotFirst(Ipv4Addr),
}

/// The keys of `banger.toml` that daemon and helper both read. Here alone is what they may say.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BridgeKeys {
    /// The link that carries the gateway's address.
    pub bridge_name: String,
    /// The gateway.
    pub bridge_ip: Ipv4Addr,
    /// The prefix length.
    pub cidr: u8,
}

impl Default for BridgeKeys {
    fn default() -> Self {
        Self { bridge_name: "br-fc".to_owned(), bridge_ip: Ipv4Addr::new(172, 16, 0, 1), cidr: 20 }
    }
}

/// The keys, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    name: String,
    network: Network,
}

/// Keys that cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BridgeError {
    /// Not a name that the kernel takes, or one of a VM's.
    #[error("{0:?} is not 1 to 15 letters, digits, - _ or . (and neither . nor .. nor one that begins with bgr-)")]
    Name(String),
    /// Not a network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl BridgeError {
    /// Which key it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::Name(_) => "bridge_name",
            Self::Network(NetworkError::Prefix(_)) => "cidr",
            Self::Network(_) => "bridge_ip",
        }
    }
}

impl BridgeKeys {
    /// # Errors
    /// [`BridgeError`] with the first key that cannot serve.
    pub fn check(self) -> Result<Bridge, BridgeError> {
        let name = self.bridge_name;
        // linux/if.h, IFNAMSIZ; `dev_valid_name` of the kernel refuses `.` and `..`, `/`, `:` and
        // spaces.
        let plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        let taken = name == "." || name == ".." || name.starts_with(DEVICE_PREFIX);
        if !plain || taken || !(1..16).contains(&name.len()) {
            return Err(BridgeError::Name(name));
        }
        Ok(Bridge { name, network: Network::new(self.bridge_ip, self.cidr)? })
    }
}

impl Bridge {
    /// The link that carries the gateway's address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network of the VMs.
    #[must_use]
    pub fn network(&self) -> Network {
        self.network
    }
}

impl Network {
    /// # Errors
    /// [`NetworkError`] when the address is not private or not the first of its network.
    pub fn new(gateway: Ipv4Addr, prefix: u8) -> Result<Self, NetworkError> {
        if !(16..=30).contains(&prefix) {
            return Err(NetworkError::Prefix(prefix));
        }
        if !gateway.is_private() {
            return Err(NetworkError::NotPrivate(gateway));
        }
        let network = Self { gateway, prefix };
        if gateway.to_bits() & network.host_mask() == 1 { Ok(network) } else { Err(NetworkError::NotFirst(gateway)) }
    }

    /// The host's side of every tap.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.gateway
    }

    /// The prefix length.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    fn host_mask(self) -> u32 {
        u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0)
    }

    /// Is it an address of this network?
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = !self.host_mask();
        address.to_bits() & mask == self.gateway.to_bits() & mask
    }

    /// How many guests fit: all host addresses but the gateway's, and at most `u16::MAX`.
    #[must_use]
    pub fn guests(self) -> u16 {
        u16::try_from(self.host_mask().saturating_sub(2)).unwrap_or(u16::MAX)
    }

    /// # Errors
    /// [`IndexError`] for 0 and for more than [`Network::guests`].
    pub fn index(self, index: u32) -> Result<AddressIndex, IndexError> {
        match u16::try_from(index) {
            Ok(index) if index >= 1 && index <= self.guests() => Ok(AddressIndex(index)),
            _ => Err(IndexError { index, hosts: u32::from(self.guests()) }),
        }
    }

    /// Which guest's address it is.
    #[must_use]
    pub fn index_of(self, address: Ipv4Addr) -> Option<AddressIndex> {
        self.index(address.to_bits().checked_sub(self.gateway.to_bits())?).ok()
    }

    /// The guest's address.
    #[must_use]
    pub fn guest(self, index: AddressIndex) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits().saturating_add(u32::from(index.0)))
    }
}

impl AddressIndex {
    /// One that was given in some network, perhaps a larger one than there is now.
    ///
    /// # Errors
    /// [`IndexError`] when no network has it.
    pub fn leased(index: u32) -> Result<Self, IndexError> {
        let hosts = u32::from(u16::MAX);
        u16::try_from(index).ok().filter(|index| *index > 0).map(Self).ok_or(IndexError { index, hosts })
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    /// The vsock CID of the guest.
    #[must_use]
    pub fn cid(self) -> u32 {
        CID_BASE.saturating_add(u32::from(self.0))
    }

    /// The host's vsock port for this VM's control channel. Firecracker keeps ports per VM; a VMM
    /// that uses the host's AF_VSOCK shares one port space among all, hence a port per VM.
    #[must_use]
    pub fn control_port(self) -> u32 {
        CONTROL_PORT_BASE.saturating_add(u32::from(self.0))
    }

    /// A locally administered MAC address (IEEE 802): `06:00` and the guest's IPv4 address.
    #[must_use]
    pub fn mac(self, guest: Ipv4Addr) -> String {
        let [a, b, c, d] = guest.octets();
        format!("06:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default() -> Network {
        Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap()
    }

    #[test]
    fn the_shared_keys_are_checked_once_for_both_readers() {
        let keys = |name: &str, ip: [u8; 4], cidr| BridgeKeys { bridge_name: name.into(), bridge_ip: ip.into(), cidr };
        let key = |keys: BridgeKeys| keys.check().err().map(|error| error.key());
        assert_eq!(key(BridgeKeys::default()), None);
        for name in ["", "a/b", "a b", "a:b", "é", ".", "..", "bgr-x", "bgr-", "0123456789abcdef"] {
            assert_eq!(key(keys(name, [172, 16, 0, 1], 24)), Some("bridge_name"), "{name}");
        }
        for name in ["br-fc", "b", "...", "bgr", "0123456789abcde"] {
            assert_eq!(key(keys(name, [172, 16, 0, 1], 24)), None, "{name}");
        }
        assert_eq!(key(keys("br-fc", [8, 8, 8, 8], 24)), Some("bridge_ip"));
        assert_eq!(key(keys("br-fc", [10, 0, 0, 2], 24)), Some("bridge_ip"));
        assert_eq!(key(keys("br-fc", [10, 0, 0, 1], 8)), Some("cidr"));
    }

    #[test]
    fn addresses_follow_the_index() {
        let first = default().index(1).unwrap();
        assert_eq!(default().guest(first), Ipv4Addr::new(172, 16, 0, 2));
        assert_eq!((first.cid(), first.control_port()), (4, 10_001));
        let last = default().index(253).unwrap();
        assert_eq!(default().guest(last), Ipv4Addr::new(172, 16, 0, 254));
        assert!(default().index(0).is_err());
        assert!(default().index(254).is_err());
        assert!(default().index(65_537).is_err());
    }

    #[test]
    fn an_address_says_its_index_and_whether_it_is_of_the_network() {
        let network = default();
        for (address, index, inside) in [
            ([172, 16, 0, 2], Some(1), true),
            ([172, 16, 0, 254], Some(253), true),
            ([172, 16, 0, 1], None, true),
            ([172, 16, 0, 255], None, true),
            ([172, 16, 0, 0], None, true),
            ([172, 16, 1, 2], None, false),
            ([10, 0, 0, 2], None, false),
        ] {
            let address = Ipv4Addr::from(address);
            assert_eq!(network.index_of(address).map(AddressIndex::get), index, "{address}");
            assert_eq!(network.contains(address), inside, "{address}");
        }
        assert_eq!(AddressIndex::leased(300).map(AddressIndex::get), Ok(300), "of a larger network");
        assert!(AddressIndex::leased(0).is_err() && AddressIndex::leased(65_536).is_err());
    }

    #[test]
    fn unusable_networks_are_refused() {
        assert_eq!(
            Network::new(Ipv4Addr::new(8, 8, 8, 1), 24),
            Err(NetworkError::NotPrivate(Ipv4Addr::new(8, 8, 8, 1)))
        );
        assert_eq!(Network::new(Ipv4Addr::new(10, 0, 0, 1), 31), Err(NetworkError::Prefix(31)));
        assert_eq!(
            Network::new(Ipv4Addr::new(10, 0, 0, 2), 24),
            Err(NetworkError::NotFirst(Ipv4Addr::new(10, 0, 0, 2)))
        );
    }
}
