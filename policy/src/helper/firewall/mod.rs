//! The VMs' firewall: what its sets hold for each VM and how that changes, the whole table
//! (`table`), the end of a guest's flows (`flows`), and all of it as messages for the kernel
//! (`message`). The table has fixed rules; all that is a VM's are elements of these sets.

mod flows;
mod message;
mod table;

use super::holding::Registration;
pub use flows::end_flows;
pub use message::{Answers, Batch};
pub use table::{encode, whole};

/// A set of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// nft's number for the type of its keys, for listings only.
    pub key_type: u32,
    /// Length of a key, bytes.
    pub key_length: u32,
}

/// A tap and the one source address that may come out of it: types ifname (41) and ipv4_addr (7),
/// joined by six bits.
pub const LIVE: Set = Set { name: "live", key_type: (41 << 6) | 7, key_length: 20 };
/// A tap and the user who may connect to its guest: ifname and uid (24).
pub const OWNERS: Set = Set { name: "owners", key_type: (41 << 6) | 24, key_length: 20 };
/// Guests that may leave through the uplink.
pub const NAT: Set = Set { name: "nat", key_type: 7, key_length: 4 };

/// One element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// In which set.
    pub set: Set,
    /// Its bytes, as the kernel compares them.
    pub key: Vec<u8>,
}

/// A change of one VM's elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// To take out.
    pub remove: Vec<Element>,
    /// To put in.
    pub add: Vec<Element>,
}

impl Change {
    /// From what is registered to what should be.
    #[must_use]
    pub fn between(old: Option<&Registration>, new: Option<&Registration>) -> Self {
        let (old, new) = (elements(old), elements(new));
        Self {
            remove: old.iter().filter(|element| !new.contains(element)).cloned().collect(),
            add: new.iter().filter(|element| !old.contains(element)).cloned().collect(),
        }
    }

    /// It changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// An address becomes live: flows of whoever had it before must have ended first.
    #[must_use]
    pub fn opens(&self) -> bool {
        self.add.iter().any(|element| element.set == LIVE)
    }

    /// Something is let pass no more: what passes because it began in time must end after it.
    #[must_use]
    pub fn narrows(&self) -> bool {
        !self.remove.is_empty()
    }
}

/// The elements of a registration.
#[must_use]
pub fn elements(registration: Option<&Registration>) -> Vec<Element> {
    let Some(registration) = registration else { return Vec::new() };
    // An interface's name is compared with its padding (IFNAMSIZ).
    let mut name = registration.tap_name.clone().into_bytes();
    name.resize(16, 0);
    let address = registration.address.octets();
    let mut elements = vec![
        Element { set: LIVE, key: [&name[..], &address].concat() },
        Element { set: OWNERS, key: [&name[..], &registration.owner.to_ne_bytes()].concat() },
    ];
    if registration.nat {
        elements.push(Element { set: NAT, key: address.to_vec() });
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn registration(nat: bool) -> Registration {
        Registration { tap_name: "bgr-aaaaaaaaaa".to_owned(), address: Ipv4Addr::new(172, 16, 0, 2), owner: 1000, nat }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let (off, on) = (registration(false), registration(true));
        let none = Change::between(Some(&off), Some(&off));
        assert!(none.remove.is_empty() && none.add.is_empty());
        let nat = Change::between(Some(&off), Some(&on));
        assert!(nat.remove.is_empty());
        assert_eq!(nat.add, [Element { set: NAT, key: vec![172, 16, 0, 2] }]);
        assert_eq!(Change::between(Some(&on), Some(&off)).remove, nat.add);
        assert_eq!(Change::between(None, Some(&on)).add.len(), 3);
        assert_eq!(Change::between(Some(&on), None).remove.len(), 3);
    }

    #[test]
    fn flows_end_before_an_address_lives_and_after_anything_is_withdrawn() {
        let (off, on) = (registration(false), registration(true));
        let ends = |old, new| {
            let change = Change::between(old, new);
            (change.opens(), change.narrows())
        };
        assert_eq!(ends(None, Some(&off)), (true, false));
        assert_eq!(ends(None, Some(&on)), (true, false));
        assert_eq!(ends(Some(&off), Some(&on)), (false, false), "NAT on takes nothing away");
        assert_eq!(ends(Some(&on), Some(&off)), (false, true), "NAT off");
        assert_eq!(ends(Some(&off), None), (false, true));
        assert_eq!(ends(Some(&on), None), (false, true));
        assert_eq!(ends(None, None), (false, false));
    }

    #[test]
    fn keys_have_their_sets_lengths() {
        for element in elements(Some(&registration(true))) {
            assert_eq!(u32::try_from(element.key.len()), Ok(element.set.key_length), "{}", element.set.name);
        }
    }
}
