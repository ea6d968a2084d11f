//! A folder for a workspace: what is there.

use crate::Error;
use crate::manifest::{self, recorded, refs, same_refs};
use serde::{Deserialize, Serialize};
use std::fs;
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
    /// Who looked: the owner of a workspace that is prepared there, as `replace` takes it. Agents
    /// of earlier releases do not say it.
    #[serde(default)]
    pub owner: Option<String>,
    /// The path without links, as far as it is there. Agents of earlier releases do not say it.
    #[serde(default)]
    pub resolved: Option<String>,
    /// The path itself is a link.
    #[serde(default)]
    pub link: bool,
    /// This agent knows `state`, and `replace` with one.
    #[serde(default)]
    pub states: bool,
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

/// The path without links: of what is not there yet, the names below what is.
fn resolve(path: &Path) -> Option<PathBuf> {
    match path.canonicalize() {
        Ok(resolved) => Some(resolved),
        Err(_) => {
            let around = resolve(path.parent()?)?;
            // Without a name it ends in `..`.
            Some(
                path.file_name()
                    .map_or_else(|| around.parent().unwrap_or(&around).to_owned(), |name| around.join(name)),
            )
        }
    }
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
    let refs_changed = prepared && !before.is_ok_and(|before| same_refs(&before, &refs(path)));
    let owner = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let resolved = resolve(path).and_then(|path| path.to_str().map(str::to_owned));
    let link = path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    Ok(Look { path: text, kind, prepared, refs_changed, owner: Some(owner), resolved, link, states: true })
}
