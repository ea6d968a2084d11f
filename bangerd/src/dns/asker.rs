//! Who asks: a uid becomes a user, or a resolver that asks for everybody. And how much each may
//! ask.

use crate::rpc::rate::Rates;
use crate::users::{Named, UserDatabase};
use banger_policy::Peer;
use banger_policy::dns::Asker;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Questions per second, and at once, of one user.
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
/// Whoever cannot be told apart shares this number's allowance; the kernel gives it to nobody.
const NOBODY: u32 = u32::MAX;

/// The users of this host, as far as they have asked.
#[derive(Debug)]
pub(super) struct Askers {
    users: Arc<dyn UserDatabase>,
    /// Login names of programs that ask for everybody.
    resolvers: Vec<String>,
    names: Mutex<HashMap<u32, (Instant, String)>>,
    by_user: Rates,
    by_resolver: Rates,
}

impl Askers {
    pub(super) fn new(users: Arc<dyn UserDatabase>, resolvers: Vec<String>) -> Self {
        let (by_user, by_resolver) = (Rates::new(USER), Rates::new(RESOLVER));
        Self { users, resolvers, names: Mutex::default(), by_user, by_resolver }
    }

    /// Who has this number; `None`: too many questions.
    pub(super) async fn admit(&self, uid: Option<u32>) -> Option<Asker> {
        let Some(uid) = uid else { return self.by_user.take(NOBODY).then_some(Asker::Unknown) };
        // Before the user database is asked. Whether it is a resolver is known only then.
        if !self.by_resolver.take(uid) {
            return None;
        }
        let name = self.name_of(uid).await;
        if self.resolvers.contains(&name) {
            return Some(Asker::Resolver);
        }
        // One user may have thousands of numbers without a name, in a user namespace.
        let counted = if name.is_empty() && uid != 0 { NOBODY } else { uid };
        let peer = Peer { name: name.into(), ..Peer::new(uid, "", uid == 0) };
        self.by_user.take(counted).then_some(Asker::User(peer))
    }

    /// Among whose connections one of this number counts, and whether it is root's or a resolver's.
    pub(super) async fn counted_as(&self, uid: Option<u32>) -> (Option<u32>, bool) {
        let Some(number) = uid else { return (None, false) };
        let name = self.name_of(number).await;
        let asks_for_all = number == 0 || self.resolvers.contains(&name);
        (uid.filter(|_| number == 0 || !name.is_empty()), asks_for_all)
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
