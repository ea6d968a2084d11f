//! Who is at the other end, and whether there is room for one more connection. The socket's mode lets in the
//! members of group `banger`; here the kernel's word on the peer becomes a [`Peer`].

use banger_policy::Peer;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::UnixStream;

/// Connections of one user. A user's shell loop must not keep the others out.
const PER_USER: usize = 128;
/// Connections of all users; below the limit on descriptors that the unit sets.
const ALL: usize = 1024;
/// Who sees everyone's VMs.
const ADMIN_GROUP: &str = "banger-admin";

/// Connections by uid.
#[derive(Debug, Default)]
pub(super) struct Admission(Mutex<HashMap<u32, usize>>);

/// A place for one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) peer: Peer,
    admission: Arc<Admission>,
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let mut all = self.lock();
        let own = all.get(&peer.uid).copied().unwrap_or(0);
        if own >= PER_USER || all.values().sum::<usize>() >= ALL {
            return None;
        }
        all.insert(peer.uid, own + 1);
        Some(Place { peer, admission: Arc::clone(self) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.admission.lock();
        if let Some(own) = all.get_mut(&self.peer.uid) {
            *own = own.saturating_sub(1);
        }
        all.retain(|_, count| *count > 0);
    }
}

/// A place for this connection, or why not in the log: there is no way to tell a peer that is not let in.
pub(super) async fn admit(admission: &Arc<Admission>, stream: &UnixStream) -> Option<Place> {
    // SO_PEERCRED: who connected, as the kernel saw it then (unix(7)).
    let uid = match stream.peer_cred() {
        Ok(peer) => peer.uid(),
        Err(error) => {
            tracing::warn!("a connection without credentials: {error}");
            return None;
        }
    };
    // VMMs run under this uid: a guest that broke out must not give orders.
    if uid == Uid::effective().as_raw() && !Uid::effective().is_root() {
        tracing::warn!(banger_uid = uid, "refused a connection of the daemon's own user");
        return None;
    }
    // A place first: the user database may be slow, and whoever asks it is counted.
    let Some(mut place) = admission.enter(Peer { uid, admin: false }) else {
        tracing::warn!(banger_uid = uid, "too many connections");
        return None;
    };
    place.peer.admin = tokio::task::spawn_blocking(move || is_admin(uid)).await.unwrap_or(false);
    Some(place)
}

/// Root, or a member of the group by the host's user database. Whatever cannot be found out is "no".
fn is_admin(uid: u32) -> bool {
    if uid == 0 {
        return true;
    }
    let Ok(Some(group)) = Group::from_name(ADMIN_GROUP) else { return false };
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let groups = CString::new(user.name).ok().and_then(|name| getgrouplist(&name, user.gid).ok());
    groups.is_some_and(|groups: Vec<Gid>| groups.contains(&group.gid))
}

/// The user's login name, or `u<uid>`.
pub(super) fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("u{uid}"), |user| user.name)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places_and_places_come_back() {
        let admission = Arc::new(Admission::default());
        let peer = |uid| Peer { uid, admin: false };
        let held: Vec<Place> = (0..PER_USER).map(|_| admission.enter(peer(1)).unwrap()).collect();
        assert!(admission.enter(peer(1)).is_none());
        assert!(admission.enter(peer(2)).is_some());
        drop(held);
        assert!(admission.enter(peer(1)).is_some());
        assert!(admission.lock().is_empty());
    }

    #[test]
    fn an_unknown_user_is_no_administrator_and_has_a_name() {
        assert!(is_admin(0));
        assert!(!is_admin(4_000_000_001));
        assert_eq!(user_name(4_000_000_001), "u4000000001");
    }
}
