//! The VMs' firewall: what its sets hold for each VM (`elements`) and how that changes, the whole
//! table (`table`), what of the host's memory guests may fill (`bounds`), what their rules are made
//! of (`expr`), the end of a guest's flows (`flows`), and all of it as messages for the kernel
//! (`message`). The table has fixed rules; all that is a VM's are elements of these sets.

mod bounds;
mod elements;
mod expr;
mod flows;
mod message;
mod table;

use super::holding::Registration;
pub use elements::{Element, LIVE, NAT, OWNERS, SETS, Set, elements};
pub use flows::end_flows;
pub use message::{Answers, Batch};
pub use table::{REFUSE, TABLE, encode, whole};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::Mode;
    use std::net::Ipv4Addr;

    fn registration(mode: Mode) -> Registration {
        Registration {
            tap_name: "bgr-aaaaaaaaaa".to_owned(),
            address: Ipv4Addr::new(172, 16, 0, 2),
            owner: 1000,
            out: mode != Mode::None,
            public: matches!(mode, Mode::Public | Mode::Nat),
            anywhere: mode == Mode::Nat,
            targets: Vec::new(),
            peers: Vec::new(),
        }
    }

    fn allow(texts: &[&str]) -> Registration {
        let targets = texts.iter().map(|text| (*text).to_owned().try_into().unwrap()).collect();
        Registration { targets, ..registration(Mode::Allow) }
    }

    fn names(elements: &[Element]) -> Vec<&'static str> {
        elements.iter().map(|element| element.set.name).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let (off, public, on) = (registration(Mode::None), registration(Mode::Public), registration(Mode::Nat));
        assert!(Change::between(Some(&off), Some(&off)).is_empty());
        let nat = Change::between(Some(&off), Some(&on));
        assert!(nat.remove.is_empty());
        assert_eq!(names(&nat.add), ["nat", "public", "anywhere"]);
        assert!(nat.add.iter().all(|element| element.key == [172, 16, 0, 2]));
        assert_eq!(Change::between(Some(&on), Some(&off)).remove, nat.add);
        assert_eq!(names(&Change::between(Some(&on), Some(&public)).remove), ["anywhere"]);
        assert_eq!(names(&Change::between(None, Some(&on)).add), ["live", "owners", "nat", "public", "anywhere"]);
        assert_eq!(Change::between(Some(&on), None).remove.len(), 5);
        let (one, two) = (allow(&["10.0.0.0/8"]), allow(&["10.0.0.0/8", "10.1.2.3/32:53/udp"]));
        let more = Change::between(Some(&one), Some(&two));
        assert!(more.remove.is_empty());
        assert_eq!(names(&more.add), ["ports"]);
        let private = Registration { peers: vec![Ipv4Addr::new(172, 16, 0, 3)], ..off.clone() };
        assert_eq!(names(&Change::between(Some(&off), Some(&private)).add), ["peers", "peers"]);
    }

    #[test]
    fn flows_end_before_an_address_lives_and_after_anything_is_withdrawn() {
        let (off, public, on) = (registration(Mode::None), registration(Mode::Public), registration(Mode::Nat));
        let ends = |old, new| {
            let change = Change::between(old, new);
            (change.opens(), change.narrows())
        };
        assert_eq!(ends(None, Some(&off)), (true, false));
        assert_eq!(ends(None, Some(&on)), (true, false));
        assert_eq!(ends(Some(&off), Some(&on)), (false, false), "NAT on takes nothing away");
        assert_eq!(ends(Some(&public), Some(&on)), (false, false));
        assert_eq!(ends(Some(&on), Some(&public)), (false, true), "from everywhere to the public internet");
        assert_eq!(ends(Some(&on), Some(&off)), (false, true), "NAT off");
        let private = Registration { peers: vec![Ipv4Addr::new(172, 16, 0, 3)], ..off.clone() };
        assert_eq!(ends(Some(&private), Some(&off)), (false, true), "out of a private network");
        let (one, two) = (allow(&["10.0.0.0/8"]), allow(&["10.0.0.0/8", "11.0.0.0/8"]));
        assert_eq!(ends(Some(&one), Some(&two)), (false, false));
        assert_eq!(ends(Some(&two), Some(&one)), (false, true), "a shorter list");
        assert_eq!(ends(Some(&off), None), (false, true));
        assert_eq!(ends(Some(&on), None), (false, true));
        assert_eq!(ends(None, None), (false, false));
    }

    #[test]
    fn keys_have_their_sets_lengths() {
        let list = allow(&["10.0.0.0/8", "10.1.2.3/32:53/udp"]);
        let all = Registration { peers: vec![Ipv4Addr::new(172, 16, 0, 3)], public: true, anywhere: true, ..list };
        let mut sets = Vec::new();
        for element in elements(Some(&all)) {
            let length = element.set.key_length();
            assert_eq!(u32::try_from(element.key.len()), Ok(length), "{}", element.set.name);
            let end = if element.set.ranges { length } else { 0 };
            assert_eq!(u32::try_from(element.end.len()), Ok(end), "{}", element.set.name);
            sets.push(element.set.name);
        }
        sets.dedup();
        let known: Vec<_> = SETS.into_iter().map(|set| set.name).filter(|name| *name != "reserved").collect();
        assert_eq!(sets, known, "each set has something");
    }

    #[test]
    fn a_range_goes_from_its_first_to_its_last_address_and_port() {
        let found = elements(Some(&allow(&["10.0.0.0/7:443/tcp"])));
        let element = found.last().unwrap();
        assert_eq!(element.key, [172, 16, 0, 2, 10, 0, 0, 0, 6, 0, 0, 0, 1, 187, 0, 0]);
        assert_eq!(element.end, [172, 16, 0, 2, 11, 255, 255, 255, 6, 0, 0, 0, 1, 187, 0, 0]);
    }
}
