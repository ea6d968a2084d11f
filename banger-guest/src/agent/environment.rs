//! The variables of a command: the image's, the user's own, and what the caller says, in the order
//! in which they count.

use super::account::Account;
use banger_policy::image::variable;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// By name; each name once.
pub(super) type Variables = BTreeMap<OsString, OsString>;

/// Of a command for which the image's configuration speaks: it may set everything, and the caller
/// sets it anew.
pub(super) fn of_command(account: &Account, image: &[String], caller: Vec<(OsString, OsString)>) -> Variables {
    let mut variables = own(account);
    variables.extend(of_image(image));
    variables.extend(caller);
    variables
}

/// Of a login, as login(1) does it: who the user is comes from the guest's tables and not from the
/// image's configuration.
pub(super) fn of_login(account: &Account, image: &[String], caller: Vec<(OsString, OsString)>) -> Variables {
    let mut variables: Variables = of_image(image).collect();
    for (name, value) in own(account) {
        // The programs of the image stand where the image says that they stand.
        if name != "PATH" || !variables.contains_key(OsStr::new("PATH")) {
            variables.insert(name, value);
        }
    }
    variables.extend(caller);
    variables
}

fn of_image(image: &[String]) -> impl Iterator<Item = (OsString, OsString)> {
    image.iter().filter_map(|entry| variable(entry)).map(|(name, value)| (name.into(), value.into()))
}

fn own(account: &Account) -> Variables {
    let home = account.home.clone().into_os_string();
    let shell = account.shell.clone().into_os_string();
    let known = [("HOME", home), ("SHELL", shell), ("PATH", crate::launch::PATH.into())];
    let mut variables: Variables = known.into_iter().map(|(name, value)| (name.into(), value)).collect();
    if let Some(user) = &account.name {
        variables.extend(["USER", "LOGNAME"].map(|name| (name.into(), user.into())));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> Account {
        let name = Some("app".to_owned());
        Account { uid: 1000, gid: 1000, groups: Vec::new(), name, home: "/home/app".into(), shell: "/bin/ash".into() }
    }

    fn image() -> Vec<String> {
        ["PATH=/opt/bin:/bin", "LANG=C.UTF-8", "HOME=/srv", "TWICE=1", "TWICE=2=3", "nothing", "EMPTY="]
            .map(str::to_owned)
            .to_vec()
    }

    fn said(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn has(variables: &Variables, name: &str, value: &str) {
        assert_eq!(variables.get(OsStr::new(name)), Some(&value.into()), "{name}: {variables:?}");
    }

    #[test]
    fn a_command_has_the_images_variables_and_the_callers_over_them() {
        let variables = of_command(&app(), &image(), said(&[("LANG", "de_DE.UTF-8"), ("KEY", "a"), ("KEY", "b")]));
        for (name, value) in [
            ("PATH", "/opt/bin:/bin"),
            ("HOME", "/srv"),
            ("LANG", "de_DE.UTF-8"),
            ("TWICE", "2=3"),
            ("EMPTY", ""),
            ("KEY", "b"),
            ("USER", "app"),
            ("LOGNAME", "app"),
            ("SHELL", "/bin/ash"),
        ] {
            has(&variables, name, value);
        }
        assert_eq!(variables.len(), 9);
    }

    #[test]
    fn a_login_has_its_own_home_and_the_images_path() {
        let variables = of_login(&app(), &image(), said(&[("LANG", "C")]));
        for (name, value) in
            [("PATH", "/opt/bin:/bin"), ("HOME", "/home/app"), ("USER", "app"), ("LANG", "C"), ("TWICE", "2=3")]
        {
            has(&variables, name, value);
        }
    }

    #[test]
    fn without_an_image_there_is_what_login_gives() {
        for variables in [of_command(&app(), &[], Vec::new()), of_login(&app(), &[], Vec::new())] {
            has(&variables, "PATH", crate::launch::PATH);
            has(&variables, "HOME", "/home/app");
            assert_eq!(variables.len(), 5);
        }
        let stranger = Account { name: None, ..app() };
        assert!(!of_command(&stranger, &[], Vec::new()).contains_key(OsStr::new("USER")));
    }
}
