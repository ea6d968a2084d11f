//! What a guest lists as changed, which may be anything, and what the user is told of it.

use super::git::Git;
use super::source::entries;
use super::theirs::Index;
use anyhow::Context as _;
use banger_files::{Change, parse_changes};
use std::collections::BTreeSet;

/// Things that the user is told one by one; of more, how many they are.
const MAX_NOTES: usize = 50;
/// A path in a tree, bytes: PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// What a guest lists.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) modified: BTreeSet<Vec<u8>>,
    pub(super) added: BTreeSet<Vec<u8>>,
    pub(super) deleted: BTreeSet<Vec<u8>>,
    /// Folders with a repository of their own, which are not looked into.
    pub(super) repositories: BTreeSet<Vec<u8>>,
    pub(super) notes: Notes,
}

impl Listed {
    /// Takes back what was not removed: the guest's git says that it was not there before.
    pub(super) fn forgive(&mut self, index: Option<&Index>, known: &Known, unsent: bool) {
        if unsent {
            let removed = |path: &&Vec<u8>| match index {
                Some(index) if index.tracked.contains(*path) => !index.absent.contains(*path),
                Some(_) => known.committed.contains(*path),
                None => false,
            };
            let missing = known.all.difference(&self.added).filter(|path| !is_within(path, &self.repositories));
            self.deleted = missing.filter(removed).cloned().collect();
        } else if let Some(index) = index {
            self.deleted.retain(|path| !index.absent.contains(path));
        }
    }
}

/// Whether a path lies in one of the folders.
pub(super) fn is_within(path: &[u8], folders: &BTreeSet<Vec<u8>>) -> bool {
    let mut around = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(|(at, _)| path.get(..at));
    around.any(|folder| folders.contains(folder))
}

/// Paths that were prepared.
pub(super) struct Known {
    pub(super) all: BTreeSet<Vec<u8>>,
    /// Those of them that are in the commit.
    pub(super) committed: BTreeSet<Vec<u8>>,
}

/// What the user is told: a guest may cause any number of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    told: Vec<String>,
    more: usize,
}

impl Notes {
    pub(crate) fn push(&mut self, text: impl FnOnce() -> String) {
        if self.told.len() < MAX_NOTES {
            self.told.push(text());
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn into_texts(self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("and {} more like these", self.more));
        self.told.into_iter().chain(more).collect()
    }
}

/// Refuses a guest's list, its names ended by zero bytes, that has more than `most` of them: a
/// short name becomes much more in memory.
pub(super) fn bounded(answer: &[u8], most: u64) -> anyhow::Result<()> {
    let count = answer.iter().filter(|byte| **byte == 0).count() as u64;
    anyhow::ensure!(count <= most, "the guest's list has more than {most} files");
    Ok(())
}

/// A guest's list of changes.
pub(super) fn read(answer: &[u8], most: u64) -> anyhow::Result<Vec<Change>> {
    bounded(answer, most)?;
    parse_changes(answer).context("the guest's list of changes is not understood")
}

/// Drops what cannot be in a tree: the guest may say anything.
pub(super) fn sort(changes: Vec<Change>) -> Listed {
    let mut listed = Listed::default();
    let odd = |path: &[u8], why: &str, notes: &mut Notes| {
        notes.push(|| format!("{}: left out, because {why}", String::from_utf8_lossy(path)));
    };
    for change in changes {
        let (Change::Modified(path) | Change::Added(path) | Change::Deleted(path) | Change::Repository(path)) = &change;
        let part = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.eq_ignore_ascii_case(b".git");
        if path.len() > MAX_PATH || path.split(|byte| *byte == b'/').any(part) {
            odd(path, "it is no name of a file in a repository", &mut listed.notes);
            continue;
        }
        match change {
            Change::Modified(path) => drop(listed.modified.insert(path)),
            Change::Added(path) => drop(listed.added.insert(path)),
            Change::Deleted(path) => drop(listed.deleted.insert(path)),
            Change::Repository(path) => {
                odd(&path, "it is a repository of its own", &mut listed.notes);
                listed.repositories.insert(path);
            }
        }
    }
    listed
}

/// Files below a submodule are no part of the tree. Gives whether some that were prepared are
/// others now.
pub(super) fn leave_submodules(listed: &mut Listed, git: &Git, tree: &str) -> anyhow::Result<bool> {
    let prepared = listed.modified.len() + listed.deleted.len();
    let lines = git.bytes(&["ls-tree", "-r", "-z", tree])?;
    for line in entries(&lines).filter(|line| line.starts_with(b"160000")) {
        let path = line.iter().position(|byte| *byte == b'\t').and_then(|tab| line.get(tab + 1..)).unwrap_or_default();
        let inside = [path, b"/"].concat();
        for list in [&mut listed.modified, &mut listed.added, &mut listed.deleted] {
            let before = list.len();
            list.retain(|file| !file.starts_with(&inside));
            if list.len() < before {
                let path = String::from_utf8_lossy(path);
                listed.notes.push(|| format!("{path} is a submodule: what was changed in it is left out"));
            }
        }
    }
    Ok(listed.modified.len() + listed.deleted.len() < prepared)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_list_that_is_too_long_is_refused_and_what_is_told_of_one_is_short() {
        let list = b"M.\0".repeat(1000);
        assert!(read(&list, 999).unwrap_err().to_string().contains("more than 999 files"));
        let texts = sort(read(&list, 1000).unwrap()).notes.into_texts();
        assert_eq!(texts.len(), MAX_NOTES + 1);
        assert_eq!(texts.last().unwrap(), "and 950 more like these");
    }
}
