//! The user's `~/.ssh/config`, as far as our lines in it go.
//!
//! A new text is written beside the file and renamed over it: a crash leaves the old one. No links
//! and no locks are used, which some file systems of homes do not have.

use super::fence;
use crate::error::explained;
use anyhow::Context as _;
use nix::unistd::{User, geteuid};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The file that `ssh` reads: in the home that the user database names, whatever `HOME` says.
///
/// # Errors
/// When the database has no such user.
pub(crate) fn locate() -> anyhow::Result<PathBuf> {
    let user = User::from_uid(geteuid()).context("cannot read the user database")?;
    Ok(user.context("the user database does not know you")?.dir.join(".ssh/config"))
}

/// Puts an Include of `ours` at the top. Says whether anything was changed.
///
/// # Errors
/// When the file cannot be changed, and why; then it is as it was.
pub(crate) fn install(config: &Path, ours: &Path) -> anyhow::Result<bool> {
    // In an Include these mean something else: quotes, patterns, variables.
    let odd = ['"', '\\', '\n', '%', '$', '*', '?', '[', ']', '{', '}'];
    let Some(path) = ours.to_str().filter(|path| !path.contains(odd)) else {
        return Err(explained(
            format!("ssh cannot include a file from {}", ours.display()),
            "keep banger's files in a folder of a plainer name: XDG_DATA_HOME=/path",
        ));
    };
    change(config, |text| fence::with(text, &format!("Include \"{path}\"")).map(Some))
}

/// Takes the Include out again, and removes a file that only we made. Says whether anything was
/// changed.
///
/// # Errors
/// As [`install`].
pub(crate) fn uninstall(config: &Path) -> anyhow::Result<bool> {
    change(config, |text| {
        let Some(text) = text else { return Ok(None) };
        let rest = fence::without(text)?;
        Ok((!rest.is_empty() || !fence::is_new_file(text)).then_some(rest))
    })
}

/// Writes what `edit` makes of the text; `None` is no file.
fn change(
    config: &Path,
    edit: impl Fn(Option<&[u8]>) -> Result<Option<Vec<u8>>, fence::Damaged>,
) -> anyhow::Result<bool> {
    let what = || format!("cannot change {}", config.display());
    // A link stays a link: the file that it leads to is changed.
    let file = match std::fs::canonicalize(config) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => config.to_owned(),
        Err(error) => return Err(error).with_context(what),
    };
    let old = read(&file).with_context(what)?;
    let new = edit(old.as_deref()).map_err(|fence::Damaged| {
        let hint = "remove the lines with \"banger\" in them, and the Include between them, by hand";
        explained("only a part of banger's lines is in it", hint).context(what())
    })?;
    if new == old {
        return Ok(false);
    }
    match new {
        Some(new) => replace(&file, old.as_deref(), &new),
        None => std::fs::remove_file(&file).map_err(anyhow::Error::new),
    }
    .with_context(what)?;
    Ok(true)
}

fn read(file: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Exchanges a file's text, and nothing else of it.
fn replace(file: &Path, old: Option<&[u8]>, new: &[u8]) -> anyhow::Result<()> {
    let folder = file.parent().context("it is in no folder")?;
    if old.is_none() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut beside = tempfile::Builder::new().prefix(".config.banger-").tempfile_in(folder)?;
    beside.write_all(new)?;
    beside.as_file().sync_all()?;
    if old.is_some() {
        let (was, is) = (std::fs::metadata(file)?, beside.as_file().metadata()?);
        if was.uid() != is.uid() {
            return Err(explained("it belongs to another user", "its owner adds what `banger ssh-config` prints"));
        }
        if was.gid() != is.gid() {
            std::os::unix::fs::fchown(beside.as_file(), None, Some(was.gid())).context("cannot keep its group")?;
        }
        // Where modes cannot be set, both have the same one.
        if was.mode() != is.mode() {
            let mode = std::fs::Permissions::from_mode(was.mode() & 0o7777);
            beside.as_file().set_permissions(mode).context("cannot keep its permissions")?;
        }
    }
    // An editor may have saved it meanwhile.
    anyhow::ensure!(read(file)?.as_deref() == old, "somebody else has just changed it; try again");
    beside.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const TEXT: &[u8] = b"Host *\n  User bob\xff";

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn what_was_there_comes_back_with_its_permissions() {
        let home = tempfile::tempdir().unwrap();
        let (config, ours) = (home.path().join("config"), Path::new("/a b/ours"));
        for permissions in [0o600, 0o644, 0o400] {
            std::fs::write(&config, TEXT).unwrap();
            std::fs::set_permissions(&config, std::fs::Permissions::from_mode(permissions)).unwrap();
            assert!(install(&config, ours).unwrap() && !install(&config, ours).unwrap());
            let text = std::fs::read(&config).unwrap();
            assert!(text.ends_with(TEXT) && text.windows(19).any(|part| part == b"Include \"/a b/ours\"".as_slice()));
            assert_eq!(mode(&config), permissions);
            assert!(uninstall(&config).unwrap() && !uninstall(&config).unwrap());
            assert_eq!((std::fs::read(&config).unwrap(), mode(&config)), (TEXT.to_vec(), permissions));
            assert_eq!(names(home.path()), ["config"]);
            std::fs::remove_file(&config).unwrap();
        }
    }

    #[test]
    fn a_file_that_was_not_there_is_not_there_afterwards() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join(".ssh/config");
        assert!(!uninstall(&config).unwrap() && !home.path().join(".ssh").exists());
        install(&config, Path::new("/ours")).unwrap();
        assert_eq!((mode(&config), mode(config.parent().unwrap())), (0o600, 0o700));
        assert!(uninstall(&config).unwrap() && !config.exists());
        // But with what the user wrote into it meanwhile, it stays. An empty file of the user's
        // does too.
        install(&config, Path::new("/ours")).unwrap();
        let text = [std::fs::read(&config).unwrap().as_slice(), TEXT].concat();
        std::fs::write(&config, text).unwrap();
        uninstall(&config).unwrap();
        assert_eq!(std::fs::read(&config).unwrap(), TEXT);
        std::fs::write(&config, "").unwrap();
        assert!(install(&config, Path::new("/ours")).unwrap() && uninstall(&config).unwrap() && config.exists());
    }

    #[test]
    fn a_link_stays_a_link() {
        let home = tempfile::tempdir().unwrap();
        let (config, real) = (home.path().join("config"), home.path().join("dotfiles/ssh"));
        std::fs::create_dir(real.parent().unwrap()).unwrap();
        std::fs::write(&real, TEXT).unwrap();
        std::os::unix::fs::symlink("dotfiles/ssh", &config).unwrap();
        install(&config, Path::new("/ours")).unwrap();
        assert!(std::fs::read(&real).unwrap().ends_with(TEXT));
        uninstall(&config).unwrap();
        assert!(config.is_symlink() && std::fs::read(&real).unwrap() == TEXT);
    }

    #[test]
    fn what_cannot_be_done_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        std::fs::write(&config, TEXT).unwrap();
        for path in ["/a*", "/%d", "/${HOME}", "/a\"", "/[a]"] {
            assert!(install(&config, Path::new(path)).is_err(), "{path}");
        }
        install(&config, Path::new("/ours")).unwrap();
        let half = [b"Host a\n", std::fs::read(&config).unwrap().get(..90).unwrap()].concat();
        std::fs::write(&config, &half).unwrap();
        for error in [install(&config, Path::new("/ours")), uninstall(&config)] {
            assert!(format!("{:#}", error.unwrap_err()).contains("only a part of banger's lines"));
        }
        assert_eq!(std::fs::read(&config).unwrap(), half);
    }
}
