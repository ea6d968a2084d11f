//! Who commits: the user's name and address, as far as git and the environment know them.

use super::git::Git;
use super::source::entries;
use std::collections::BTreeMap;
use std::path::Path;

/// Each setting with the variables and the other settings that say the same (git(1), git-config(1),
/// git-commit-tree(1)).
const SETTINGS: [(&str, &[&str], [&str; 2]); 2] = [
    ("user.name", &["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"], ["author.name", "committer.name"]),
    ("user.email", &["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "EMAIL"], ["author.email", "committer.email"]),
];

/// `user.name` and `user.email`, those that have a value.
///
/// # Errors
/// When git cannot be started.
pub(super) fn of(git: &Git) -> anyhow::Result<Vec<(&'static str, String)>> {
    let asked = ["config", "-z", "--get-regexp", "^(user|author|committer)\\.(name|email)$"];
    // NAME, a line feed, VALUE; of several, the last one counts. The status is 1 when there is
    // none.
    let listed = git.output(&asked, b"")?.stdout;
    let text = |line| String::from_utf8_lossy(line).into_owned();
    let lines = entries(&listed).map(text).collect::<Vec<_>>();
    let set: BTreeMap<&str, &str> = lines.iter().filter_map(|line| line.split_once('\n')).collect();
    let value = |(name, variables, others): (&'static str, &[&str], [&str; 2])| {
        let settings = |names: &[&str]| names.iter().find_map(|name| set.get(name)).map(|value| (*value).to_owned());
        let variable = || variables.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Some((name, settings(&[name]).or_else(variable).or_else(|| settings(&others))?))
    };
    Ok(SETTINGS.into_iter().filter_map(value).collect())
}

/// A configuration of git that has them; `None` when the user has none, or no git.
pub(crate) fn configuration(home: &Path) -> Option<String> {
    let known = of(&Git::within(home)).ok().filter(|known| !known.is_empty())?;
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let line = |(name, value): (&str, String)| {
        format!("\t{} = \"{}\"\n", name.strip_prefix("user.").unwrap_or(name), quoted(&value))
    };
    Some(format!("[user]\n{}", known.into_iter().map(line).collect::<String>()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn git_reads_the_configuration_as_it_was_meant() {
        if super::super::git::check_version().is_err() {
            eprintln!("skipped: no git");
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let git = Git::within(home.path());
        git.bytes(&["init", "--quiet"]).unwrap();
        let (name, email) = ("Al \"the\\one\" # Ice;", "alice@example.org");
        for (setting, value) in [("author.name", "other"), ("user.name", name), ("committer.email", email)] {
            git.bytes(&["config", setting, value]).unwrap();
        }
        // Without the configuration of whoever runs the tests there is no other address.
        let known = of(&git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null")).unwrap();
        assert_eq!(known.first().unwrap(), &("user.name", name.to_owned()));
        let path = home.path().join("written");
        std::fs::write(&path, configuration(home.path()).unwrap()).unwrap();
        let read = Git::within(home.path()).text(&["config", "--file", path.to_str().unwrap(), "user.name"]).unwrap();
        assert_eq!(read, name);
    }
}
