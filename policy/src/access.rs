//! Who may do what with which VM. Identity is a number from the socket, never a name and never a field
//! of a request.

/// The answer to a question of permission. It cannot be mistaken for a boolean, and what it allows is a
/// value that the operation consumes.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<Grant, Reason> {
    /// Do it, with this.
    Allow(Grant),
    /// Do not, because.
    Deny(Reason),
}

impl<Grant, Reason> Decision<Grant, Reason> {
    /// The grant, or the reason as an error.
    ///
    /// # Errors
    /// The reason of a refusal.
    pub fn granted(self) -> Result<Grant, Reason> {
        match self {
            Self::Allow(grant) => Ok(grant),
            Self::Deny(reason) => Err(reason),
        }
    }
}

/// Who is at the other end of a connection to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// From `SO_PEERCRED` (unix(7)).
    pub uid: u32,
    /// Root, or a member of group `banger-admin`.
    pub admin: bool,
}

/// Why somebody may not. There is one answer for "not yours" and "does not exist".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No VM of that name for this peer.
    #[error("no such VM")]
    NoSuchVm,
    /// The image or kernel belongs to somebody else, whom this peer may see but not change.
    #[error("it belongs to another user")]
    NotOwner,
}

/// Permission to work on one user's VM. Only [`vm`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmGrant {
    owner: u32,
}

impl VmGrant {
    /// The uid that the VM belongs to.
    #[must_use]
    pub fn owner(self) -> u32 {
        self.owner
    }
}

/// May `peer` see and change a VM of `owner`?
pub fn vm(peer: Peer, owner: u32) -> Decision<VmGrant, Refusal> {
    if peer.uid == owner || peer.admin { Decision::Allow(VmGrant { owner }) } else { Decision::Deny(Refusal::NoSuchVm) }
}

/// Permission to remove an image or kernel of the store. Only [`store_entry`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreGrant(());

/// May `peer` remove an image or kernel of `owner`? Everyone may use them.
pub fn store_entry(peer: Peer, owner: u32) -> Decision<StoreGrant, Refusal> {
    if peer.uid == owner || peer.admin { Decision::Allow(StoreGrant(())) } else { Decision::Deny(Refusal::NotOwner) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_learns_nothing() {
        let bob = Peer { uid: 1002, admin: false };
        assert_eq!(vm(bob, 1001), Decision::Deny(Refusal::NoSuchVm));
        assert_eq!(store_entry(bob, 1001), Decision::Deny(Refusal::NotOwner));
    }

    #[test]
    fn owner_and_administrator_may() {
        for peer in [Peer { uid: 1001, admin: false }, Peer { uid: 7, admin: true }] {
            assert_eq!(vm(peer, 1001).granted().map(VmGrant::owner), Ok(1001));
            assert!(matches!(store_entry(peer, 1001), Decision::Allow(_)));
        }
    }
}
