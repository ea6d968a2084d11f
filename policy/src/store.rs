//! Whose image or kernel a word means, and which one is taken when no word was said.
//!
//! A name belongs to its owner. Others see it only when an administrator shares it. A default is
//! the administrator's choice or the caller's own, and never another user's: what boots in a VM
//! decides about all that is in it.

use crate::Digest;
use crate::access::{Decision, Owner, Peer, Refusal};
use crate::limits::ID_DIGITS_OF_OTHERS;

/// A name in the store, as far as it decides who means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The content.
    pub id: Digest,
    /// What its owner calls it.
    pub name: &'a str,
    /// Whose the name is.
    pub owner: Owner,
    /// An administrator lets everybody use it.
    pub shared: bool,
}

/// Why a word means nothing, or no default is found. "Somebody else's" and "nobody's" are one
/// answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// Nothing that the peer may see.
    None,
    /// More than one.
    Several,
}

/// Does the peer know of it?
#[must_use]
pub fn sees(peer: &Peer, entry: &Entry<'_>) -> bool {
    entry.shared || peer.owns(&entry.owner)
}

/// The entry that a word means: the caller's own name, then a shared one, then the beginning of an
/// id; of one that is not the caller's own, [`ID_DIGITS_OF_OTHERS`] at least. An administrator
/// reaches another user's entries by `user/name` or by id, and never by the bare name.
///
/// # Errors
/// [`Unresolved`].
pub fn resolve(peer: &Peer, entries: &[Entry<'_>], word: &str) -> Result<usize, Unresolved> {
    let find = |wanted: &dyn Fn(&Entry<'_>) -> bool| {
        entries.iter().enumerate().filter(|(_, entry)| wanted(entry)).map(|(at, _)| at).collect::<Vec<_>>()
    };
    let own = find(&|entry| entry.name == word && peer.owns(&entry.owner));
    let shared = find(&|entry| entry.name == word && entry.shared);
    let others = find(&|entry| {
        let of = |(user, name): (&str, &str)| user == entry.owner.name && name == entry.name;
        peer.admin && word.split_once('/').is_some_and(of)
    });
    for named in [own, shared, others] {
        match named.as_slice() {
            [] => {}
            [only] => return Ok(*only),
            _ => return Err(Unresolved::Several),
        }
    }
    let is_prefix = !word.is_empty() && word.bytes().all(|c| c.is_ascii_hexdigit());
    let is_long = word.len() >= ID_DIGITS_OF_OTHERS;
    let prefixed = |visible: &dyn Fn(&Entry<'_>) -> bool| {
        let meant = |entry: &Entry<'_>| (is_long || peer.owns(&entry.owner)) && visible(entry);
        find(&|entry| is_prefix && meant(entry) && entry.id.to_string().starts_with(word))
    };
    // Content with several names: the one that a name would have meant first.
    let seen = prefixed(&|entry| sees(peer, entry));
    let candidates = if seen.is_empty() && peer.admin { prefixed(&|_| true) } else { seen };
    let Some(first) = candidates.first().and_then(|at| entries.get(*at)) else { return Err(Unresolved::None) };
    if candidates.iter().any(|at| entries.get(*at).is_none_or(|entry| entry.id != first.id)) {
        return Err(Unresolved::Several);
    }
    let own = candidates.iter().find(|at| entries.get(**at).is_some_and(|entry| peer.owns(&entry.owner)));
    match (own, candidates.as_slice()) {
        (Some(own), _) => Ok(*own),
        (None, [only]) => Ok(*only),
        (None, _) => Err(Unresolved::Several),
    }
}

/// The image of a VM for which none was named: the configured one among the shared, else the
/// caller's own only one, else, when the caller has none, the only one that is shared.
///
/// # Errors
/// [`Unresolved`].
pub fn default_image(peer: &Peer, entries: &[Entry<'_>], configured: Option<&str>) -> Result<usize, Unresolved> {
    let find = |wanted: &dyn Fn(&Entry<'_>) -> bool| {
        entries.iter().enumerate().filter(|(_, entry)| wanted(entry)).map(|(at, _)| at).collect::<Vec<_>>()
    };
    let named = find(&|entry| entry.shared && Some(entry.name) == configured);
    let own = find(&|entry| peer.owns(&entry.owner));
    let shared = find(&|entry| entry.shared);
    for choice in [named, own, shared] {
        match choice.as_slice() {
            [] => {}
            [only] => return Ok(*only),
            _ => return Err(Unresolved::Several),
        }
    }
    Err(Unresolved::None)
}

/// The kernel of a VM for which none was named: the newest that is shared, else the caller's own
/// newest. `entries` are newest first.
///
/// # Errors
/// [`Unresolved::None`].
pub fn default_kernel(peer: &Peer, entries: &[Entry<'_>]) -> Result<usize, Unresolved> {
    let shared = entries.iter().position(|entry| entry.shared);
    let own = || entries.iter().position(|entry| peer.owns(&entry.owner));
    shared.or_else(own).ok_or(Unresolved::None)
}

/// The entry by which a peer may use a content that something of the store names: the caller's own,
/// else a shared one. An administrator's own VMs get nothing of another user's either.
///
/// # Errors
/// [`Unresolved::None`].
pub fn usable(peer: &Peer, entries: &[Entry<'_>], id: Digest) -> Result<usize, Unresolved> {
    let own = entries.iter().position(|entry| entry.id == id && peer.owns(&entry.owner));
    let shared = || entries.iter().position(|entry| entry.id == id && entry.shared);
    own.or_else(shared).ok_or(Unresolved::None)
}

/// Permission to change an entry. Only [`change`] and [`share`] make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreGrant(());

/// May the peer remove an entry that it sees?
pub fn change(peer: &Peer, owner: &Owner) -> Decision<StoreGrant, Refusal> {
    if peer.owns(owner) || peer.admin { Decision::Allow(StoreGrant(())) } else { Decision::Deny(Refusal::NotOwner) }
}

/// May the peer say who else sees an entry?
pub fn share(peer: &Peer) -> Decision<StoreGrant, Refusal> {
    if peer.admin { Decision::Allow(StoreGrant(())) } else { Decision::Deny(Refusal::NotAdministrator) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Peer = Peer::new(1001, "alice", false);
    const BOB: Peer = Peer::new(1002, "bob", false);
    /// Has alice's number, and nothing else of hers.
    const CAROL: Peer = Peer::new(1001, "carol", false);
    const ADMIN: Peer = Peer::new(1009, "dora", true);

    fn entry(first: u8, name: &'static str, peer: &Peer, shared: bool) -> Entry<'static> {
        let mut bytes = [0x11; 32];
        bytes[0] = first;
        Entry { id: Digest::from_bytes(bytes).unwrap(), name, owner: peer.owner(), shared }
    }

    /// Newest first.
    fn entries() -> Vec<Entry<'static>> {
        vec![
            entry(0xb1, "mine", &BOB, false),
            entry(0xab, "mine", &ALICE, false),
            entry(0xab, "base", &BOB, false),
            entry(0xd0, "base", &ADMIN, true),
            entry(0xd1, "older", &ADMIN, true),
            entry(0xa7, "base", &ALICE, false),
        ]
    }

    #[test]
    fn a_word_means_ones_own_then_what_is_shared_and_never_another_users() {
        use Unresolved::{None, Several};
        for (peer, word, meant) in [
            (&ALICE, "mine", Ok(1)),
            (&BOB, "mine", Ok(0)),
            (&ALICE, "base", Ok(5)),
            (&BOB, "base", Ok(2)),
            (&ADMIN, "base", Ok(3)),
            (&ALICE, "older", Ok(4)),
            // Not an administrator's by its bare name either.
            (&ADMIN, "mine", Err(None)),
            (&ADMIN, "alice/mine", Ok(1)),
            (&BOB, "alice/mine", Err(None)),
            (&CAROL, "mine", Err(None)),
            (&CAROL, "base", Ok(3)),
            // Ids.
            (&ALICE, "ab", Ok(1)),
            (&BOB, "ab", Ok(2)),
            (&ALICE, "b1", Err(None)),
            (&CAROL, "ab", Err(None)),
            (&ADMIN, "b1", Err(None)),
            (&ADMIN, "b111111", Err(None)),
            (&ADMIN, "b1111111", Ok(0)),
            (&ADMIN, "ab111111", Err(Several)),
            (&ADMIN, "d", Err(Several)),
            (&ADMIN, "d1", Ok(4)),
            (&ALICE, "a", Err(Several)),
            (&ALICE, "d1", Err(None)),
            (&ALICE, "d1111111", Ok(4)),
            (&ALICE, "", Err(None)),
            (&ALICE, "nothing", Err(None)),
        ] {
            assert_eq!(resolve(peer, &entries(), word), meant, "{} {word}", peer.name);
        }
    }

    #[test]
    fn a_default_is_the_administrators_or_ones_own() {
        let all = entries();
        for peer in [&ALICE, &BOB, &CAROL, &ADMIN] {
            assert_eq!(default_kernel(peer, &all), Ok(3), "{}", peer.name);
            assert_eq!(default_image(peer, &all, Some("older")), Ok(4), "{}", peer.name);
        }
        let private: Vec<_> = all.iter().filter(|entry| !entry.shared).cloned().collect();
        for (peer, kernel, image) in [
            (&ALICE, Ok(1), Err(Unresolved::Several)),
            (&BOB, Ok(0), Err(Unresolved::Several)),
            (&CAROL, Err(Unresolved::None), Err(Unresolved::None)),
            (&ADMIN, Err(Unresolved::None), Err(Unresolved::None)),
        ] {
            assert_eq!(default_kernel(peer, &private), kernel, "{}", peer.name);
            // A configured name is not another user's entry of that name.
            assert_eq!(default_image(peer, &private, Some("base")), image, "{}", peer.name);
        }
        let one = [entry(1, "hers", &ALICE, false), entry(2, "everyones", &ADMIN, true), entry(3, "his", &BOB, false)];
        assert_eq!(default_image(&ALICE, &one, None), Ok(0));
        assert_eq!(default_image(&CAROL, &one, None), Ok(1));
        assert_eq!(default_image(&CAROL, &one[2..], None), Err(Unresolved::None));
    }

    #[test]
    fn what_something_names_is_ones_own_or_shared_or_nothing() {
        let id = |first| entry(first, "x", &ALICE, false).id;
        for (peer, first, meant) in [
            (&ALICE, 0xab, Ok(1)),
            (&BOB, 0xab, Ok(2)),
            (&CAROL, 0xab, Err(Unresolved::None)),
            (&ADMIN, 0xab, Err(Unresolved::None)),
            (&ALICE, 0xb1, Err(Unresolved::None)),
            (&CAROL, 0xd0, Ok(3)),
            (&ADMIN, 0xd1, Ok(4)),
            (&ALICE, 0xee, Err(Unresolved::None)),
        ] {
            assert_eq!(usable(peer, &entries(), id(first)), meant, "{} {first:x}", peer.name);
        }
    }

    #[test]
    fn who_may_change_what() {
        let alices = ALICE.owner();
        for (peer, may) in [(&ALICE, true), (&BOB, false), (&CAROL, false), (&ADMIN, true)] {
            assert_eq!(change(peer, &alices).granted().is_ok(), may, "{}", peer.name);
            assert_eq!(share(peer).granted().is_ok(), peer.admin, "{}", peer.name);
        }
    }
}
