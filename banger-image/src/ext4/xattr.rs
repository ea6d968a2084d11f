//! Extended attributes in an inode or in a block of their own (`fs/ext4/xattr.h`,
//! `fs/ext4/xattr.c`).

use super::bytes::{Block, checksum, low16, low32, put, put_u16, put_u32};
use super::inode::ATTRIBUTE_ROOM;
use super::{BLOCK_LEN, Ext4Error};
use crate::xattr::Xattr;

const MAGIC: u32 = 0xea02_0000;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Bytes before the first entry of a block.
const HEADER: usize = 32;

/// Name spaces by number; the first that fits counts.
const SPACES: [(&str, u8); 6] = [
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("user.", 1),
    ("trusted.", 4),
    ("security.", 6),
    ("system.", 7),
];

/// The attributes of one inode, split by name space and in the order that a block wants.
fn sorted(attributes: &[Xattr]) -> Vec<(u8, &[u8], &[u8])> {
    let split = |one: &'_ Xattr| {
        let found =
            SPACES.iter().find_map(|(space, index)| one.name.strip_prefix(space).map(|rest| (*index, rest.len())));
        found.unwrap_or((0, one.name.len()))
    };
    let mut sorted: Vec<(u8, &[u8], &[u8])> = attributes
        .iter()
        .map(|one| {
            let (index, length) = split(one);
            let name = one.name.as_bytes();
            (index, name.get(name.len() - length..).unwrap_or_default(), one.value.as_slice())
        })
        .collect();
    sorted.sort_by(|a, b| (a.0, a.1.len(), a.1).cmp(&(b.0, b.1.len(), b.1)));
    sorted
}

/// What goes into the inode; `None` when it does not fit there.
pub(super) fn in_inode(attributes: &[Xattr]) -> Option<Vec<u8>> {
    if attributes.is_empty() {
        return Some(Vec::new());
    }
    let mut room = vec![0; ATTRIBUTE_ROOM];
    put_u32(&mut room, 0, MAGIC);
    let area = room.get_mut(4..)?;
    // Offsets of values count from the first entry; there is no hash in an inode.
    entries(area, 0, &sorted(attributes), false)?;
    Some(room)
}

/// A block of attributes, at `block`.
///
/// # Errors
/// When they do not fit, which [`crate::xattr::for_ext4`] has excluded.
pub(super) fn in_block(attributes: &[Xattr], block: u64, seed: u32) -> Result<Block, Ext4Error> {
    let mut raw: Block = [0; BLOCK_LEN];
    put_u32(&mut raw, 0, MAGIC);
    // Reference count, number of blocks.
    put_u32(&mut raw, 4, 1);
    put_u32(&mut raw, 8, 1);
    let whole = entries(&mut raw, HEADER, &sorted(attributes), true);
    let hash = whole.ok_or(Ext4Error::Size("the extended attributes of a file do not fit one block"))?;
    put_u32(&mut raw, 12, hash);
    let sum = checksum(checksum(seed, &block.to_le_bytes()), &raw);
    put_u32(&mut raw, 16, sum);
    Ok(raw)
}

/// Entries from `first` on, values from the end of `area`, whose offsets count from its beginning.
/// Returns the hash of all of them; `None` when there is no room.
fn entries(area: &mut [u8], first: usize, attributes: &[(u8, &[u8], &[u8])], hashed: bool) -> Option<u32> {
    let mut at = first;
    let mut end = area.len();
    let mut whole = 0_u32;
    for (index, name, value) in attributes {
        let padded = value.len().next_multiple_of(4);
        let next = at + (ENTRY + name.len()).next_multiple_of(4);
        end = end.checked_sub(padded)?;
        // Four bytes of zeros end the list.
        if next + 4 > end {
            return None;
        }
        let hash = if hashed { hash(name, value) } else { 0 };
        put(area, at, &[u8::try_from(name.len()).ok()?, *index]);
        put_u16(area, at + 2, if value.is_empty() { 0 } else { low16(low32(end as u64)) });
        put_u32(area, at + 8, u32::try_from(value.len()).ok()?);
        put_u32(area, at + 12, hash);
        put(area, at + ENTRY, name);
        put(area, end, value);
        whole = whole.rotate_left(16) ^ hash;
        at = next;
    }
    Some(whole)
}

/// `ext4_xattr_hash_entry`.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        put(&mut word, 0, chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}
