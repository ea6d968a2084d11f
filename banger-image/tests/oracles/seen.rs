//! A tree as the kernel shows it: all that an image can say of an entry, in words that can be
//! compared and printed.

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// By path; the root is ".".
pub(crate) type Seen = BTreeMap<String, String>;

/// A path below the root.
pub(crate) fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { format!("./{}", word(path)) }
}

/// Without spaces, which stand between the facts of an entry.
fn word(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace(' ', "\\x20")
}

pub(crate) fn file(data: &[u8]) -> String {
    let digest: String = Sha256::digest(data)[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("file size={} sha256={digest}", data.len())
}

pub(crate) fn symlink(target: &[u8]) -> String {
    format!("symlink to={}", word(target))
}

pub(crate) fn device(kind: &str, major: u32, minor: u32) -> String {
    format!("{kind} {major}:{minor}")
}

/// `names` are all names of the file in the tree; every symlink has the same mode.
pub(crate) fn entry(
    kind: &str,
    mode: Option<u32>,
    (uid, gid): (u64, u64),
    (seconds, nanos): (i64, u32),
    xattrs: &[(String, Vec<u8>)],
    names: &[String],
) -> String {
    let mut text = kind.to_owned();
    if let Some(mode) = mode {
        let _ = write!(text, " mode={mode:04o}");
    }
    let _ = write!(text, " owner={uid}:{gid} mtime={seconds}.{nanos:09}");
    for (name, value) in xattrs {
        let _ = write!(text, " {}={}", word(name.as_bytes()), word(value));
    }
    if names.len() > 1 {
        let _ = write!(text, " names={}", names.join(","));
    }
    text
}

struct Found {
    path: Vec<u8>,
    meta: Metadata,
}

/// All entries below `root`, and the root itself; without what ext4 keeps for itself.
pub(crate) fn look(root: &Path) -> io::Result<Seen> {
    let mut all = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let meta = full.symlink_metadata()?;
        if path == b"lost+found" && fs::read_dir(&full)?.next().is_none() {
            continue;
        }
        if meta.is_dir() {
            for entry in fs::read_dir(&full)? {
                let name = entry?.file_name().into_vec();
                todo.push(if path.is_empty() { name } else { [&path, b"/".as_slice(), &name].concat() });
            }
        }
        all.push(Found { path, meta });
    }
    all.sort_by(|one, other| one.path.cmp(&other.path));
    let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for found in all.iter().filter(|found| !found.meta.is_dir()) {
        names.entry(found.meta.ino()).or_default().push(shown(&found.path));
    }
    let describe = |found: &Found| {
        let names = names.get(&found.meta.ino()).filter(|_| !found.meta.is_dir()).map_or(&[][..], Vec::as_slice);
        Ok((shown(&found.path), describe(&root.join(OsStr::from_bytes(&found.path)), &found.meta, names)?))
    };
    all.iter().map(describe).collect()
}

fn describe(path: &Path, meta: &Metadata, names: &[String]) -> io::Result<String> {
    let kind = meta.file_type();
    let text = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_file() {
        file(&fs::read(path)?)
    } else if kind.is_symlink() {
        symlink(fs::read_link(path)?.as_os_str().as_bytes())
    } else if kind.is_char_device() || kind.is_block_device() {
        let word = if kind.is_char_device() { "char" } else { "block" };
        device(word, major(meta.rdev()), minor(meta.rdev()))
    } else {
        "fifo".to_owned()
    };
    let mode = (!kind.is_symlink()).then_some(meta.mode() & 0o7777);
    let mtime = (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap());
    let owner = (u64::from(meta.uid()), u64::from(meta.gid()));
    Ok(entry(&text, mode, owner, mtime, &xattrs(path)?, names))
}

fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let (mut list, mut value) = (vec![0; 65_536], vec![0; 65_536]);
    let length = llistxattr(path, list.as_mut_slice())?;
    let mut all = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = lgetxattr(path, name, value.as_mut_slice())?;
        all.push((String::from_utf8_lossy(name).into_owned(), value[..length].to_vec()));
    }
    all.sort();
    Ok(all)
}

/// Where two trees differ, at most twenty entries; but for `declared`.
pub(crate) fn differences(ours: &Seen, theirs: &Seen, declared: &dyn Fn(&str, &str) -> bool) -> Vec<String> {
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let missing = "missing".to_owned();
    let mut lines = Vec::new();
    for name in names {
        let (one, other) = (ours.get(name).unwrap_or(&missing), theirs.get(name).unwrap_or(&missing));
        if one != other && !declared(one, other) && lines.len() < 20 {
            lines.push(format!("{name}\n    ours:   {one}\n    theirs: {other}"));
        }
    }
    lines
}
