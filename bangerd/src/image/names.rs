//! Names inside archives: what is carried, what is refused.
//!
//! The first of the two checks that every name passes; the second is the ext4 writer's own. Nothing here
//! touches the host's file system, and nothing that came from an archive is ever used as a host path.

use std::fmt;

/// The kernel's `PATH_MAX`: no program in the guest could name anything longer.
pub(crate) const MAX_PATH: usize = 4096;
/// The longest symlink target that ext4 can hold: one block without its NUL.
pub(crate) const MAX_TARGET: usize = 4095;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// Starts with `/`.
    Absolute,
    /// Has a `..` component.
    DotDot,
    /// NUL, newline or another control character.
    Control,
    /// A component of more than 255 bytes.
    ComponentTooLong,
    /// More than 4096 bytes in all.
    PathTooLong,
    /// Bytes that are no UTF-8, which the ext4 writer cannot carry exactly.
    NotUtf8,
    /// A symlink whose target is empty, over 4095 bytes, or contains NUL.
    Target,
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absolute => "an absolute path",
            Self::DotDot => "a path with a `..` component",
            Self::Control => "a name with a control character",
            Self::ComponentTooLong => "a name of more than 255 bytes",
            Self::PathTooLong => "a path of more than 4096 bytes",
            Self::NotUtf8 => "a name that is not UTF-8",
            Self::Target => "a symlink target that is empty, over 4095 bytes, not UTF-8, or contains NUL",
        })
    }
}

/// A relative path without `.`, `..` and empty components; empty for the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryPath(String);

impl EntryPath {
    /// # Errors
    /// Every [`NameFault`] but `Target`.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, NameFault> {
        if raw.len() > MAX_PATH {
            return Err(NameFault::PathTooLong);
        }
        let text = std::str::from_utf8(raw).map_err(|_| NameFault::NotUtf8)?;
        if text.starts_with('/') {
            return Err(NameFault::Absolute);
        }
        if text.chars().any(char::is_control) {
            return Err(NameFault::Control);
        }
        let mut path = String::with_capacity(text.len());
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                return Err(NameFault::DotDot);
            }
            if part.len() > 255 {
                return Err(NameFault::ComponentTooLong);
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(part);
        }
        Ok(Self(path))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Folder and last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&str, &str)> {
        if self.0.is_empty() {
            return None;
        }
        Some(self.0.rsplit_once('/').unwrap_or(("", &self.0)))
    }
}

/// A symlink's target. Absolute targets are legitimate: they mean the guest's root.
///
/// # Errors
/// [`NameFault::Target`].
pub(crate) fn symlink_target(raw: &[u8]) -> Result<Box<str>, NameFault> {
    if raw.is_empty() || raw.len() > MAX_TARGET || raw.contains(&0) {
        return Err(NameFault::Target);
    }
    std::str::from_utf8(raw).map(Into::into).map_err(|_| NameFault::Target)
}

/// A name for messages: hostile bytes escaped, length bounded.
pub(crate) fn printable(raw: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(raw)
        .chars()
        .take(200)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if raw.len() > 200 { format!("{text}...") } else { text }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(256);
        let deep = "a/".repeat(2049);
        for (raw, fault) in [
            (&b"/etc/passwd"[..], NameFault::Absolute),
            (b"../x", NameFault::DotDot),
            (b"a/../../x", NameFault::DotDot),
            (b"a/..", NameFault::DotDot),
            (b"a\nb", NameFault::Control),
            (b"a\0b", NameFault::Control),
            (b"a\x7f", NameFault::Control),
            ("a\u{85}".as_bytes(), NameFault::Control),
            (b"\xff", NameFault::NotUtf8),
            (long.as_bytes(), NameFault::ComponentTooLong),
            (deep.as_bytes(), NameFault::PathTooLong),
        ] {
            assert_eq!(EntryPath::parse(raw), Err(fault), "{}", printable(raw));
        }
    }

    #[test]
    fn odd_but_legitimate_names_arrive_exactly() {
        for name in [r"system-systemd\x2dcryptsetup.slice", "a b", "\"quoted\"", "it's", "...", "..a", "-rf", "é/日本"]
        {
            assert_eq!(EntryPath::parse(name.as_bytes()).unwrap().as_str(), name);
        }
        assert_eq!(EntryPath::parse(b"./a//b/./c/").unwrap().as_str(), "a/b/c");
        assert_eq!(EntryPath::parse(b"./").unwrap().split(), None);
        assert_eq!(EntryPath::parse(b"a/b").unwrap().split(), Some(("a", "b")));
        assert_eq!(symlink_target(b"/etc/alternatives/x").unwrap().as_ref(), "/etc/alternatives/x");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_inside(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = EntryPath::parse(&raw) {
                prop_assert!(!path.as_str().starts_with('/'));
                prop_assert!(path.as_str().split('/').all(|part| part != ".." && part != "."));
                prop_assert_eq!(EntryPath::parse(path.as_str().as_bytes()).unwrap(), path);
            }
            prop_assert!(!printable(&raw).chars().any(char::is_control));
        }
    }
}
