//! A folder for a workspace: what is there, and how a new one takes its place.

use crate::manifest::{self, entries, recorded, refs};
use crate::pack::as_path;
use crate::{Error, Limits, Unpacked, open_folder, unpack};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing.
    None,
    /// A folder without entries.
    Empty,
    /// A folder with entries.
    Folder,
    /// Something else.
    Other,
}

/// What was found at a path of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The path, absolute.
    pub path: String,
    /// What it is; links are followed.
    pub kind: Kind,
    /// It is a prepared workspace.
    pub prepared: bool,
    /// And its branches or its HEAD are not as they were then.
    pub refs_changed: bool,
}

/// The path that a user means: `~` is the home, and a relative path begins where the command was
/// started.
pub(crate) fn absolute(path: &Path, home: &Path) -> Result<PathBuf, Error> {
    if let Ok(below) = path.strip_prefix("~") {
        return Ok(home.join(below));
    }
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Ok(std::env::current_dir().map_err(Error::path(path))?.join(path))
}

pub(crate) fn look(path: &Path) -> Result<Look, Error> {
    let kind = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A link to nothing is something.
            if path.symlink_metadata().is_ok() { Kind::Other } else { Kind::None }
        }
        Err(error) => return Err(Error::path(path)(error)),
        Ok(found) if found.is_dir() => {
            let mut entries = fs::read_dir(path).map_err(Error::path(path))?;
            if entries.next().is_none() { Kind::Empty } else { Kind::Folder }
        }
        Ok(_) => Kind::Other,
    };
    let records = path.join(crate::RECORDS);
    let before = fs::read(records.join(manifest::REFS));
    let prepared = kind == Kind::Folder && before.is_ok() && recorded(path).is_some();
    let text = path.to_str().ok_or_else(|| Error::Name(path.to_string_lossy().into_owned()))?.to_owned();
    let refs_changed = prepared && before.ok() != Some(refs(path));
    Ok(Look { path: text, kind, prepared, refs_changed })
}

/// Unpacks a workspace beside `folder` and then puts it in its place, in one step. What the folder
/// held beside the workspace before, such as what was built there, is taken over.
pub(crate) fn replace(folder: &Path, from: impl Read) -> Result<Unpacked, Error> {
    let name = folder.file_name().ok_or_else(|| Error::Name(folder.display().to_string()))?;
    let around = folder.parent().unwrap_or(Path::new("/"));
    let staged = around.join(as_path(&[b".", name.as_bytes(), b".banger-new"].concat()));
    fs::create_dir_all(around).map_err(Error::path(around))?;
    // Left by one that was interrupted.
    remove(&staged)?;
    fs::create_dir(&staged).map_err(Error::path(&staged))?;
    let unpacked = unpack(from, &open_folder(&staged)?, Limits::NONE).and_then(|unpacked| {
        // What is taken over was not prepared: it stays something that the guest has added.
        manifest::record(&staged)?;
        take_over(folder, &staged)?;
        Ok(unpacked)
    });
    let exchange = if folder.symlink_metadata().is_ok() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    let placed = unpacked.and_then(|unpacked| {
        renameat_with(CWD, &staged, CWD, folder, exchange).map_err(Error::errno(folder))?;
        Ok(unpacked)
    });
    // The new one, when it did not get its place; else the old one.
    drop(remove(&staged));
    placed
}

/// Whatever is there.
fn remove(path: &Path) -> Result<(), Error> {
    let gone = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    gone.map_err(Error::path(path))
}

/// Copies what the old folder has and neither its manifest nor the new one: a hard link to each
/// file, so that the old folder stays whole until it is replaced.
fn take_over(old: &Path, new: &Path) -> Result<(), Error> {
    let Ok(found) = old.symlink_metadata() else { return Ok(()) };
    if !found.is_dir() {
        return Ok(());
    }
    let known: BTreeSet<Vec<u8>> = recorded(old).unwrap_or_default().into_keys().collect();
    let mut folders = vec![Vec::new()];
    while let Some(name) = folders.pop() {
        for (path, entry) in entries(old, &name)? {
            let to = new.join(as_path(&path));
            let is_folder = entry.file_type().map_err(Error::path(entry.path()))?.is_dir();
            let taken = to.symlink_metadata();
            if is_folder && taken.as_ref().map_or(true, fs::Metadata::is_dir) {
                folders.push(path);
            } else if taken.is_err() && !known.contains(&path) {
                if let Some(around) = to.parent() {
                    // A file may stand in the way now: then what was below goes.
                    if fs::create_dir_all(around).is_err() {
                        continue;
                    }
                }
                fs::hard_link(entry.path(), &to).map_err(Error::path(&to))?;
            }
        }
    }
    Ok(())
}
