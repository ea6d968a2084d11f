//! Names of VMs in DNS, `<vm>.<user>.vm`: which label a user has, what a question asks for, and who
//! gets which answer.

use crate::VmName;
use crate::access::{Decision, Owner, Peer, Refusal};
use std::fmt;

/// The top of all names of VMs.
pub const ZONE: &str = "vm";

/// A user's label in the names of their VMs: the login name, or `u<uid>` when that is no label of
/// DNS. Login names that look like `u1000` are never labels, whoever has them: no user can have
/// another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserLabel(String);

impl UserLabel {
    /// The label of a user.
    #[must_use]
    pub fn of(uid: u32, login: &str) -> Self {
        // The grammar of a VM's name is that of a label (RFC 1123).
        match login.parse::<VmName>() {
            Ok(label) if !looks_like_a_number(label.as_str()) => Self(label.into()),
            _ => Self(format!("u{uid}")),
        }
    }
}

impl fmt::Display for UserLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `u` and nothing but digits.
fn looks_like_a_number(label: &str) -> bool {
    label.strip_prefix('u').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|c| c.is_ascii_digit()))
}

/// The whole name of a VM.
#[must_use]
pub fn name(vm: &VmName, owner: &Owner) -> String {
    format!("{vm}.{}.{ZONE}", UserLabel::of(owner.uid, &owner.name))
}

/// What the labels of a question name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Nothing below `vm`.
    Outside,
    /// `vm` itself, or the label of a user, who may exist or not.
    Above,
    /// What a VM may have as its name.
    Vm {
        /// Its first label.
        vm: VmName,
        /// Its second.
        user: UserLabel,
    },
    /// Below `vm`, and no VM can have it as its name.
    Nothing,
}

impl Named {
    /// From the labels, the first one first. Letters of either case are the same (RFC 4343).
    #[must_use]
    pub fn of<'a>(labels: impl DoubleEndedIterator<Item = &'a [u8]>) -> Self {
        let mut labels = labels.rev();
        if !labels.next().is_some_and(|top| top.eq_ignore_ascii_case(ZONE.as_bytes())) {
            return Self::Outside;
        }
        let mut label = || labels.next().map(lower);
        match (label(), label(), label()) {
            (None, ..) | (Some(Some(_)), None, _) => Self::Above,
            (Some(Some(user)), Some(Some(vm)), None) => Self::Vm { vm, user: UserLabel(user.into()) },
            _ => Self::Nothing,
        }
    }
}

/// A label as names of VMs and users are written; `None` when none of them is written so.
fn lower(label: &[u8]) -> Option<VmName> {
    std::str::from_utf8(label).ok()?.to_ascii_lowercase().parse().ok()
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A process of this user; never taken from what it says.
    User(Peer),
    /// A resolver of the host that an administrator lets ask for everybody.
    Resolver,
    /// It cannot be found out.
    Unknown,
}

/// May `asker` know that a running VM of `owner` has its name, and which address?
pub fn may_know(asker: &Asker, owner: &Owner) -> Decision<(), Refusal> {
    let may = match asker {
        Asker::User(peer) => peer.uid == 0 || peer.owns(owner),
        Asker::Resolver => true,
        Asker::Unknown => false,
    };
    if may { Decision::Allow(()) } else { Decision::Deny(Refusal::NoSuchVm) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(uid: u32, name: &'static str) -> Owner {
        Owner { uid, name: name.into() }
    }

    fn named(name: &str) -> Named {
        Named::of(name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes))
    }

    #[test]
    fn a_user_name_that_is_no_label_becomes_a_number() {
        let vm = "demo".parse().unwrap();
        assert_eq!(name(&vm, &owner(1001, "alice")), "demo.alice.vm");
        for odd in ["Alice", "a.b", "svc_x", "user$", "", "-a", "u7", "u1001", "u007"] {
            assert_eq!(name(&vm, &owner(1001, odd)), "demo.u1001.vm", "{odd}");
        }
        // A letter makes it a name.
        assert_eq!(name(&vm, &owner(1001, "u7x")), "demo.u7x.vm");
        assert_eq!(name(&vm, &owner(1001, "u")), "demo.u.vm");
    }

    #[test]
    fn what_a_question_names() {
        let vm = |vm: &str, user: &str| Named::Vm { vm: vm.parse().unwrap(), user: UserLabel(user.into()) };
        for (text, means) in [
            ("demo.alice.vm", vm("demo", "alice")),
            ("DEMO.Alice.VM", vm("demo", "alice")),
            ("vm", Named::Above),
            ("alice.vm", Named::Above),
            ("x.demo.alice.vm", Named::Nothing),
            ("de_mo.alice.vm", Named::Nothing),
            ("demo.al_ice.vm", Named::Nothing),
            ("al_ice.vm", Named::Nothing),
            ("", Named::Outside),
            ("example.com", Named::Outside),
            ("demo.alice.vm.example.com", Named::Outside),
            ("demo.alice.xvm", Named::Outside),
        ] {
            assert_eq!(named(text), means, "{text}");
        }
        assert_eq!(Named::of([b"a.b".as_slice(), b"alice", b"vm"].into_iter()), Named::Nothing, "a dot in a label");
        assert_eq!(Named::of([b"\xff".as_slice(), b"alice", b"vm"].into_iter()), Named::Nothing);
    }

    #[test]
    fn a_name_is_known_to_its_owner_root_and_whoever_may_ask_for_everybody() {
        let alice = owner(1001, "alice");
        let user = |uid, name| Asker::User(Peer::new(uid, name, false));
        for (asker, may) in [
            (user(1001, "alice"), true),
            (user(0, "root"), true),
            (Asker::Resolver, true),
            (user(1002, "bob"), false),
            // The number was given again; a number without a name.
            (user(1001, "carol"), false),
            (user(1001, ""), false),
            (Asker::Unknown, false),
        ] {
            assert_eq!(may_know(&asker, &alice).granted().is_ok(), may, "{asker:?}");
        }
    }

    /// Names that somebody would choose to be taken for another.
    fn login() -> impl Strategy<Value = String> {
        prop_oneof!["u[0-9]{0,6}", "[a-z][-a-z0-9_.$A-Z]{0,12}", "[-u0-9]{1,5}", any::<String>()]
    }

    proptest! {
        #[test]
        fn no_two_users_have_one_label(one in (0_u32..2_000, login()), other in (0_u32..2_000, login())) {
            // One host gives each number and each name to one user.
            prop_assume!(one.0 != other.0 && one.1 != other.1);
            prop_assert_ne!(UserLabel::of(one.0, &one.1), UserLabel::of(other.0, &other.1));
        }

        #[test]
        fn every_user_has_a_label_that_can_be_asked_for(uid in any::<u32>(), login in login()) {
            let label = UserLabel::of(uid, &login);
            prop_assert_eq!(
                named(&format!("demo.{label}.vm")),
                Named::Vm { vm: "demo".parse().unwrap(), user: label }
            );
        }
    }
}
