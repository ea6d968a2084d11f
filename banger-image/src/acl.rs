//! POSIX ACLs: as system calls and archives carry them, as GNU tar and star write them, and as ext4
//! stores them.
//!
//! Sources: `include/uapi/linux/posix_acl_xattr.h` (version 2: tag, permissions, id in every
//! entry), `fs/ext4/acl.h` (version 1: the id only for named users and groups), `posix_acl_valid`
//! in `fs/posix_acl.c`, and acl_to_text(3).

/// Tags that carry an id: ACL_USER and ACL_GROUP.
pub(crate) const NAMED: [u16; 2] = [USER, GROUP];

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What an ACL is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The file itself, beside its mode.
    Access,
    /// What is made in a folder: there it takes the place of the umask.
    Default,
}

/// Tag, id, permissions: in this order the kernel wants them sorted.
type Entry = (u16, u32, u16);

/// The value of an extended attribute as ext4 stores it; empty when it says no more than the mode
/// does. `None` when the kernel would refuse it.
pub(crate) fn of_archive(purpose: For, value: &[u8]) -> Option<Vec<u8>> {
    let raw = value.strip_prefix(&2_u32.to_le_bytes())?;
    if !raw.len().is_multiple_of(8) {
        return None;
    }
    let entries = raw.chunks_exact(8).map(|entry| {
        let &[t0, t1, p0, p1, i0, i1, i2, i3] = entry else { return None };
        let tag = u16::from_le_bytes([t0, t1]);
        let id = if NAMED.contains(&tag) { u32::from_le_bytes([i0, i1, i2, i3]) } else { 0 };
        Some((tag, id, u16::from_le_bytes([p0, p1])))
    });
    stored(purpose, entries.collect::<Option<_>>()?)
}

/// The same from text: `user::rwx,user:1000:r-x,...`, between commas or newlines. Names of users
/// and groups mean what star writes behind them as a fourth field. Those without a number are left
/// out, which takes rights and gives none; they are added to `unknown`.
pub(crate) fn of_text(purpose: For, text: &[u8], unknown: &mut Vec<String>) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        let line = line.strip_prefix("default:").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(':').collect();
        let (tag, name, allowed, number) = match fields.as_slice() {
            [tag @ ("mask" | "m" | "other" | "o"), allowed] => (*tag, "", *allowed, None),
            [tag, name, allowed] => (*tag, *name, *allowed, None),
            [tag, name, allowed, number] => (*tag, *name, *allowed, Some(*number)),
            _ => return None,
        };
        let tag = match (tag, name) {
            ("user" | "u", "") => USER_OBJ,
            ("user" | "u", _) => USER,
            ("group" | "g", "") => GROUP_OBJ,
            ("group" | "g", _) => GROUP,
            ("mask" | "m", "") => MASK,
            ("other" | "o", "") => OTHER,
            _ => return None,
        };
        let id = match number.unwrap_or(name) {
            "" | "root" => Some(0),
            digits => digits.parse().ok(),
        };
        let allowed = permissions(allowed)?;
        match id {
            Some(id) => entries.push((tag, id, allowed)),
            None => unknown.push(super::names::printable(name.as_bytes())),
        }
    }
    stored(purpose, entries)
}

fn permissions(text: &str) -> Option<u16> {
    text.trim().chars().try_fold(0, |bits, letter| match letter {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    })
}

fn stored(purpose: For, mut entries: Vec<Entry>) -> Option<Vec<u8>> {
    entries.sort_unstable();
    let count = |wanted: u16| entries.iter().filter(|(tag, ..)| *tag == wanted).count();
    let named = count(USER) + count(GROUP);
    let one_each = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1);
    let masked = count(MASK) == 1 || count(MASK) == 0 && named == 0;
    let known = entries.iter().all(|(tag, id, allowed)| {
        [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(tag) && *allowed <= 7 && *id != u32::MAX
    });
    let twice = entries.windows(2).any(|pair| matches!(pair, [(t, i, _), (u, j, _)] if (t, i) == (u, j)));
    if entries.is_empty() {
        return Some(Vec::new());
    }
    if !one_each || !masked || !known || twice {
        return None;
    }
    if purpose == For::Access && entries.len() == 3 {
        return Some(Vec::new());
    }
    let mut out = 1_u32.to_le_bytes().to_vec();
    for (tag, id, allowed) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&allowed.to_le_bytes());
        if NAMED.contains(&tag) {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    Some(out)
}

/// The permission bits of a file that has this ACL, as ext4 stores it: the kernel shows the mask as
/// those of the group (acl(5)), and sets all of them from an ACL that a program restores.
pub(crate) fn mode_bits(stored: &[u8]) -> u16 {
    let mut rest = stored.get(4..).unwrap_or_default();
    let (mut bits, mut mask) = (0, None);
    while let &[t0, t1, p0, p1, ref after @ ..] = rest {
        let (tag, allowed) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]));
        match tag {
            USER_OBJ => bits |= allowed << 6,
            GROUP_OBJ => bits |= allowed << 3,
            MASK => mask = Some(allowed),
            OTHER => bits |= allowed,
            _ => {}
        }
        rest = if NAMED.contains(&tag) { after.get(4..).unwrap_or_default() } else { after };
    }
    mask.map_or(bits, |mask| bits & !0o070 | mask << 3)
}

/// What chmod(2) makes of the ACL of a file, as ext4 stores it: where there is a mask, the bits of
/// the group are its (`posix_acl_chmod` in `fs/posix_acl.c`).
pub(crate) fn change_mode(stored: &mut [u8], mode: u16) {
    let group = if has_mask(stored) { MASK } else { GROUP_OBJ };
    let mut rest = stored.get_mut(4..).unwrap_or_default();
    while let [t0, t1, p0, p1, after @ ..] = rest {
        let tag = u16::from_le_bytes([*t0, *t1]);
        let bits = match tag {
            USER_OBJ => Some(mode >> 6),
            OTHER => Some(mode),
            _ => Some(mode >> 3).filter(|_| tag == group),
        };
        if let Some(bits) = bits {
            [*p0, *p1] = (bits & 7).to_le_bytes();
        }
        rest = if NAMED.contains(&tag) { after.get_mut(4..).unwrap_or_default() } else { after };
    }
}

fn has_mask(stored: &[u8]) -> bool {
    let mut rest = stored.get(4..).unwrap_or_default();
    while let &[t0, t1, _, _, ref after @ ..] = rest {
        let tag = u16::from_le_bytes([t0, t1]);
        if tag == MASK {
            return true;
        }
        rest = if NAMED.contains(&tag) { after.get(4..).unwrap_or_default() } else { after };
    }
    false
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn text_in_all_its_forms() {
        let wanted = [1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 5, 0, 0xe8, 3, 0, 0, 4, 0, 5, 0, 16, 0, 5, 0, 32, 0, 0, 0];
        for text in [
            "user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::---",
            "user::rwx\nuser:1000:r-x\t#effective:r-x\ngroup::r-x\nmask::r-x\nother::---\n",
            "user::rwx,group::r-x,other::---,mask::r-x,user:lisa:r-x:1000",
            "u::rwx,u:1000:rx,g::rx,m:rx,o:-",
            "default:user::rwx,default:user:1000:r-x,default:group::r-x,default:mask::r-x,default:other::---",
        ] {
            assert_eq!(of_text(For::Access, text.as_bytes(), &mut Vec::new()).unwrap(), wanted, "{text}");
        }
        let plain = of_text(For::Access, b"user::rw-,group::r--,other::r--", &mut Vec::new());
        assert_eq!(plain, Some(Vec::new()), "no more than the mode");
        let mut unknown = Vec::new();
        let rest = of_text(For::Access, b"user::rwx,user:lisa:r-x,group::r-x,mask::r-x,other::---", &mut unknown);
        assert_eq!(rest, Some(vec![1, 0, 0, 0, 1, 0, 7, 0, 4, 0, 5, 0, 16, 0, 5, 0, 32, 0, 0, 0]));
        assert_eq!(unknown, ["lisa"]);
    }

    #[test]
    fn the_mask_stands_for_the_group_in_the_mode() {
        let bits = |text: &str| mode_bits(&of_text(For::Access, text.as_bytes(), &mut Vec::new()).unwrap());
        assert_eq!(bits("user::rwx,user:1000:r-x,group::r--,mask::---,other::--x"), 0o701);
        assert_eq!(bits("user::rw-,group::r--,group:7:rwx,mask::rwx,other::r--"), 0o674);
    }

    #[test]
    fn a_changed_mode_changes_the_mask_or_the_group() {
        for (text, mode, changed) in [
            ("user::rwx,user:9:r-x,group::r-x,mask::rwx,other::r--", 0o4640, "user::rw,user:9:rx,group::rx,m:r,o:-"),
            ("user::r,group::r,group:7:rwx,mask::rwx,other::r", 0o751, "u::rwx,g::r,g:7:rwx,m:rx,o:x"),
            ("user::r,group::r,mask::rwx,other::r", 0o77, "u::-,g::r,m:rwx,o:rwx"),
        ] {
            let stored = |text: &str| of_text(For::Access, text.as_bytes(), &mut Vec::new()).unwrap();
            let mut value = stored(text);
            change_mode(&mut value, mode);
            assert_eq!((mode_bits(&value), value), (mode & 0o777, stored(changed)), "{text}");
        }
        let mut default = of_text(For::Default, b"u::rwx,g::rx,o:-", &mut Vec::new()).unwrap();
        change_mode(&mut default, 0o612);
        assert_eq!(default, of_text(For::Default, b"u::rw,g::x,o:w", &mut Vec::new()).unwrap());
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        for text in [
            "user::rwx,group::r-x",
            "user::rwx,user:1:r-x,group::r-x,other::---",
            "user::rwx,group::r-x,other::---,other::r--",
            "user::rwz,group::r-x,other::---",
            "owner::rwx,group::r-x,other::---",
            "user::rwx,user:4294967295:r,group::r-x,mask::r,other::---",
        ] {
            assert_eq!(of_text(For::Access, text.as_bytes(), &mut Vec::new()), None, "{text}");
        }
        assert_eq!(of_archive(For::Access, &[2, 0, 0, 0, 9, 0, 7, 0, 0, 0, 0, 0]), None, "no such tag");
        assert_eq!(of_archive(For::Access, &[1, 0, 0, 0]), None, "another version");
    }
}
