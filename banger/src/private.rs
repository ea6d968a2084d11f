//! Folders in which nobody but the user has a hand: what is kept there is trusted later.
//!
//! A path is walked one folder at a time, by handle. Each folder on the way belongs to the user or
//! to root and is closed to the writing of others, so a link in it is theirs too. The case that
//! matters is root with the `HOME` of somebody else (`sudo -E`): a link in that home would lead
//! root's writing to a place of the other's choice.

use crate::error::explained;
use anyhow::Context as _;
use nix::unistd::{Uid, User, geteuid};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, readlinkat, unlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// For the user alone.
const PRIVATE: u32 = 0o700;

/// What to do when something is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it, for the user alone.
    Make,
    /// Give up.
    Refuse,
}

/// Where the user keeps data of programs (XDG Base Directory Specification: a relative path is to
/// be ignored).
///
/// # Errors
/// When the user has no home folder.
pub(crate) fn data_home() -> anyhow::Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").or_else(|| User::from_uid(geteuid()).ok().flatten().map(|user| user.dir));
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share")));
    data.context("you have no home folder to keep anything in (HOME is not set)")
}

/// The folder `own`, a relative path below `base`, for the user `me` alone. Links on the way to
/// `base` are the user's or root's; in `own`, whose folders are all made here, there are none.
///
/// # Errors
/// With the folder that is somebody else's, or is no folder, and what to do about it.
pub(crate) fn open(base: &Path, own: &Path, me: Uid, missing: Missing) -> anyhow::Result<OwnedFd> {
    let (mut folder, mut at) = walk(base, me, missing)?;
    for part in own {
        at.push(part);
        let what = || format!("cannot use the folder {}", at.display());
        // Nobody else can exchange it meanwhile: the folder around it is the user's.
        folder = match enter(&folder, part, OFlags::RDONLY | OFlags::DIRECTORY, missing) {
            Ok(folder) => folder,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let hint = format!("look where it leads, then remove it: rm {}", at.display());
                return Err(explained("it is a link or a file, and must be a folder", hint)).with_context(what);
            }
            Err(error) => return Err(error).with_context(what),
        };
        let stat = fstat(&folder).with_context(what)?;
        if stat.st_uid != me.as_raw() {
            return Err(foreign(&at, &stat, me));
        }
        if stat.st_mode & 0o7777 != PRIVATE
            && let Err(error) = fchmod(&folder, Mode::from_raw_mode(PRIVATE))
            // A file system may have one mode for all (vfat, some shares). Then others may look,
            // and not write.
            && stat.st_mode & 0o022 != 0
        {
            return Err(error).with_context(what);
        }
    }
    Ok(folder)
}

/// Removes the file `name` of the folder, when there is one.
pub(crate) fn remove(folder: &OwnedFd, name: &str) -> std::io::Result<()> {
    Ok(unlinkat(folder, name, AtFlags::empty())?)
}

fn walk(path: &Path, me: Uid, missing: Missing) -> anyhow::Result<(OwnedFd, PathBuf)> {
    let what = |at: &Path| format!("cannot use the folder {}", at.display());
    let root =
        || openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("cannot open the root folder");
    let (mut here, mut at, mut links) = (root()?, PathBuf::from("/"), 0);
    let mut rest = Vec::new();
    push(&mut rest, path);
    while let Some(name) = rest.pop() {
        let around = trusted(&here, &at, me)?;
        let inside = at.join(&name);
        let next = enter(&here, &name, OFlags::PATH, missing).with_context(|| what(&inside))?;
        let stat = fstat(&next).with_context(|| what(&inside))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                here = next;
                if name == ".." {
                    at.pop();
                } else {
                    at = inside;
                }
            }
            FileType::Symlink => {
                links += 1;
                // Where everybody may write, everybody may make links, in `/tmp` too.
                let theirs = stat.st_uid != 0 && stat.st_uid != me.as_raw();
                if theirs || (around.st_mode & 0o002 != 0 && stat.st_uid != me.as_raw()) {
                    return Err(foreign(&inside, &stat, me));
                }
                anyhow::ensure!(links <= MAX_LINKS, "too many links on the way to {}", path.display());
                let target = readlinkat(&here, &name, Vec::new()).with_context(|| what(&inside))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    (here, at) = (root()?, PathBuf::from("/"));
                }
                push(&mut rest, &target);
            }
            _ => return Err(Errno::NOTDIR).with_context(|| what(&inside)),
        }
    }
    trusted(&here, &at, me)?;
    Ok((here, at))
}

/// The parts of a path, the first one on top.
fn push(rest: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    rest.extend(names);
}

/// Opens an entry of the folder itself, not what a link leads to.
fn enter(folder: &OwnedFd, name: &OsStr, how: OFlags, missing: Missing) -> Result<OwnedFd, Errno> {
    let look = || openat(folder, name, how | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    match look() {
        Err(Errno::NOENT) if missing == Missing::Make => {
            match mkdirat(folder, name, Mode::from_raw_mode(PRIVATE)) {
                // Two commands at a time.
                Ok(()) | Err(Errno::EXIST) => look(),
                Err(error) => Err(error),
            }
        }
        other => other,
    }
}

/// A folder whose entries only the user and root can change.
fn trusted(folder: &OwnedFd, at: &Path, me: Uid) -> anyhow::Result<Stat> {
    let stat = fstat(folder).with_context(|| format!("cannot look at {}", at.display()))?;
    if stat.st_uid != 0 && stat.st_uid != me.as_raw() {
        return Err(foreign(at, &stat, me));
    }
    // A user may share a folder with a group of theirs; root's are not a group's to change.
    let own = !me.is_root() && stat.st_uid == me.as_raw();
    let open = stat.st_mode & if own { 0o002 } else { 0o022 };
    // In a sticky folder nobody moves what is another's (inode(7)).
    if open != 0 && stat.st_mode & 0o1000 == 0 {
        let hint = format!("close it: chmod go-w {}; or {}", at.display(), elsewhere(me));
        return Err(explained(
            format!("others may write in {}, and what is kept below it is trusted later", at.display()),
            hint,
        ));
    }
    Ok(stat)
}

fn foreign(at: &Path, stat: &Stat, me: Uid) -> anyhow::Error {
    let name = |uid: Uid| User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let (owner, me_name) = (name(Uid::from_raw(stat.st_uid)), name(me));
    explained(format!("{} belongs to {owner}, and you are {me_name}", at.display()), elsewhere(me))
}

fn elsewhere(me: Uid) -> String {
    if me.is_root() {
        "run it as yourself, or with root's own home: sudo -H banger ...".to_owned()
    } else {
        "name folders of your own: XDG_DATA_HOME=/path XDG_CACHE_HOME=/path".to_owned()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::fs::{create_dir, metadata, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn mode(path: &Path) -> u32 {
        metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_missing_is_made_for_the_user_alone() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join(".local/share");
        assert!(open(&base, Path::new("banger/ssh"), geteuid(), Missing::Refuse).is_err());
        assert!(!home.path().join(".local").exists());
        open(&base, Path::new("banger/ssh"), geteuid(), Missing::Make).unwrap();
        chmod(&base.join("banger/ssh"), 0o755);
        open(&base, Path::new("banger/ssh"), geteuid(), Missing::Refuse).unwrap();
        assert_eq!((mode(&base), mode(&base.join("banger/ssh"))), (0o700, 0o700));
    }

    #[test]
    fn a_link_in_the_place_of_a_folder_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("else");
        create_dir(&target).unwrap();
        chmod(&target, 0o755);
        create_dir(home.path().join("banger")).unwrap();
        symlink(&target, home.path().join("banger/ssh")).unwrap();
        for own in ["banger/ssh", "banger/ssh/known_hosts.d"] {
            let error = open(home.path(), Path::new(own), geteuid(), Missing::Make).unwrap_err();
            assert!(format!("{error:#}").contains("banger/ssh: it is a link or a file"), "{error:#}");
        }
        assert_eq!((mode(&target), target.read_dir().unwrap().count()), (0o755, 0));
    }

    #[test]
    fn the_users_own_links_lead_to_the_users_own_folders() {
        let home = tempfile::tempdir().unwrap();
        create_dir(home.path().join("big")).unwrap();
        create_dir(home.path().join("sub")).unwrap();
        symlink("sub/../big", home.path().join("share")).unwrap();
        open(&home.path().join("share"), Path::new("banger"), geteuid(), Missing::Make).unwrap();
        assert!(home.path().join("big/banger").is_dir());
        symlink("loop", home.path().join("loop")).unwrap();
        let error = open(&home.path().join("loop"), Path::new("banger"), geteuid(), Missing::Refuse).unwrap_err();
        assert!(error.to_string().contains("too many links"), "{error}");
    }

    /// Root with a kept `HOME`, or any user with the home of another one.
    #[test]
    fn nothing_is_made_or_changed_below_somebody_elses_folder() {
        let outside = tempfile::tempdir().unwrap();
        let home = outside.path().join("alice");
        create_dir(&home).unwrap();
        create_dir(home.join("target")).unwrap();
        chmod(&home.join("target"), 0o755);
        symlink("target", home.join("share")).unwrap();
        // Root gives the folder away; anybody else looks at it as another user.
        let me = if geteuid().is_root() {
            for path in [home.clone(), home.join("target")] {
                chown(path, Some(65_534), None).unwrap();
            }
            geteuid()
        } else {
            Uid::from_raw(geteuid().as_raw() + 1)
        };
        for base in [home.clone(), home.join("share"), home.join(".local/share")] {
            let error = open(&base, Path::new("banger/ssh"), me, Missing::Make).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(" belongs to "), "{text}");
        }
        assert_eq!((mode(&home.join("target")), home.join("target").read_dir().unwrap().count()), (0o755, 0));
        assert!(!home.join("banger").exists() && !home.join(".local").exists());
    }

    #[test]
    fn a_folder_in_which_others_write_is_not_trusted() {
        let outside = tempfile::tempdir().unwrap();
        let shared = outside.path().join("shared");
        create_dir(&shared).unwrap();
        create_dir(shared.join("mine")).unwrap();
        chmod(&shared, 0o777);
        let error = open(&shared.join("mine"), Path::new("banger"), geteuid(), Missing::Make).unwrap_err();
        assert!(error.to_string().contains("others may write in"), "{error}");
        chmod(&shared, 0o1777);
        open(&shared.join("mine"), Path::new("banger"), geteuid(), Missing::Make).unwrap();
    }
}
