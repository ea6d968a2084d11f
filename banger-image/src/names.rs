//! Names inside archives: what is carried, what is refused.
//!
//! The first of the two checks that every name passes is [`EntryPath::parse`], the second is
//! [`component`], asked again where the tree is written. Nothing here touches the host's file
//! system, and nothing that came from an archive is ever used as a host path. A name is bytes: it
//! need not be UTF-8.

use std::fmt;

/// The kernel's `PATH_MAX`: no program in the guest could name anything longer.
pub(crate) const MAX_PATH: usize = 4096;
/// The longest symlink target that ext4 can hold: one block without its NUL.
pub(crate) const MAX_TARGET: usize = 4095;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// Has a `..` component.
    DotDot,
    /// NUL, newline or another control character.
    Control,
    /// A component of more than 255 bytes.
    ComponentTooLong,
    /// More than 4096 bytes in all.
    PathTooLong,
    /// A symlink whose target is empty, over 4095 bytes, or contains NUL.
    Target,
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DotDot => "a path with a `..` component",
            Self::Control => "a name with a control character",
            Self::ComponentTooLong => "a name of more than 255 bytes",
            Self::PathTooLong => "a path of more than 4096 bytes",
            Self::Target => "a symlink target that is empty, over 4095 bytes, or contains NUL",
        })
    }
}

/// A relative path without `.`, `..` and empty components; empty for the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Leading slashes are left out, as GNU tar and docker do it.
    ///
    /// # Errors
    /// Every [`NameFault`] but `Target`.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, NameFault> {
        if raw.len() > MAX_PATH {
            return Err(NameFault::PathTooLong);
        }
        let mut path = Vec::with_capacity(raw.len());
        for part in raw.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            component(part)?;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        Ok(Self(path))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Folder and last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Some((self.0.get(..slash)?, self.0.get(slash + 1..)?)),
            None => Some((&[], &self.0)),
        }
    }
}

/// Whether a name may stand in a folder.
///
/// # Errors
/// `DotDot`, `Control`, `ComponentTooLong`.
pub(crate) fn component(name: &[u8]) -> Result<(), NameFault> {
    if matches!(name, b".." | b"." | b"") || name.contains(&b'/') {
        return Err(NameFault::DotDot);
    }
    if name.len() > 255 {
        return Err(NameFault::ComponentTooLong);
    }
    let control = match std::str::from_utf8(name) {
        Ok(text) => text.chars().any(char::is_control),
        Err(_) => name.iter().any(u8::is_ascii_control),
    };
    if control { Err(NameFault::Control) } else { Ok(()) }
}

/// A symlink's target. Absolute targets are legitimate: they mean the guest's root.
///
/// # Errors
/// [`NameFault::Target`].
pub(crate) fn symlink_target(raw: &[u8]) -> Result<Box<[u8]>, NameFault> {
    if raw.is_empty() || raw.len() > MAX_TARGET || raw.contains(&0) { Err(NameFault::Target) } else { Ok(raw.into()) }
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
            (&b"../x"[..], NameFault::DotDot),
            (b"a/../../x", NameFault::DotDot),
            (b"a/..", NameFault::DotDot),
            (b"a\nb", NameFault::Control),
            (b"a\0b", NameFault::Control),
            (b"a\x7f", NameFault::Control),
            ("a\u{85}".as_bytes(), NameFault::Control),
            (b"\xff\n", NameFault::Control),
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
            assert_eq!(EntryPath::parse(name.as_bytes()).unwrap().as_bytes(), name.as_bytes());
        }
        assert_eq!(EntryPath::parse(b"./a//b/./c/").unwrap().as_bytes(), b"a/b/c");
        assert_eq!(EntryPath::parse(b"//a/caf\xe9").unwrap().as_bytes(), b"a/caf\xe9");
        assert_eq!(EntryPath::parse(b"./").unwrap().split(), None);
        assert_eq!(EntryPath::parse(b"/").unwrap().split(), None);
        assert_eq!(EntryPath::parse(b"a/b").unwrap().split(), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(EntryPath::parse(b"b").unwrap().split(), Some((&b""[..], &b"b"[..])));
        assert_eq!(symlink_target(b"/etc/alternatives/x").unwrap().as_ref(), b"/etc/alternatives/x");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_inside(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = EntryPath::parse(&raw) {
                prop_assert!(!path.as_bytes().starts_with(b"/"));
                prop_assert!(path.as_bytes().split(|b| *b == b'/').all(|part| part != b".." && part != b"."));
                prop_assert_eq!(EntryPath::parse(path.as_bytes()).unwrap(), path);
            }
            prop_assert!(!printable(&raw).chars().any(char::is_control));
        }
    }
}
