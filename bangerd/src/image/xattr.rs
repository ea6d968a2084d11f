//! Extended attributes on their way from an archive into ext4.

/// Name with its namespace, value as ext4 stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

/// One block less its header and end mark: what the writer can give one inode for certain. What fits the
/// inode itself comes on top, but depends on the order.
const MAX_BYTES: usize = 4096 - 32 - 4;

/// Sorts out what ext4 can hold, and turns ACLs into its form.
///
/// # Errors
/// A phrase that names the attribute which cannot be kept.
pub(crate) fn for_ext4(xattrs: Vec<(String, Vec<u8>)>) -> Result<Vec<Xattr>, String> {
    let mut total = 0;
    let mut kept = Vec::with_capacity(xattrs.len());
    for (name, value) in xattrs {
        let suffix = match name.as_str() {
            "system.posix_acl_access" | "system.posix_acl_default" => "",
            other => ["user.", "trusted.", "security."]
                .iter()
                .find_map(|space| other.strip_prefix(space))
                .filter(|suffix| !suffix.is_empty() && suffix.len() <= 255 && !suffix.contains(char::is_control))
                .ok_or_else(|| format!("the extended attribute {:?}", super::names::printable(name.as_bytes())))?,
        };
        let value = if suffix.is_empty() { acl(&value).ok_or_else(|| format!("a malformed {name}"))? } else { value };
        total += 16 + suffix.len().next_multiple_of(4) + value.len().next_multiple_of(4);
        kept.push(Xattr { name, value });
    }
    if total > MAX_BYTES {
        return Err(format!("{total} bytes of extended attributes"));
    }
    Ok(kept)
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
        let named = NAMED.iter().any(|tag| short.starts_with(&tag.to_le_bytes()));
        let (id, after) = if named { rest.split_at_checked(4).unwrap_or((&[], &[])) } else { (&[0xff; 4][..], rest) };
        out.extend_from_slice(id);
        rest = after;
    }
    out
}

/// ACL tags that carry an id: ACL_USER and ACL_GROUP.
const NAMED: [u16; 2] = [0x02, 0x08];

/// An ACL as system calls carry it (`include/uapi/linux/posix_acl_xattr.h`, version 2: tag, permissions, id in
/// every entry) as ext4 stores it (`fs/ext4/acl.h`, version 1: the id only for named users and groups).
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    let entries = value.strip_prefix(&2_u32.to_le_bytes())?;
    if !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut out = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let (short, id) = entry.split_at(4);
        let tag = u16::from_le_bytes([*short.first()?, *short.get(1)?]);
        out.extend_from_slice(short);
        if NAMED.contains(&tag) {
            out.extend_from_slice(id);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn one(name: &str, value: &[u8]) -> Result<Vec<Xattr>, String> {
        for_ext4(vec![(name.to_owned(), value.to_vec())])
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
        let kept = one("system.posix_acl_access", &raw).unwrap();
        assert_eq!(
            kept[0].value,
            [1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 5, 0, 0xe8, 3, 0, 0, 4, 0, 5, 0, 16, 0, 5, 0, 32, 0, 0, 0]
        );
        assert_eq!(to_archive(&kept[0]), raw);
        assert!(one("system.posix_acl_default", &raw[..raw.len() - 1]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        assert!(one("user.big", &[0; 5000]).unwrap_err().contains("bytes of extended attributes"));
        assert!(one("com.apple.quarantine", b"x").unwrap_err().contains("com.apple.quarantine"));
        assert!(one("user.", b"x").is_err());
        assert!(one("security.capability", &[1, 0, 0, 2]).is_ok() && one("user.ok", &[0; 3000]).is_ok());
    }
}
