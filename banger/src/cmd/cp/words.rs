//! What the words of `vm cp` mean: which side is where, and what the copy is called.

use crate::error::explained;
use anyhow::Context as _;
use banger_files::{Kind, Look};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Standard input or output, as a tar stream.
    Stream,
    Host(PathBuf),
    Vm(String, String),
}

/// `VM:PATH`, `-`, or a path of the host; `./a:b` is one, too.
pub(super) fn parse(word: &OsStr) -> anyhow::Result<End> {
    let bytes = word.as_bytes();
    let (vm, path) = match bytes.iter().position(|byte| *byte == b':') {
        _ if bytes == b"-" => return Ok(End::Stream),
        Some(at) if !bytes.starts_with(b":") && !bytes.starts_with(b"/") && !bytes.starts_with(b".") => {
            (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default())
        }
        _ => return Ok(End::Host(word.into())),
    };
    if vm.starts_with(b"~") {
        return Ok(End::Host(word.into()));
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).context("a path in a VM must be UTF-8");
    let path = text(path)?;
    Ok(End::Vm(text(vm)?, if path.is_empty() { ".".to_owned() } else { path }))
}

/// Whether a guest's whole path is below `/root`, where its work disk is. Links are for the guest
/// to follow.
pub(super) fn is_on_the_work_disk(path: &str) -> bool {
    let mut names: Vec<&str> = Vec::new();
    for part in Path::new(path).components() {
        match part {
            std::path::Component::ParentDir => drop(names.pop()),
            std::path::Component::Normal(name) => names.push(name.to_str().unwrap_or_default()),
            _ => {}
        }
    }
    names.first() == Some(&"root")
}

/// The last part of a path; `contents` for one without a name, such as `/`.
pub(super) fn base_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(|| ".".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The folder into which is unpacked, and the name of the copy there; `.` for the contents of a
/// folder alone. `whole` is the target `to`, absolute.
pub(super) fn place(kind: Kind, whole: &Path, to: &OsStr, source: &OsStr) -> anyhow::Result<(PathBuf, OsString)> {
    if source.as_bytes().ends_with(b"/.") {
        return Ok((whole.to_owned(), ".".into()));
    }
    if matches!(kind, Kind::Folder | Kind::Empty) || to.as_bytes().ends_with(b"/") {
        return Ok((whole.to_owned(), Path::new(source).file_name().unwrap_or(OsStr::new(".")).to_owned()));
    }
    let (folder, name) = (whole.parent().context("it has no name")?, whole.file_name().context("it has no name")?);
    Ok((folder.to_owned(), name.to_owned()))
}

/// Refuses a path without a name, such as `/` or `..`: only `PATH/.` leaves it to the guest what
/// the names of the copies are.
pub(super) fn with_a_name(path: &str) -> anyhow::Result<()> {
    if (base_name(path) != "." && path != "~") || path.ends_with("/.") {
        return Ok(());
    }
    let hint =
        format!("for what is in the folder, under the names that the guest says: VM:{}/.", path.trim_end_matches('/'));
    Err(explained(format!("{path} has no name that the copy could have"), hint))
}

/// Refuses a copy of a folder that would be in that folder: it would copy what it copies.
pub(super) fn not_into_itself(source: &Look, look: &Look, folder: &str, name: &str) -> anyhow::Result<()> {
    let is_folder = matches!(source.kind, Kind::Folder | Kind::Empty) && !source.link;
    let (Some(source), Some(target)) = (&source.resolved, &look.resolved) else { return Ok(()) };
    let below = name != "." && Path::new(folder) == Path::new(&look.path);
    let copy = if below { Path::new(target).join(name) } else { PathBuf::from(target) };
    anyhow::ensure!(!is_folder || !copy.starts_with(source), "the copy would be in the folder that is copied");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn of_a_vm_that_does_not_run_only_what_is_below_root_is_there() {
        for path in ["/root", "/root/", "/root/x/../y", "/root/./work", "/etc/../root/x"] {
            assert!(is_on_the_work_disk(path), "{path}");
        }
        for path in ["/", "/etc/passwd", "/root/../etc", "/rooted", "/app/root"] {
            assert!(!is_on_the_work_disk(path), "{path}");
        }
    }

    #[test]
    fn a_word_with_a_colon_is_in_a_vm() {
        let parse = |word: &str| parse(OsStr::new(word)).unwrap();
        assert_eq!(parse("demo:/etc"), End::Vm("demo".into(), "/etc".into()));
        assert_eq!(parse("alice/demo:x:y"), End::Vm("alice/demo".into(), "x:y".into()));
        assert_eq!(parse("demo:"), End::Vm("demo".into(), ".".into()));
        assert_eq!(parse("-"), End::Stream);
        for path in ["file", "./a:b", "/a:b", "~/a:b", ":x", "../a:b"] {
            assert_eq!(parse(path), End::Host(path.into()), "{path}");
        }
    }

    #[test]
    fn the_copy_is_named_as_cp_names_it() {
        let at = |kind, to: &str, source: &str| {
            place(kind, Path::new("/root/x"), OsStr::new(to), OsStr::new(source)).unwrap()
        };
        let pair = |folder: &str, name: &str| (PathBuf::from(folder), OsString::from(name));
        assert_eq!(at(Kind::Folder, "x", "a/b"), pair("/root/x", "b"));
        assert_eq!(at(Kind::None, "x", "a/b"), pair("/root", "x"));
        assert_eq!(at(Kind::None, "x/", "a/b"), pair("/root/x", "b"));
        assert_eq!(at(Kind::Other, "x", "a/b/"), pair("/root", "x"));
        assert_eq!(at(Kind::Folder, "x", "a/."), pair("/root/x", "."));
        assert_eq!(at(Kind::None, "x", "a/."), pair("/root/x", "."));
    }
}
