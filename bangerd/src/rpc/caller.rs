//! Who calls, while a connection is open: a user may lose the group, get other limits, or be
//! removed, and a connection may live for weeks.
//!
//! A new connection is always asked about ([`super::admission`]); one that is open, every few
//! seconds at most, and by its calls only.

use super::admission::{ask_users, who};
use crate::config::Live;
use crate::known::Who;
use crate::users::UserDatabase;
use banger_policy::Peer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// For how long an answer of the user database counts.
const FRESH: Duration = Duration::from_secs(5);
/// How long a call waits for the user database.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose the calls of one connection are.
#[derive(Debug)]
pub(super) struct Caller {
    uid: u32,
    /// Whose tokens its calls cost.
    pub(super) counted: Who,
    users: Arc<dyn UserDatabase>,
    config: Live,
    /// Who it was when it was last asked.
    last: Mutex<(Instant, Peer)>,
}

impl Caller {
    /// Of a connection that was let in just now as the peer's.
    pub(super) fn new(peer: Peer, users: Arc<dyn UserDatabase>, config: Live) -> Self {
        Self { uid: peer.uid, counted: Who::of(&peer), users, config, last: Mutex::new((Instant::now(), peer)) }
    }

    /// Who it is now. While the user database does not answer, who it was.
    pub(super) async fn now(&self) -> Peer {
        self.at(Instant::now()).await
    }

    async fn at(&self, now: Instant) -> Peer {
        let mut last = self.last.lock().await;
        if now.saturating_duration_since(last.0) >= FRESH {
            let (uid, users) = (self.uid, Arc::clone(&self.users));
            let limits = self.config.now().limits.clone();
            let asked = timeout(PATIENCE, ask_users(move || who(uid, &*users, &limits))).await;
            if let Some(peer) = asked.ok().flatten().flatten() {
                // Another name is another user, whose connection this is not.
                last.1 = if peer.name == last.1.name { peer } else { Peer::new(uid, "", false) };
            }
            last.0 = now;
        }
        last.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, FileState};
    use crate::users::{Account, Named};
    use std::sync::Mutex as Plain;
    use std::sync::PoisonError;

    /// What the host says of number 1009.
    #[derive(Debug)]
    struct Host(Plain<(Named, &'static str)>);

    impl Host {
        fn set(&self, name: Named, group: &'static str) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (name, group);
        }
    }

    impl UserDatabase for Host {
        fn name_of(&self, _: u32) -> Named {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
        }

        fn account(&self, name: &str) -> Option<Account> {
            let group = self.0.lock().unwrap_or_else(PoisonError::into_inner).1;
            Some(Account { uid: 1009, name: name.to_owned(), groups: vec![group.to_owned()] })
        }
    }

    #[tokio::test]
    async fn rights_and_limits_that_are_taken_away_end_on_open_connections_too() {
        let dora = || Named::As("dora".to_owned());
        let host = Arc::new(Host(Plain::new((dora(), "banger-admin"))));
        let config = Live::new(Config::built_in());
        let users: Arc<dyn UserDatabase> = Arc::clone(&host) as _;
        let caller = Caller::new(Peer::new(1009, "dora", true), users, config.clone());
        let begin = Instant::now();
        host.set(dora(), "banger");
        assert!(caller.at(begin + FRESH / 2).await.admin, "it was asked just now");
        let now = caller.at(begin + FRESH * 2).await;
        assert_eq!((now.admin, &*now.name), (false, "dora"));

        let limits = toml::from_str("[users.dora]\nvms = 1\n").map(crate::config::limits::check);
        let Ok(Ok(limits)) = limits else { unreachable!("{limits:?}") };
        config.take(Config { limits, ..Config::built_in() }, FileState::Absent);
        assert_eq!(caller.at(begin + FRESH * 4).await.limits.vms, 1);

        host.set(Named::Unknown, "banger");
        assert_eq!(&*caller.at(begin + FRESH * 6).await.name, "dora", "a directory that is away takes nothing away");

        // The number was given again: this is not the new user's connection, nor is it dora's when
        // the name comes back.
        for (times, name) in [(8, Named::As("carol".to_owned())), (10, dora()), (12, Named::Gone)] {
            host.set(name, "banger-admin");
            let now = caller.at(begin + FRESH * times).await;
            assert_eq!((&*now.name, now.admin), ("", false));
        }
    }
}
