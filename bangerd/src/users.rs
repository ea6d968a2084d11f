//! The host's user database, asked by number and by name. What cannot be found out is nobody: no
//! right follows from an answer that is not there.

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::ffi::CString;
use std::fmt;

/// What the database says of a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The number has this login name now.
    As(String),
    /// It has none.
    Gone,
    /// The database did not answer.
    Unknown,
}

/// A user as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) name: String,
    /// Names of the groups; without those that have none.
    pub(crate) groups: Vec<String>,
}

/// Calls may take as long as a network's directory does.
pub(crate) trait UserDatabase: Send + Sync + fmt::Debug {
    /// The name that a number has now.
    fn name_of(&self, uid: u32) -> Named;
    /// The user of a name; `None` also when the database did not answer.
    fn account(&self, name: &str) -> Option<Account>;
}

/// By the C library: passwd(5), and whatever else nsswitch.conf(5) names.
#[derive(Debug)]
pub(crate) struct Nss;

impl UserDatabase for Nss {
    fn name_of(&self, uid: u32) -> Named {
        match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) if !user.name.is_empty() => Named::As(user.name),
            Ok(_) => Named::Gone,
            Err(_) => Named::Unknown,
        }
    }

    fn account(&self, name: &str) -> Option<Account> {
        let user = User::from_name(name).ok().flatten().filter(|user| user.name == name)?;
        Some(Account { uid: user.uid.as_raw(), groups: groups(&user.name, user.gid)?, name: user.name })
    }
}

/// `None`: the database did not answer.
fn groups(name: &str, gid: Gid) -> Option<Vec<String>> {
    let gids = getgrouplist(&CString::new(name).ok()?, gid).ok()?;
    let names = gids.into_iter().filter_map(|gid| match Group::from_gid(gid) {
        Ok(group) => group.map(|group| Ok(group.name)),
        // A group without a name by the words of some sources (getgrgid_r(3)), and one of more
        // members than are read.
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM | Errno::ERANGE) => None,
        Err(error) => Some(Err(error)),
    });
    names.collect::<Result<_, Errno>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_name_and_a_number_that_is_free_has_none() {
        assert_eq!(Nss.name_of(0), Named::As("root".into()));
        assert_eq!(Nss.name_of(4_000_000_001), Named::Gone);
        let root = Nss.account("root");
        assert!(root.is_some_and(|root| root.uid == 0 && root.groups.iter().any(|group| group == "root")));
        assert_eq!(Nss.account("nobody-has-this-name"), None);
    }
}
