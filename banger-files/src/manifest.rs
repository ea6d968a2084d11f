//! What a prepared folder looked like when it was prepared, and what is different now.
//!
//! As git's index does, a file counts as unchanged when everything that stat(2) says is as before;
//! the time of its last change of status cannot be set, so a file that was changed never passes as
//! unchanged. The other way round is harmless: who asked compares contents.

use crate::Error;
use crate::pack::as_path;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// In [`crate::RECORDS`].
pub(crate) const MANIFEST: &str = "manifest";
/// In [`crate::RECORDS`]: what the repository's branches were.
pub(crate) const REFS: &str = "refs";
/// Folders below folders. Deeper ones are not looked into.
const DEPTH: usize = 128;

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It may have other contents or another mode.
    Modified(Vec<u8>),
    /// It was not there.
    Added(Vec<u8>),
    /// It is not there any more.
    Deleted(Vec<u8>),
    /// A folder with a repository of its own, which was not there. It is not looked into.
    Repository(Vec<u8>),
}

/// By path, relative to the folder.
type Files = BTreeMap<Vec<u8>, String>;

/// Writes down what is in a folder now.
pub(crate) fn record(folder: &Path) -> Result<(), Error> {
    let mut files = Files::new();
    walk(folder, &BTreeSet::new(), &mut |path, stat| {
        if let Some(stat) = stat {
            files.insert(path, stat);
        }
    })?;
    let records = folder.join(crate::RECORDS);
    fs::create_dir_all(&records).map_err(Error::path(&records))?;
    let mut text = Vec::new();
    for (path, stat) in files {
        text.extend_from_slice(stat.as_bytes());
        text.push(b' ');
        text.extend_from_slice(&path);
        text.push(0);
    }
    for (name, text) in [(MANIFEST, text), (REFS, refs(folder))] {
        let path = records.join(name);
        fs::write(&path, text).map_err(Error::path(&path))?;
    }
    Ok(())
}

/// What was written down; `None` when nothing was.
pub(crate) fn recorded(folder: &Path) -> Option<Files> {
    let text = fs::read(folder.join(crate::RECORDS).join(MANIFEST)).ok()?;
    let mut files = Files::new();
    for line in text.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let at = line.iter().position(|byte| *byte == b' ')?;
        let (stat, path) = line.split_at(at);
        files.insert(path.get(1..)?.to_vec(), String::from_utf8(stat.to_vec()).ok()?);
    }
    Some(files)
}

/// What is different from what was written down.
pub(crate) fn changes(folder: &Path) -> Result<Vec<Change>, Error> {
    let mut before =
        recorded(folder).ok_or_else(|| Error::Usage(format!("{} is no prepared workspace", folder.display())))?;
    let mut changes = Vec::new();
    let prepared = before.keys().flat_map(|path| folders_of(path)).map(<[u8]>::to_vec).collect();
    walk(folder, &prepared, &mut |path, stat| match (before.remove(&path), stat) {
        (Some(before), Some(now)) if before == now => {}
        (Some(_), Some(_)) => changes.push(Change::Modified(path)),
        (None, Some(_)) => changes.push(Change::Added(path)),
        (_, None) => changes.push(Change::Repository(path)),
    })?;
    changes.extend(before.into_keys().map(Change::Deleted));
    changes.sort();
    Ok(changes)
}

/// Writes changes so that [`parse_changes`] reads them.
pub(crate) fn write_changes(changes: &[Change], to: &mut dyn Write) -> Result<(), Error> {
    for change in changes {
        let (letter, path) = match change {
            Change::Modified(path) => (b"M", path),
            Change::Added(path) => (b"A", path),
            Change::Deleted(path) => (b"D", path),
            Change::Repository(path) => (b"R", path),
        };
        to.write_all(&[letter.as_slice(), path, b"\0"].concat()).map_err(Error::Stream)?;
    }
    Ok(())
}

/// What a guest says about its changes. What it does not say well is `None`.
#[must_use]
pub fn parse_changes(text: &[u8]) -> Option<Vec<Change>> {
    let text = if text.is_empty() { return Some(Vec::new()) } else { text.strip_suffix(b"\0")? };
    let change = |line: &[u8]| {
        let path = line.get(1..).filter(|path| !path.is_empty())?.to_vec();
        Some(match line.first()? {
            b'M' => Change::Modified(path),
            b'A' => Change::Added(path),
            b'D' => Change::Deleted(path),
            b'R' => Change::Repository(path),
            _ => return None,
        })
    };
    text.split(|byte| *byte == 0).map(change).collect()
}

/// The paths of the prepared tree of which no file was sent: what is there of them was checked out
/// from that tree.
pub(crate) fn checked_out(folder: &Path) -> BTreeSet<Vec<u8>> {
    let text = fs::read(folder.join(crate::RECORDS).join(crate::UNSENT)).unwrap_or_default();
    text.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect()
}

/// What is at a path, as a word: another word after a file of a workspace was changed or removed
/// there, or a branch was. Files that were added do not count, because a replacement takes them
/// over.
pub(crate) fn state(folder: &Path) -> Result<String, Error> {
    let Ok(manifest) = fs::read(folder.join(crate::RECORDS).join(MANIFEST)) else {
        let is_free = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => folder.symlink_metadata().is_err(),
        };
        return Ok(if is_free { crate::FREE } else { "other" }.to_owned());
    };
    // Only this program compares two of these words, so its hash need not be one that others know.
    let mut hasher = DefaultHasher::new();
    manifest.hash(&mut hasher);
    by_name(&refs(folder)).hash(&mut hasher);
    let checked_out = checked_out(folder);
    for change in changes(folder)? {
        let path = match &change {
            Change::Modified(path) | Change::Deleted(path) => path,
            Change::Added(path) if checked_out.contains(path) => path,
            Change::Added(_) | Change::Repository(_) => continue,
        };
        let now = folder.join(as_path(path)).symlink_metadata();
        (path, now.ok().map(|found| stat(&found, found.nlink() == 1))).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// The files that say what the branches, tags, notes, the stash and HEAD are, those of linked
/// worktrees among them. What was fetched from elsewhere is there again.
pub(crate) fn refs(folder: &Path) -> Vec<u8> {
    let git = folder.join(".git");
    let mut files = vec![git.join("HEAD"), git.join("packed-refs")];
    let (mut folders, fetched) = (vec![git.join("refs")], git.join("refs/remotes"));
    for worktree in fs::read_dir(git.join("worktrees")).into_iter().flatten().flatten() {
        files.push(worktree.path().join("HEAD"));
        folders.push(worktree.path().join("refs"));
    }
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(_) if entry.path() == fetched => {}
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => files.push(entry.path()),
            }
        }
    }
    files.sort();
    let mut text = Vec::new();
    for file in files {
        text.extend_from_slice(file.strip_prefix(&git).unwrap_or(&file).as_os_str().as_bytes());
        text.push(b' ');
        text.extend(fs::read(&file).unwrap_or_default());
        text.push(0);
    }
    text
}

/// Whether two texts of [`refs`] name the same objects: git moves references from files of their
/// own into `packed-refs` (`git gc`, `git pack-refs`).
pub(crate) fn same_refs(before: &[u8], now: &[u8]) -> bool {
    by_name(before) == by_name(now)
}

/// What is before the first space, and the rest.
fn halves(text: &[u8]) -> Option<(&[u8], &[u8])> {
    text.iter().position(|byte| *byte == b' ').map(|at| text.split_at(at))
}

/// Each reference with its object, or with the reference that it stands for.
fn by_name(refs: &[u8]) -> BTreeMap<&[u8], &[u8]> {
    let mut named = BTreeMap::new();
    // `packed-refs` comes before the files of their own, which count where both have a reference
    // (gitrepository-layout(5)).
    for file in refs.split(|byte| *byte == 0) {
        let Some((name, text)) = halves(file) else { continue };
        if name != b"packed-refs" {
            named.insert(name, text.trim_ascii());
            continue;
        }
        // `#` begins a comment, `^` the object behind a tag.
        let lines = text.trim_ascii().split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"#"));
        for (object, name) in lines.filter(|line| !line.starts_with(b"^")).filter_map(halves) {
            let name = name.trim_ascii();
            if !name.starts_with(b"refs/remotes/") {
                named.insert(name, object);
            }
        }
    }
    named
}

/// What lies in the folder `name` of a workspace, with its path there, but the workspace's own
/// `.git`.
pub(crate) fn entries(workspace: &Path, name: &[u8]) -> Result<Vec<(Vec<u8>, fs::DirEntry)>, Error> {
    let at = workspace.join(as_path(name));
    let mut entries = Vec::new();
    for entry in fs::read_dir(&at).map_err(Error::path(&at))? {
        let entry = entry.map_err(Error::path(&at))?;
        let file = entry.file_name().into_vec();
        if !name.is_empty() {
            entries.push(([name, b"/", &file].concat(), entry));
        } else if file != b".git" {
            entries.push((file, entry));
        }
    }
    Ok(entries)
}

/// Whether a folder is none any more.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The folders in which a path lies, but the workspace itself.
fn folders_of(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(|(at, _)| path.get(..at))
}

/// Calls `each` with every file and link, and without a stat for a folder with a repository of its
/// own. A `prepared` folder is a part of the workspace whatever was made of it since: git, too,
/// looks into a folder of which its index has files, though it has a `.git`.
fn walk(
    folder: &Path,
    prepared: &BTreeSet<Vec<u8>>,
    each: &mut dyn FnMut(Vec<u8>, Option<String>),
) -> Result<(), Error> {
    let mut folders = vec![(Vec::new(), 0)];
    while let Some((name, depth)) = folders.pop() {
        let listed = match entries(folder, &name) {
            Err(Error::Path { source, .. }) if !name.is_empty() && has_gone(&source) => continue,
            listed => listed?,
        };
        for (path, entry) in listed {
            // What goes away meanwhile is as if it had never been seen.
            let Ok(found) = entry.metadata() else { continue };
            if path.ends_with(b"/.git") {
                // That of a prepared folder. It is no name of a file in a repository.
            } else if !found.is_dir() {
                each(path, Some(stat(&found, true)));
            } else if !prepared.contains(&path) && entry.path().join(".git").symlink_metadata().is_ok() {
                each(path, None);
            } else if depth < DEPTH {
                folders.push((path, depth + 1));
            }
        }
    }
    Ok(())
}

/// `changed`: with the time of its last change of status. Whoever makes or removes another name of
/// the same file changes that too, and a replacement does when it takes over such a name.
fn stat(found: &fs::Metadata, changed: bool) -> String {
    let (seconds, nanoseconds) = if changed { (found.ctime(), found.ctime_nsec()) } else { (0, 0) };
    format!(
        "{:o},{},{}.{},{seconds}.{nanoseconds},{}",
        found.mode(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        found.ino()
    )
}
