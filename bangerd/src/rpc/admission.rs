//! Who is at the other end, and whether there is room for one more connection. The socket's mode
//! lets in the members of group `banger`; here the kernel's word on the peer becomes a [`Peer`].

use super::rate::Rates;
use crate::config::limits::Limits;
use crate::known::{Known, Who};
use crate::users::{Named, UserDatabase};
use banger_policy::Peer;
use nix::unistd::Uid;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::UnixStream;

/// Connections of one user, and of neighbours who are not known yet. A user's shell loop must not
/// keep the others out.
const PER_USER: usize = 128;
/// Connections of all users; below the limit on descriptors that the unit sets. Root's places are
/// root's alone: whoever has to end what others do gets in.
const ALL: usize = 1024;
/// Connections of all numbers without a login name together: one user may have thousands of them,
/// in a user namespace (subuid(5)).
const NAMELESS: usize = 16;
/// Connections of all numbers together of which it is not known yet whether they have a name: one
/// user may have been given many ranges, and users who are known need the rest. A place is theirs
/// only while the user database is asked.
const STRANGERS: usize = 512;
/// Who sees everyone's VMs.
const ADMIN_GROUP: &str = "banger-admin";

/// Connections by whose they are.
#[derive(Debug)]
pub(super) struct Admission {
    places: Mutex<HashMap<Who, usize>>,
    known: Known,
    /// Who gets no place. VMMs run under the daemon's uid: a guest that broke out must not give
    /// orders.
    refused: Option<u32>,
    /// How often each user may come: each connection is a thread and questions to the user
    /// database, before its first call costs anything.
    arrivals: Rates,
    /// What may be written to the log of each user's refusals.
    notes: Rates,
}

/// A place for one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) peer: Peer,
    holder: Who,
    admission: Arc<Admission>,
}

impl Admission {
    /// For a daemon that runs as this user. One that root runs, in a build folder, has no user of
    /// its own.
    pub(super) fn of_daemon(daemon: Uid) -> Self {
        Self {
            places: Mutex::default(),
            known: Known::default(),
            refused: (!daemon.is_root()).then_some(daemon.as_raw()),
            arrivals: Rates::calls(),
            notes: Rates::notes(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, usize>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, uid: u32, who: Who, what: &str) {
        if self.notes.take(who) {
            tracing::warn!(banger_uid = uid, "{what}");
        }
    }

    /// A place, or why not in the log.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let holder = self.known.who(peer.uid);
        if self.refused == Some(peer.uid) {
            self.note(peer.uid, holder, "refused a connection of the daemon's own user");
            return None;
        }
        if !self.arrivals.take(holder) {
            self.note(peer.uid, holder, "too many connections in a second");
            return None;
        }
        self.take(peer, holder)
    }

    fn take(self: &Arc<Self>, peer: Peer, holder: Who) -> Option<Place> {
        let mut all = self.lock();
        let own = all.get(&holder).copied().unwrap_or(0);
        let sum = |counts: fn(&Who) -> bool| -> usize {
            all.iter().filter(|(holder, _)| counts(holder)).map(|(_, count)| count).sum()
        };
        let room_of_users = own < PER_USER && sum(|holder| *holder != Who::ROOT) < ALL - PER_USER;
        let room = match holder {
            Who::ROOT => own < PER_USER,
            Who::Uid(_) => room_of_users,
            Who::Strangers(_) => room_of_users && sum(|holder| matches!(holder, Who::Strangers(_))) < STRANGERS,
            Who::Nameless => own < NAMELESS,
        };
        if !room {
            drop(all);
            self.note(peer.uid, holder, "too many connections");
            return None;
        }
        all.insert(holder, own + 1);
        Some(Place { peer, holder, admission: Arc::clone(self) })
    }
}

impl Place {
    /// Now it is known whose it is. Without a name it is one of few. `None`: the user database did
    /// not answer.
    fn known_as(mut self, peer: Option<Peer>) -> Option<Self> {
        if let Some(peer) = &peer {
            self.admission.known.learned(peer.uid, !peer.name.is_empty());
        }
        let peer = peer.unwrap_or_else(|| self.peer.clone());
        let holder = Who::of(&peer);
        if holder != self.holder {
            return self.admission.take(peer, holder);
        }
        self.peer = peer;
        Some(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.admission.lock();
        if let Some(own) = all.get_mut(&self.holder) {
            *own = own.saturating_sub(1);
        }
        all.retain(|_, count| *count > 0);
    }
}

/// A place for this connection, or why not in the log: there is no way to tell a peer that is not
/// let in.
pub(super) async fn admit(
    admission: &Arc<Admission>,
    stream: &UnixStream,
    users: Arc<dyn UserDatabase>,
    limits: Limits,
) -> Option<Place> {
    // SO_PEERCRED: who connected, as the kernel saw it then (unix(7)).
    let uid = match stream.peer_cred() {
        Ok(peer) => peer.uid(),
        Err(error) => {
            tracing::warn!("a connection without credentials: {error}");
            return None;
        }
    };
    // A place first: the user database may be slow, and whoever asks it is counted.
    let nobody = Peer::new(uid, "", false);
    let place = admission.enter(nobody)?;
    place.known_as(ask_users(move || who(uid, &*users, &limits)).await.flatten())
}

/// Asks the host's user database, on a thread of its own: imports and disks in the making may hold
/// all threads that the runtime has for blocking work, and nobody would be let in. As many at once
/// as there are places for connections. `None` when the host has no thread to give.
pub(super) async fn ask_users<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let asking = std::thread::Builder::new().name("user-database".to_owned()).stack_size(256 << 10);
    // Whoever asked may be gone when the answer comes.
    asking.spawn(move || drop(answer.send(question()))).ok()?;
    answered.await.ok()
}

/// Who a number is by the host's user database; `None` when that does not answer. Without a name
/// nothing is the peer's.
pub(super) fn who(uid: u32, users: &dyn UserDatabase, limits: &Limits) -> Option<Peer> {
    let name = match users.name_of(uid) {
        Named::As(name) => name,
        Named::Gone => return Some(Peer::new(uid, "", uid == 0)),
        Named::Unknown => return None,
    };
    let account = users.account(&name).filter(|account| account.uid == uid);
    let groups = account.map(|account| account.groups).unwrap_or_default();
    let admin = uid == 0 || groups.iter().any(|group| group == ADMIN_GROUP);
    let limits = limits.of(uid, &name, &groups);
    Some(Peer { uid, name: name.into(), admin, limits })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::users::{Account, Nss};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_user_cannot_take_all_places_and_places_come_back() {
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(0)));
        let peer = |uid| Peer::new(uid, "somebody", false);
        [1, 2].iter().for_each(|uid| admission.known.learned(*uid, true));
        let held: Vec<Place> = (0..PER_USER).map(|_| admission.enter(peer(1)).unwrap()).collect();
        assert!(admission.enter(peer(1)).is_none());
        assert!(admission.enter(peer(2)).is_some());
        drop(held);
        assert!(admission.enter(peer(1)).is_some());
        assert!(admission.lock().is_empty());
    }

    #[test]
    fn users_who_take_all_that_they_can_do_not_keep_root_out() {
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(0)));
        (1..=11).for_each(|uid| admission.known.learned(uid, true));
        let enter = |uid| admission.enter(Peer::new(uid, "somebody", uid == 0));
        let held: Vec<Place> = (1..=10).flat_map(|uid| [uid; PER_USER]).filter_map(enter).collect();
        assert!(held.len() < ALL && enter(11).is_none());
        let roots: Vec<Place> = (0..PER_USER).map(|_| enter(0).unwrap()).collect();
        assert_eq!(held.len() + roots.len(), ALL);
        assert!(enter(0).is_none());
    }

    /// The numbers of a user namespace keep the group that the socket's mode asks for.
    #[test]
    fn numbers_without_a_name_have_few_places_together() {
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(0)));
        let nobody = |uid| Peer::new(uid, "", false);
        let enter = |uid| admission.enter(nobody(uid)).unwrap().known_as(Some(nobody(uid)));
        let held: Vec<Place> = (100_000..100_500).filter_map(enter).collect();
        assert_eq!(held.len(), NAMELESS);
        assert!(admission.enter(nobody(1)).unwrap().known_as(Some(Peer::new(1, "alice", false))).is_some());
        assert!(enter(0).is_some(), "root is root by its number");
        drop(held);
        assert!(enter(100_000).is_some());
    }

    /// While the user database answers slowly, somebody comes as each number of a user namespace,
    /// whose numbers lie in two ranges. Whoever was never here before has neighbours with names.
    #[test]
    fn whoever_comes_as_another_number_each_time_keeps_nobody_out() {
        let lines = Lines::default();
        let _here = tracing::subscriber::set_default(lines.clone());
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(0)));
        let enter = |uid| admission.enter(Peer::new(uid, "", false));
        let held: Vec<Place> = (100_000..165_536).filter_map(enter).collect();
        assert_eq!(held.len(), 2 * PER_USER);
        drop(held);
        // Each asks the user database, on a thread of its own.
        let asked = (100_000..165_536).filter_map(enter).count();
        assert!(asked < 5_000, "{asked}");
        let written = lines.0.load(Ordering::Relaxed);
        assert!((10..200).contains(&written), "{written}");
        let alice = enter(1001).unwrap().known_as(Some(Peer::new(1001, "alice", false)));
        assert!(alice.is_some_and(|place| place.holder == Who::Uid(1001)));
        assert_eq!(admission.known.who(1001), Who::Uid(1001));
    }

    /// A user may have been given more ranges than there are places for.
    #[test]
    fn many_ranges_of_numbers_leave_room_for_users_who_are_known() {
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(0)));
        admission.known.learned(1001, true);
        let enter = |uid| admission.enter(Peer::new(uid, "", false));
        let ranges = (2..40).flat_map(|range| [range << 16; PER_USER]);
        let held: Vec<Place> = ranges.filter_map(enter).collect();
        assert_eq!(held.len(), STRANGERS);
        let alices: Vec<Place> = (0..PER_USER).filter_map(|_| enter(1001)).collect();
        assert_eq!(alices.len(), PER_USER);
        drop(held);
        assert!(enter(2 << 16).is_some());
    }

    #[test]
    fn who_comes_too_often_is_not_asked_about() {
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(0)));
        admission.known.learned(2, true);
        let come = |uid| admission.enter(Peer::new(uid, "", false)).is_some();
        let came = (0..10_000).filter(|_| come(1)).count();
        assert!((1_000..5_000).contains(&came), "{came}");
        assert!(come(2), "another user's coming is another matter");
    }

    #[test]
    fn the_daemons_own_user_is_refused() {
        let peer = |uid| Peer::new(uid, "", false);
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(990)));
        assert!(admission.enter(peer(990)).is_none());
        assert!(admission.enter(peer(991)).is_some() && admission.enter(peer(0)).is_some());
        // In a build folder root is its own user.
        assert!(Arc::new(Admission::of_daemon(Uid::from_raw(0))).enter(peer(0)).is_some());
    }

    #[test]
    fn an_unknown_user_is_no_administrator_and_owns_nothing() {
        let root = who(0, &Nss, &Limits::default()).unwrap();
        assert!(root.admin && root.name == "root");
        let nobody = who(4_000_000_001, &Nss, &Limits::default()).unwrap();
        assert!(!nobody.admin && !nobody.owns(&nobody.owner()), "{nobody:?}");
    }

    /// Everybody is dora by number; the account of that name is the one given.
    #[derive(Debug)]
    struct Dora(Option<(u32, &'static str)>);

    impl UserDatabase for Dora {
        fn name_of(&self, _: u32) -> Named {
            Named::As("dora".into())
        }

        fn account(&self, name: &str) -> Option<Account> {
            self.0.map(|(uid, group)| Account { uid, name: name.to_owned(), groups: vec![group.to_owned()] })
        }
    }

    #[test]
    fn the_group_makes_an_administrator_of_the_account_with_that_number_and_nothing_else_does() {
        for (account, admin) in [
            (Some((1009, ADMIN_GROUP)), true),
            (Some((1009, "banger")), false),
            // The name belongs to another number by now.
            (Some((1010, ADMIN_GROUP)), false),
            (None, false),
        ] {
            let peer = who(1009, &Dora(account), &Limits::default()).unwrap();
            assert_eq!((peer.uid, &*peer.name, peer.admin), (1009, "dora", admin), "{account:?}");
        }
    }

    /// Counts what is written to the log.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn who_is_refused_again_and_again_does_not_fill_the_log() {
        let lines = Lines::default();
        let _here = tracing::subscriber::set_default(lines.clone());
        let admission = Arc::new(Admission::of_daemon(Uid::from_raw(990)));
        for _ in 0..1_000 {
            assert!(admission.enter(Peer::new(990, "", false)).is_none());
        }
        // Ten at once, and one for each second that this took.
        let written = lines.0.load(Ordering::Relaxed);
        assert!((10..100).contains(&written), "{written}");
    }
}
