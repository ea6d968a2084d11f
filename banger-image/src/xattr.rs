//! Extended attributes on their way from an archive into ext4.

use super::acl;

/// The attributes that hold POSIX ACLs.
pub(crate) const ACCESS: &str = "system.posix_acl_access";
pub(crate) const DEFAULT: &str = "system.posix_acl_default";
/// The attribute that holds a program's capabilities.
pub(crate) const CAPABILITY: &str = "security.capability";

/// Name with its namespace, value as ext4 stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

/// One block less its header and end mark: what the writer can give one inode for certain. What
/// fits the inode itself comes on top, but depends on the order.
const MAX_BYTES: usize = 4096 - 32 - 4;

/// Attributes that ext4 can hold, in its form, and the names of others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorted {
    pub(crate) kept: Vec<Xattr>,
    /// They mean nothing on Linux.
    pub(crate) left_out: Vec<String>,
    /// ACLs that the kernel would refuse.
    pub(crate) malformed: Vec<String>,
}

/// Sorts out what ext4 can hold, and turns ACLs into its form. Names outside of the spaces that
/// Linux has are left out: macOS writes some.
///
/// # Errors
/// A phrase that names the attribute which cannot be kept.
pub(crate) fn for_ext4(xattrs: Vec<(String, Vec<u8>)>) -> Result<Sorted, String> {
    let mut total = 0;
    let mut sorted = Sorted::default();
    for (name, value) in xattrs {
        let shown = || super::names::printable(name.as_bytes());
        let (suffix, value) = match name.as_str() {
            ACCESS | DEFAULT => match acl::of_archive(acl_for(&name), &value) {
                Some(acl) if acl.is_empty() => continue,
                Some(acl) => (0, acl),
                None => {
                    sorted.malformed.push(name);
                    continue;
                }
            },
            other => match ["user.", "trusted.", "security."].iter().find_map(|space| other.strip_prefix(space)) {
                None => {
                    sorted.left_out.push(shown());
                    continue;
                }
                Some(suffix) if suffix.is_empty() || other.len() > 255 || suffix.contains(char::is_control) => {
                    return Err(format!("the extended attribute {:?}", shown()));
                }
                Some(suffix) => (suffix.len(), value),
            },
        };
        total += 16 + suffix.next_multiple_of(4) + value.len().next_multiple_of(4);
        sorted.kept.push(Xattr { name, value });
    }
    if total > MAX_BYTES {
        return Err(format!("{total} bytes of extended attributes"));
    }
    Ok(sorted)
}

/// What the ACL in the attribute of this name is for.
pub(crate) fn acl_for(name: &str) -> acl::For {
    if name == DEFAULT { acl::For::Default } else { acl::For::Access }
}

/// The value as system calls and archives carry it: the inverse of [`for_ext4`].
pub(crate) fn to_archive(xattr: &Xattr) -> Vec<u8> {
    let Some(mut rest) = xattr.value.strip_prefix(&1_u32.to_le_bytes()).filter(|_| xattr.name.starts_with("system."))
    else {
        return xattr.value.clone();
    };
    let mut out = 2_u32.to_le_bytes().to_vec();
    while let Some((short, after)) = rest.split_at_checked(4) {
        rest = after;
        out.extend_from_slice(short);
        let named = acl::NAMED.iter().any(|tag| short.starts_with(&tag.to_le_bytes()));
        let (id, after) = if named { rest.split_at_checked(4).unwrap_or((&[], &[])) } else { (&[0xff; 4][..], rest) };
        out.extend_from_slice(id);
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn one(name: &str, value: &[u8]) -> Result<Vec<Xattr>, String> {
        for_ext4(vec![(name.to_owned(), value.to_vec())]).map(|sorted| sorted.kept)
    }

    #[test]
    fn acls_are_converted() {
        // user::rwx user:1000:r-x group::r-x mask::r-x other::---
        let entries: [(u16, u16, u32); 5] =
            [(1, 7, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)];
        let mut raw = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            raw.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        let kept = one(ACCESS, &raw).unwrap();
        assert_eq!(
            kept[0].value,
            [1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 5, 0, 0xe8, 3, 0, 0, 4, 0, 5, 0, 16, 0, 5, 0, 32, 0, 0, 0]
        );
        assert_eq!(to_archive(&kept[0]), raw);
        let cut = for_ext4(vec![(DEFAULT.to_owned(), raw[..raw.len() - 1].to_vec())]).unwrap();
        assert_eq!(cut, Sorted { malformed: vec![DEFAULT.to_owned()], ..Sorted::default() });
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        assert!(one("user.big", &[0; 5000]).unwrap_err().contains("bytes of extended attributes"));
        assert!(one(&format!("user.{}", "x".repeat(251)), b"x").unwrap_err().contains("user.xxx"));
        assert!(one("user.", b"x").is_err());
        assert!(one("security.capability", &[1, 0, 0, 2]).is_ok() && one("user.ok", &[0; 3000]).is_ok());
    }

    #[test]
    fn what_means_nothing_on_linux_is_left_out() {
        let sorted = for_ext4(vec![("com.apple.provenance".to_owned(), b"x".to_vec())]).unwrap();
        assert_eq!(sorted, Sorted { left_out: vec!["com.apple.provenance".to_owned()], ..Sorted::default() });
    }
}
