//! What a caller may say about a command in a VM, beside its words. Asked by the command line and
//! by the daemon, with one answer.

/// What no command can be started with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandFault {
    /// The name of a variable is empty or contains `=`.
    #[error("{0:?} is no name of a variable")]
    Name(String),
    /// The kernel ends every text of a process at a NUL.
    #[error("{0} contains NUL, which no process can be given")]
    Nul(String),
    /// It would depend on a folder that nobody names.
    #[error("the folder {0:?} is not an absolute path in the VM")]
    Folder(String),
    /// No user is called so.
    #[error("{0:?} is no user: give a name or a number, with or without a group, such as app, 1000 or 1000:1000")]
    User(String),
}

/// Checks the variables, the folder and the user of a command.
///
/// # Errors
/// The first fault.
pub fn check(env: &[(String, String)], working_dir: Option<&str>, user: Option<&str>) -> Result<(), CommandFault> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(CommandFault::Name(name.clone()));
        }
        if value.contains('\0') {
            return Err(CommandFault::Nul(format!("the value of {name:?}")));
        }
    }
    if let Some(folder) = working_dir.filter(|folder| !folder.starts_with('/') || folder.contains('\0')) {
        return Err(CommandFault::Folder(folder.to_owned()));
    }
    // What can stand in /etc/passwd, with one colon for the group.
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '/';
    if let Some(user) = user.filter(|user| user.is_empty() || user.contains(odd) || user.matches(':').count() > 1) {
        return Err(CommandFault::User(user.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, value: &str, folder: &str, user: &str) -> Result<(), CommandFault> {
        check(&[(name.to_owned(), value.to_owned())], Some(folder), Some(user))
    }

    #[test]
    fn what_a_process_can_have_is_let_through() {
        assert_eq!(check(&[], None, None), Ok(()));
        for user in ["app", "1000", "1000:1000", "app:staff", "first.last", "user$", ":staff"] {
            assert_eq!(said("A", "a=b\n\u{1b}", "/srv/a b", user), Ok(()), "{user}");
        }
    }

    #[test]
    fn what_none_can_have_is_named() {
        for name in ["", "=user", "A=b", "A\0"] {
            assert_eq!(said(name, "x", "/", "root"), Err(CommandFault::Name(name.to_owned())));
        }
        assert_eq!(said("A", "\0", "/", "root"), Err(CommandFault::Nul("the value of \"A\"".to_owned())));
        for folder in ["", "srv", "./x", "~", "/a\0"] {
            assert_eq!(said("A", "", folder, "root"), Err(CommandFault::Folder(folder.to_owned())));
        }
        for user in ["", "a b", "a\n", "a:b:c", "../x"] {
            assert_eq!(said("A", "", "/", user), Err(CommandFault::User(user.to_owned())));
        }
    }
}
