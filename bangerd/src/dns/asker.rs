//! Who asks: a uid becomes a user, or a resolver that asks for everybody. And how much each may
//! ask.

use crate::known::{Known, Who};
use crate::rpc::rate::Rates;
use crate::turns::Places;
use crate::users::{Named, UserDatabase};
use banger_policy::Peer;
use banger_policy::dns::Asker;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Questions per second, and at once, of one user, and of neighbours who are not known yet.
const USER: (u32, u32) = (200, 1000);
/// The same of a resolver: what all users of the host ask.
const RESOLVER: (u32, u32) = (2000, 10_000);
/// For how long the name of a number is not asked for again. The user database may be a directory
/// in the network, and each question is about two users.
const FRESH: Duration = Duration::from_secs(5);
/// How long the user database may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Numbers of which the name is kept.
const KEPT: usize = 1024;
/// Neighbours who are not known yet, and of whom the user database is asked at the same time.
const STRANGERS: usize = 32;

/// The users of this host, as far as they have asked.
#[derive(Debug)]
pub(super) struct Askers {
    users: Arc<dyn UserDatabase>,
    /// Login names of programs that ask for everybody.
    resolvers: Vec<String>,
    names: Mutex<HashMap<u32, (Instant, String)>>,
    known: Known,
    strangers: Places,
    by_user: Rates,
    by_resolver: Rates,
}

impl Askers {
    pub(super) fn new(users: Arc<dyn UserDatabase>, resolvers: Vec<String>) -> Self {
        let (by_user, by_resolver) = (Rates::new(USER), Rates::new(RESOLVER));
        let (known, strangers) = (Known::default(), Places::new(STRANGERS));
        Self { users, resolvers, names: Mutex::default(), known, strangers, by_user, by_resolver }
    }

    /// As whom a number counts before its name is asked for.
    pub(super) fn who(&self, uid: Option<u32>) -> Who {
        uid.map_or(Who::Nameless, |uid| self.known.who(uid))
    }

    /// Who has this number; `None`: too many questions.
    pub(super) async fn admit(&self, uid: Option<u32>) -> Option<Asker> {
        let Some(uid) = uid else { return self.by_user.take(Who::Nameless).then_some(Asker::Unknown) };
        let name = self.name_for(uid, self.known.who(uid)).await?;
        if self.resolvers.contains(&name) {
            return Some(Asker::Resolver);
        }
        let peer = Peer { name: name.into(), ..Peer::new(uid, "", uid == 0) };
        self.by_user.take(Who::of(&peer)).then_some(Asker::User(peer))
    }

    /// Among whose connections one of this number counts, and whether it is root's or a resolver's;
    /// `None`: too many of those who are not known yet.
    pub(super) async fn counted_as(&self, uid: Option<u32>) -> Option<(Who, bool)> {
        let Some(uid) = uid else { return Some((Who::Nameless, false)) };
        let name = self.name_for(uid, self.known.who(uid)).await?;
        let asks_for_all = uid == 0 || self.resolvers.contains(&name);
        Some((Who::of(&Peer { name: name.into(), ..Peer::new(uid, "", false) }), asks_for_all))
    }

    /// The name of who asks. What this costs is paid before the user database is asked, and whether
    /// it is a resolver is known only then.
    async fn name_for(&self, uid: u32, who: Who) -> Option<String> {
        let (paid, place) = match who {
            Who::Strangers(range) => {
                (self.by_user.take(who), Some(self.strangers.of(range.into()).try_acquire_owned().ok()?))
            }
            Who::Uid(_) | Who::Nameless => (self.by_resolver.take(who), None),
        };
        if !paid {
            return None;
        }
        let name = self.name_of(uid).await;
        self.known.learned(uid, !name.is_empty());
        drop(place);
        Some(name)
    }

    /// The login name of a number now, empty when there is none or it cannot be found out.
    pub(super) async fn name_of(&self, uid: u32) -> String {
        if let Some((at, name)) = self.lock().get(&uid)
            && at.elapsed() < FRESH
        {
            return name.clone();
        }
        let users = Arc::clone(&self.users);
        let asked = tokio::task::spawn_blocking(move || users.name_of(uid));
        let name = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(Named::As(name))) => name,
            Ok(Ok(Named::Gone)) => String::new(),
            // Not kept: the next question asks again.
            Ok(Ok(Named::Unknown) | Err(_)) | Err(_) => return String::new(),
        };
        let mut names = self.lock();
        if names.len() >= KEPT {
            names.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        // Numbers without a name are more than there are names.
        if names.len() >= KEPT {
            names.retain(|_, (_, name)| !name.is_empty());
        }
        if names.len() < KEPT {
            names.insert(uid, (Instant::now(), name.clone()));
        }
        name
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, (Instant, String)>> {
        // Every change is one insert or remove.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::users::Account;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Alice has number 1001, and no other number has a name. Counts what it was asked.
    #[derive(Debug, Default)]
    struct Alice(AtomicUsize);

    impl UserDatabase for Alice {
        fn name_of(&self, uid: u32) -> Named {
            self.0.fetch_add(1, Ordering::Relaxed);
            if uid == 1001 { Named::As("alice".into()) } else { Named::Gone }
        }

        fn account(&self, _: &str) -> Option<Account> {
            None
        }
    }

    /// Of a host on which nobody has asked yet.
    pub(crate) fn nobody() -> Askers {
        Askers::new(Arc::new(Alice::default()), Vec::new())
    }

    #[tokio::test]
    async fn whoever_asks_as_another_number_each_time_is_not_asked_about_each_time() {
        let users = Arc::new(Alice::default());
        let askers = Askers::new(Arc::clone(&users) as Arc<dyn UserDatabase>, Vec::new());
        for uid in 100_000..110_000 {
            askers.admit(Some(uid)).await;
        }
        let asked = users.0.load(Ordering::Relaxed);
        assert!(asked < 5_000, "{asked}");
        assert!(matches!(askers.admit(Some(1001)).await, Some(Asker::User(peer)) if peer.name == "alice"));
        askers.admit(Some(1001)).await.unwrap();
        assert_eq!(users.0.load(Ordering::Relaxed), asked + 1, "her name is kept");
    }
}
