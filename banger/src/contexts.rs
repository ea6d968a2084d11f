//! Names for other machines, in `~/.config/banger/contexts.toml`, and which one is in use.

use crate::error::explained;
use crate::machine::{self, Address, HOST_VARIABLE, LOCAL};
use crate::private::{self, Missing};
use anyhow::Context as _;
use nix::unistd::{Uid, geteuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The longest name of a context.
const MAX_NAME: usize = 64;

/// The longest file that is read, bytes.
const LONGEST: u64 = 64 << 10;

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one in use; this machine when it is missing.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// Addresses by name.
    pub(crate) hosts: BTreeMap<String, String>,
}

/// Decides which machine this process asks: the flag, then the variable, then the context in use.
///
/// # Errors
/// For what is neither an address nor the name of a context.
pub(crate) fn choose(flag: Option<&str>) -> anyhow::Result<()> {
    let variable = std::env::var(HOST_VARIABLE).ok().filter(|value| !value.is_empty());
    machine::choose(match flag.map(str::to_owned).or(variable) {
        Some(word) => resolve(&word)?,
        None => in_use()?,
    });
    Ok(())
}

/// What `--host` means: an address, or the name of a context.
///
/// # Errors
/// When it is neither.
fn resolve(word: &str) -> anyhow::Result<Option<Address>> {
    if word == LOCAL {
        return Ok(None);
    }
    if word.contains("://") {
        return word.parse().map(Some);
    }
    read(&file()?)?.address(word).map(Some)
}

/// The context in use.
///
/// # Errors
/// When the file is damaged, or names a context that it does not have.
fn in_use() -> anyhow::Result<Option<Address>> {
    // Who has no home has no contexts.
    let Ok(file) = file() else { return Ok(None) };
    let contexts = read(&file)?;
    contexts.current.as_deref().map(|name| contexts.address(name)).transpose()
}

impl Contexts {
    fn address(&self, name: &str) -> anyhow::Result<Address> {
        let text = self.hosts.get(name).ok_or_else(|| unknown(name))?;
        text.parse().with_context(|| format!("the context {name}"))
    }

    /// # Errors
    /// For a name that is none, or is taken.
    pub(crate) fn add(&mut self, name: &str, address: &Address) -> anyhow::Result<()> {
        let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !letters || name.is_empty() || name.len() > MAX_NAME || name.starts_with(['-', '.']) {
            return Err(explained(
                "this is no name for a context",
                "letters, digits, - and _, and dots behind the first letter, such as: lab",
            ));
        }
        if name == LOCAL {
            return Err(explained("the context local is this machine, always", "take another name"));
        }
        if let Some(there) = self.hosts.get(name) {
            return Err(explained(
                format!("the context {name} is there already: {there}"),
                format!("to replace it: banger context remove {name}, then add it again"),
            ));
        }
        self.hosts.insert(name.to_owned(), address.to_string());
        Ok(())
    }

    /// # Errors
    /// When there is none of this name.
    pub(crate) fn choose(&mut self, name: &str) -> anyhow::Result<()> {
        self.current = match name {
            LOCAL => None,
            _ => Some(self.hosts.get_key_value(name).ok_or_else(|| unknown(name))?.0.clone()),
        };
        Ok(())
    }

    /// # Errors
    /// When there is none of this name.
    pub(crate) fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        self.hosts.remove(name).ok_or_else(|| unknown(name))?;
        self.current.take_if(|current| current == name);
        Ok(())
    }
}

fn unknown(name: &str) -> anyhow::Error {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    explained(
        format!("there is no context {shown:?}"),
        "see: banger context list; an address begins with ssh://, such as: ssh://alice@host.example",
    )
}

/// # Errors
/// When the user has no folder for it.
pub(crate) fn file() -> anyhow::Result<PathBuf> {
    let folder = crate::registry::config_folder();
    let folder = folder.context("you have no home folder to keep contexts in (HOME is not set)")?;
    Ok(folder.join("contexts.toml"))
}

/// What the caller has written down. Under `sudo`, HOME may be another user's: whose machine a
/// command goes to is not that user's to say, so a file of somebody else is as none.
///
/// # Errors
/// With the place of a mistake.
pub(crate) fn read(file: &Path) -> anyhow::Result<Contexts> {
    read_as(geteuid(), file)
}

fn read_as(caller: Uid, file: &Path) -> anyhow::Result<Contexts> {
    let what = || format!("cannot read {}", file.display());
    // Not a queue that somebody put there to wait for, and no link to another file.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut opened = match OpenOptions::new().read(true).custom_flags(flags).open(file) {
        Ok(opened) => opened,
        Err(error) if [ErrorKind::NotFound, ErrorKind::PermissionDenied].contains(&error.kind()) => {
            return Ok(Contexts::default());
        }
        Err(error) => return Err(error).with_context(what),
    };
    let found = opened.metadata().with_context(what)?;
    if !found.is_file() || found.uid() != caller.as_raw() {
        return Ok(Contexts::default());
    }
    let mut text = String::new();
    (&mut opened).take(LONGEST).read_to_string(&mut text).with_context(what)?;
    toml::from_str(&text).map_err(|error| {
        let hint = "correct or remove that file; --host local works meanwhile";
        explained(error.to_string().trim(), hint).context(what())
    })
}

/// Under `sudo`, HOME may be another user's, who may have made a link of any part of the path.
///
/// # Errors
/// When it cannot be written, or somebody else has a hand in a folder on the way to it.
pub(crate) fn write(file: &Path, contexts: &Contexts) -> anyhow::Result<()> {
    write_as(geteuid(), file, contexts)
}

fn write_as(caller: Uid, file: &Path, contexts: &Contexts) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", file.display());
    let folder = file.parent().with_context(what)?;
    // Links of the caller's own are followed, as in a home that is kept in a repository.
    private::open(folder, Path::new(""), caller, Missing::Make).with_context(what)?;
    let mut new = tempfile::NamedTempFile::new_in(folder).with_context(what)?;
    new.write_all(toml::to_string(contexts).with_context(what)?.as_bytes()).with_context(what)?;
    new.persist(file).with_context(what)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn contexts_are_kept_used_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("banger/contexts.toml");
        let mut contexts = read(&file).unwrap();
        contexts.add("lab", &"ssh://alice@lab:2222".parse().unwrap()).unwrap();
        assert!(contexts.choose("other").is_err() && contexts.current.is_none());
        contexts.choose("lab").unwrap();
        write(&file, &contexts).unwrap();
        let mut again = read(&file).unwrap();
        assert_eq!(again, contexts);
        assert_eq!(again.address("lab").unwrap().to_string(), "ssh://alice@lab:2222");
        assert!(again.add("lab", &"ssh://x".parse().unwrap()).is_err(), "it is there already");
        again.remove("lab").unwrap();
        assert_eq!(again, Contexts::default(), "what is gone is not in use");
        for bad in ["", "local", "-x", "a/b", "a b", "\u{1b}"] {
            assert!(again.add(bad, &"ssh://x".parse().unwrap()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn another_users_file_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("contexts.toml");
        let text = "use = \"lab\"\n[hosts]\nlab = \"ssh://mallory@lab\"\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(read(&file).unwrap().current.as_deref(), Some("lab"));
        let other = Uid::from_raw(geteuid().as_raw() + 1);
        assert_eq!(read_as(other, &file).unwrap(), Contexts::default());
    }

    /// Root with the HOME of a user who has made a link of `.config`, or of a folder below it.
    #[test]
    fn nothing_is_written_through_another_users_link() {
        let dir = tempfile::tempdir().unwrap();
        let (home, target) = (dir.path().join("alice"), dir.path().join("roots"));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(&target, home.join(".config")).unwrap();
        // Root gives the home away; anybody else looks at it as another user.
        let me = if geteuid().is_root() {
            std::os::unix::fs::lchown(home.join(".config"), Some(65_534), None).unwrap();
            std::os::unix::fs::chown(&home, Some(65_534), None).unwrap();
            geteuid()
        } else {
            Uid::from_raw(geteuid().as_raw() + 1)
        };
        let refused = write_as(me, &home.join(".config/banger/contexts.toml"), &Contexts::default()).unwrap_err();
        assert!(format!("{refused:#}").contains(" belongs to "), "{refused:#}");
        assert_eq!(target.read_dir().unwrap().count(), 0);
    }

    #[test]
    fn an_address_in_the_file_is_checked_like_any_other() {
        let contexts: Contexts = toml::from_str("[hosts]\nlab = \"ssh://-oProxyCommand=sh\"").unwrap();
        assert!(contexts.address("lab").is_err());
        // The file is read before every command: nobody must be stuck with it.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("contexts.toml");
        std::fs::write(&file, "hots = 1").unwrap();
        let said = crate::error::said(&read(&file).unwrap_err());
        assert!(said.contains("contexts.toml") && said.contains("--host local works meanwhile"), "{said}");
    }
}
