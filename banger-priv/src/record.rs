//! Small files that hold one value each, replaced by rename: the ledger's rows and the COW files'
//! records. What their bytes are is in [`banger_policy::helper::record`].

pub use banger_policy::helper::record::{decode, encode};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, fsync, openat2, renameat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The longest record, bytes: a row with the longest list of what its guest may reach has 9 KiB.
const ROOM: u64 = 16 * 1024;
/// Ending of a file that is being written.
const UNFINISHED: &str = ".new";

/// Replaces `name` below `directory`. With `durable` the answer means that it survives a power cut.
///
/// # Errors
/// The kernel's; the old file stands then.
pub fn replace<T: Serialize>(directory: BorrowedFd<'_>, name: &str, value: &T, durable: bool) -> io::Result<()> {
    let bytes = encode(value)?;
    let unfinished = format!("{name}{UNFINISHED}");
    remove(directory, &unfinished)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file: File = openat2(directory, &unfinished, flags, Mode::RUSR | Mode::WUSR, beneath())?.into();
    let written = file.write_all(&bytes).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    if let Err(error) = written {
        drop(remove(directory, &unfinished));
        return Err(error);
    }
    renameat(directory, &unfinished, directory, name)?;
    if durable { Ok(fsync(directory)?) } else { Ok(()) }
}

/// Removes a file; gone already is success.
///
/// # Errors
/// The kernel's.
pub fn remove(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// A value, or that its file is damaged.
///
/// # Errors
/// The kernel's.
pub fn read<T: DeserializeOwned>(directory: BorrowedFd<'_>, name: &str) -> io::Result<Option<T>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = openat2(directory, name, flags, Mode::empty(), beneath())?.into();
    let mut bytes = Vec::new();
    file.take(ROOM).read_to_end(&mut bytes)?;
    Ok(decode(&bytes))
}

/// The names in a folder that end in `ending`, without it. What an interrupted [`replace`] left is
/// removed.
///
/// # Errors
/// The kernel's.
pub fn names(directory: BorrowedFd<'_>, ending: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(UNFINISHED) {
            remove(directory, &name)?;
        } else if let Some(stem) = name.strip_suffix(ending)
            && !stem.starts_with('.')
        {
            names.push(stem.to_owned());
        }
    }
    Ok(names)
}

/// How everything below one of our folders is opened.
pub(crate) fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS
}

/// Opens a folder and keeps it: later look-ups start from this handle, whatever becomes of its
/// path. With `OFlags::PATH` it can be passed through but not listed: no more is needed of other
/// people's folders.
///
/// # Errors
/// The kernel's.
pub fn folder(path: &Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat2(rustix::fs::CWD.as_fd(), path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::VmId;
    use banger_policy::helper::holding::{AttachedDisk, Disk, Process, Row, Tap};
    use banger_policy::reach::{MAX_TARGETS, Mode, Protocol, Range, Reach, Target};
    use std::net::Ipv4Addr;

    fn row() -> Row {
        Row {
            vm: VmId::from_bytes([0x5a; 32]).unwrap(),
            owner: 1000,
            generation: u64::MAX,
            tap: Tap::Held { address: Ipv4Addr::new(172, 16, 0, 2), ifindex: 7 },
            disk: Disk::Held(AttachedDisk { minor: 1, base_loop: 2, cow_loop: 3 }),
            reach: Reach::of(Mode::Nat),
            process: Some(Process { pid: 5, pidfd_inode: 6, start_ticks: 7 }),
            quarantined: false,
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged() {
        let bytes = encode(&row()).unwrap();
        assert_eq!(decode::<Row>(&bytes), Some(row()));
        for cut in 0..bytes.len() {
            assert_eq!(decode::<Row>(&bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_or_harmless() {
        let bytes = encode(&row()).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                // The letters of the sum differ by one bit between upper and lower case, which is
                // refused.
                assert_eq!(decode::<Row>(&flipped), None, "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_of_a_newer_helper_is_not_half_understood() {
        let text = String::from_utf8(encode(&row()).unwrap()).unwrap();
        let inner =
            text.split_once("\"record\":").unwrap().1.trim_end().trim_end_matches('}').to_owned() + ",\"more\":1}";
        let value: Box<serde_json::value::RawValue> = serde_json::value::RawValue::from_string(inner).unwrap();
        assert_eq!(decode::<Row>(&encode(&value).unwrap()), None);
    }

    #[test]
    fn the_longest_row_is_read_back() {
        let service = Some((Protocol::Udp, u16::MAX));
        let target = Target { range: Range::one(Ipv4Addr::BROADCAST), service };
        let group = banger_policy::Digest::from_bytes([0xff; 32]).ok();
        let reach = Reach { mode: Mode::Allow, targets: vec![target; MAX_TARGETS], group };
        let row = row().with_reach(reach);
        let folder = tempfile::tempdir().unwrap();
        let handle = super::folder(folder.path(), OFlags::RDONLY).unwrap();
        replace(handle.as_fd(), "a", &row, false).unwrap();
        assert_eq!(read::<Row>(handle.as_fd(), "a").unwrap(), Some(row));
    }

    #[test]
    fn files_are_replaced_whole_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        let handle = super::folder(folder.path(), OFlags::RDONLY).unwrap();
        replace(handle.as_fd(), "a", &row(), true).unwrap();
        replace(handle.as_fd(), "a", &row().with_tap(Tap::None), false).unwrap();
        assert_eq!(read::<Row>(handle.as_fd(), "a").unwrap(), Some(row().with_tap(Tap::None)));
        std::fs::write(folder.path().join("b.new"), b"{").unwrap();
        replace(handle.as_fd(), "b", &row(), false).unwrap();
        std::fs::write(folder.path().join("c.new"), b"{").unwrap();
        let mut found = names(handle.as_fd(), "").unwrap();
        found.sort();
        assert_eq!(found, ["a", "b"]);
        assert!(!folder.path().join("c.new").exists());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let handle = super::folder(folder.path(), OFlags::RDONLY).unwrap();
        std::fs::write(folder.path().join("real"), encode(&row()).unwrap()).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        assert!(read::<Row>(handle.as_fd(), "link").is_err());
    }
}
