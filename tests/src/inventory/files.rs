//! Mount points, listening sockets, and files below the folders that banger or its users may write.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};

use super::{Inventory, Kind, output};

/// Folders that are walked. The ledger has its own sort and is not among them.
const ROOTS: &[&str] = &[
    "/etc/banger",
    "/var/lib/banger",
    "/var/lib/banger-priv",
    "/var/cache/banger",
    "/var/log/banger",
    "/run/banger",
    "/run/bangerd",
    "/home",
    "/root",
    "/tmp",
    "/var/tmp",
    "/dev/shm",
];

/// systemd's own private folders, one per service with `PrivateTmp`, made anew with a random name
/// at each of its starts.
const PRIVATE_TMP: &str = "systemd-private-";

/// The daemon's daily copies of its database: one more after midnight is no leak.
const BACKUPS: &str = "/var/lib/banger/backups/banger-";

/// `SO_ACCEPTCON` as `/proc/net/unix` shows it.
const LISTENING: u32 = 0x0001_0000;

pub(super) fn collect(inventory: &mut Inventory) -> Result<()> {
    collect_quickly(inventory)?;
    ports(&output("ss", &["--no-header", "--listening", "--numeric", "--tcp", "--udp"])?, inventory);
    ports(&output("ss", &["--no-header", "--listening", "--numeric", "--vsock"])?, inventory);
    Ok(())
}

/// All but the ports.
pub(super) fn collect_quickly(inventory: &mut Inventory) -> Result<()> {
    mounts(&fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?, inventory);
    unix_sockets(&fs::read_to_string("/proc/net/unix").context("read the unix sockets")?, inventory);
    for root in ROOTS {
        walk(Path::new(root), inventory)?;
    }
    Ok(())
}

/// Format: proc_pid_mountinfo(5). Fields after the separator ` - ` are type, source and options of
/// the superblock.
fn mounts(text: &str, inventory: &mut Inventory) {
    for line in text.lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let mut head = head.split(' ').skip(3);
        let (root, point, options) =
            (head.next().unwrap_or_default(), head.next().unwrap_or_default(), head.next().unwrap_or_default());
        let mut tail = tail.split(' ');
        let (kind, source) = (tail.next().unwrap_or_default(), tail.next().unwrap_or_default());
        inventory.add(Kind::Mount, point, format!("{kind} from {source} {root}, {options}"));
    }
}

fn unix_sockets(text: &str, inventory: &mut Inventory) {
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(flags), Some(path)) = (fields.get(3), fields.get(7)) else { continue };
        if u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & LISTENING != 0) {
            inventory.add(Kind::Socket, format!("unix {}", without_descriptor(path)), "");
        }
    }
}

/// A socket that was bound through a descriptor is listed by its number, which is another one after
/// each restart of who bound it.
fn without_descriptor(path: &str) -> String {
    let own = path.strip_prefix("/proc/self/fd/").and_then(|rest| rest.split_once('/'));
    own.map_or_else(|| path.to_owned(), |(_, name)| format!("/proc/self/fd/N/{name}"))
}

/// `ss` prints protocol, state, two queues, local and peer address. With one protocol only it
/// leaves the first column out, but never for vsock.
fn ports(text: &str, inventory: &mut Inventory) {
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let (Some(protocol), Some(local)) = (fields.first(), fields.get(4)) {
            inventory.add(Kind::Socket, format!("{protocol} {local}"), "");
        }
    }
}

fn walk(path: &Path, inventory: &mut Inventory) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // Not there, or gone while the tree was walked.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("stat {}", path.display())),
    };
    let kind = metadata.file_type();
    let owner = format!("{:04o} {}:{}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    let detail = if kind.is_dir() {
        format!("folder {owner}")
    } else if kind.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        format!("link to {}", target.display())
    } else if kind.is_socket() {
        format!("socket {owner}")
    } else {
        format!("file {owner} {} bytes", metadata.len())
    };
    inventory.add(Kind::File, path.display().to_string(), detail);
    if !kind.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        let passing = entry.file_name().to_string_lossy().starts_with(PRIVATE_TMP);
        if !passing && !path.to_string_lossy().starts_with(BACKUPS) {
            walk(&path, inventory)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inventory: &Inventory, kind: Kind) -> Vec<String> {
        inventory.of(kind).map(|(name, detail)| format!("{name}|{detail}")).collect()
    }

    #[test]
    fn a_mount_is_named_by_its_point() {
        let text = "36 35 98:0 /sub /mnt/a rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n\
                    40 35 0:5 / /dev rw,nosuid - devtmpfs udev rw\n";
        let mut inventory = Inventory::default();
        mounts(text, &mut inventory);
        assert_eq!(
            names(&inventory, Kind::Mount),
            ["/dev|devtmpfs from udev /, rw,nosuid", "/mnt/a|ext4 from /dev/root /sub, rw,noatime"]
        );
    }

    #[test]
    fn only_listening_sockets_count() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17143 /run/banger/bangerd.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 17144 /run/banger/bangerd.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17145 @abstract\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17146\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17147 /proc/self/fd/27/vsock.sock_10001\n";
        let mut inventory = Inventory::default();
        unix_sockets(text, &mut inventory);
        ports(
            "udp   UNCONN 0      0      127.0.0.1:42069   0.0.0.0:*\ntcp   LISTEN 0      128      [::]:22      [::]:*\n",
            &mut inventory,
        );
        ports("v_str LISTEN 0      0      *:10001      *:*\n", &mut inventory);
        assert_eq!(
            names(&inventory, Kind::Socket),
            [
                "tcp [::]:22|",
                "udp 127.0.0.1:42069|",
                "unix /proc/self/fd/N/vsock.sock_10001|",
                "unix /run/banger/bangerd.sock|",
                "unix @abstract|",
                "v_str *:10001|"
            ]
        );
    }

    #[test]
    fn files_carry_mode_owner_and_size_and_private_folders_are_left_out() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::write(root.path().join("a"), "12345")?;
        fs::create_dir(root.path().join("systemd-private-x"))?;
        let mut inventory = Inventory::default();
        walk(root.path(), &mut inventory)?;
        let seen = names(&inventory, Kind::File);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen.iter().any(|line| line.contains("/a|file 06") && line.ends_with(" 5 bytes")), "{seen:?}");
        Ok(())
    }
}
