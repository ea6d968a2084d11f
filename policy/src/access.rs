//! Who may do what with which VM. Identity is a number from the socket, and the name that the
//! host's user database has for it; never a field of a request.

pub use crate::decision::Decision;
use crate::quota::UserLimits;
use std::borrow::Cow;

/// Whose something is: a number, and the name that it had then. A host gives a number again when
/// its user is gone, and whoever gets it must get nothing with it: both must be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The uid.
    pub uid: u32,
    /// The login name that the uid had when the thing was made.
    pub name: Cow<'static, str>,
}

/// Who is at the other end of a connection to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// From `SO_PEERCRED` (unix(7)).
    pub uid: u32,
    /// The login name that the uid has now. Empty when there is none, or it cannot be found out:
    /// then nothing is the peer's.
    pub name: Cow<'static, str>,
    /// Root, or a member of group `banger-admin`.
    pub admin: bool,
    /// How much the peer may have.
    pub limits: UserLimits,
}

impl Peer {
    /// Somebody with the limits that hold when nobody has set others. Root has none.
    #[must_use]
    pub const fn new(uid: u32, name: &'static str, admin: bool) -> Self {
        let limits = if uid == 0 { UserLimits::NONE } else { UserLimits::BUILT_IN };
        Self { uid, name: Cow::Borrowed(name), admin, limits }
    }

    /// Whose is what the peer makes?
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { uid: self.uid, name: self.name.clone() }
    }

    /// Is it the peer's own?
    #[must_use]
    pub fn owns(&self, owner: &Owner) -> bool {
        !self.name.is_empty() && self.uid == owner.uid && self.name == owner.name
    }
}

/// Why somebody may not. There is one answer for "not yours" and "does not exist".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No VM of that name for this peer.
    #[error("no such VM")]
    NoSuchVm,
    /// The image or kernel is shared: this peer may use it but not change it.
    #[error("it is shared by an administrator")]
    NotOwner,
    /// Only administrators decide about what everybody sees.
    #[error("only root and the group banger-admin decide what is shared")]
    NotAdministrator,
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
pub fn vm(peer: &Peer, owner: &Owner) -> Decision<VmGrant, Refusal> {
    if peer.owns(owner) || peer.admin {
        Decision::Allow(VmGrant { owner: owner.uid })
    } else {
        Decision::Deny(Refusal::NoSuchVm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: u32, name: &'static str) -> Owner {
        Owner { uid, name: name.into() }
    }

    #[test]
    fn a_vm_is_its_owners_by_number_and_name_and_an_administrators() {
        let alice = owner(1001, "alice");
        for (peer, may) in [
            (Peer::new(1001, "alice", false), true),
            (Peer::new(1002, "bob", false), false),
            // The number was given again, and the name was given to another number.
            (Peer::new(1001, "carol", false), false),
            (Peer::new(1005, "alice", false), false),
            // A number without a name, or with one that could not be found out.
            (Peer::new(1001, "", false), false),
            (Peer::new(7, "dora", true), true),
            (Peer::new(0, "root", true), true),
        ] {
            let expected = if may { Ok(1001) } else { Err(Refusal::NoSuchVm) };
            assert_eq!(vm(&peer, &alice).granted().map(VmGrant::owner), expected, "{peer:?}");
        }
        assert!(!Peer::new(1001, "", false).owns(&owner(1001, "")), "no name is nobody's");
    }
}
