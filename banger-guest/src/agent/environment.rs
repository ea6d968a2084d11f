//! The variables of a command: the image's, the user's own, and what the caller says, in the order in which they count.

use super::account::Account;
use banger_policy::image::variable;
use std::collections::BTreeMap;
use std::path::Path;

/// By name; each name once.
pub(super) type Variables = BTreeMap<String, String>;

/// Of a command for which the image's configuration speaks: it may set everything, and the caller sets it anew.
pub(super) fn of_command(account: &Account, image: &[String], caller: &[(String, String)]) -> Variables {
    let mut variables = own(account);
    variables.extend(of_image(image));
    variables.extend(caller.iter().cloned());
    variables
}

/// Of a login, as login(1) does it: who the user is comes from the guest's tables and not from the image's configuration.
pub(super) fn of_login(account: &Account, image: &[String], caller: &[(String, String)]) -> Variables {
    let mut variables: Variables = of_image(image).collect();
    for (name, value) in own(account) {
        // The programs of the image stand where the image says that they stand.
        if name != "PATH" || !variables.contains_key("PATH") {
            variables.insert(name, value);
        }
    }
    variables.extend(caller.iter().cloned());
    variables
}

fn of_image(image: &[String]) -> impl Iterator<Item = (String, String)> {
    let pairs = image.iter().filter_map(|entry| variable(entry));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))
}

fn own(account: &Account) -> Variables {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let known =
        [("HOME", text(&account.home)), ("SHELL", text(&account.shell)), ("PATH", crate::init::PATH.to_owned())];
    let mut variables: Variables = known.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Some(user) = &account.name {
        variables.extend(["USER", "LOGNAME"].map(|name| (name.to_owned(), user.clone())));
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

    fn said(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn has(variables: &Variables, name: &str, value: &str) {
        assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}: {variables:?}");
    }

    #[test]
    fn a_command_has_the_images_variables_and_the_callers_over_them() {
        let variables = of_command(&app(), &image(), &said(&[("LANG", "de_DE.UTF-8"), ("KEY", "a"), ("KEY", "b")]));
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
        let variables = of_login(&app(), &image(), &said(&[("LANG", "C")]));
        for (name, value) in
            [("PATH", "/opt/bin:/bin"), ("HOME", "/home/app"), ("USER", "app"), ("LANG", "C"), ("TWICE", "2=3")]
        {
            has(&variables, name, value);
        }
    }

    #[test]
    fn without_an_image_there_is_what_login_gives() {
        for variables in [of_command(&app(), &[], &[]), of_login(&app(), &[], &[])] {
            has(&variables, "PATH", crate::init::PATH);
            has(&variables, "HOME", "/home/app");
            assert_eq!(variables.len(), 5);
        }
        let stranger = Account { name: None, ..app() };
        assert!(!of_command(&stranger, &[], &[]).contains_key("USER"));
    }
}
