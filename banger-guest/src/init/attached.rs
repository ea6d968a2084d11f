//! Which block devices this VM has, by the names that `/etc/fstab` uses for them.
//!
//! All disks of a VM are there before it boots, and none comes later; our own have an ext4 without
//! a partition table. So init can tell what is not there without waiting for it. Whatever leaves a
//! doubt counts as attached: the guest then waits, as any machine does.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What the guest itself makes out of files and memory: no disk of another machine has such a name.
const MADE_LATER: [&str; 4] = ["/dev/loop", "/dev/zram", "/dev/ram", "/dev/nbd"];
/// What names our disks in `/dev/disk/by-id` and `/dev/disk/by-path`, which udev makes later.
const OURS: [&str; 2] = ["virtio", "platform-"];

/// Start of ext4's superblock, and what is in it (`Documentation/filesystems/ext4/super.rst`).
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();
const MAGIC_AT: usize = 0x38;
const UUID_AT: usize = 0x68;
const LABEL_AT: usize = 0x78;

/// The block devices of a VM.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Attached {
    /// Of file systems, lower case.
    uuids: BTreeSet<String>,
    labels: BTreeSet<Vec<u8>>,
    /// There is a device with something else on it.
    unknown: bool,
    /// There are partitions, which have names of their own.
    partitions: bool,
}

impl Attached {
    /// Looks at the devices that the kernel lists in `class` (`/sys/class/block`), whose nodes are
    /// in `nodes`.
    pub(super) fn read(class: &Path, nodes: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(class)? {
            let name = entry?.file_name();
            let made_later =
                MADE_LATER.iter().any(|made| Path::new("/dev").join(&name).to_string_lossy().starts_with(made));
            let empty = fs::read_to_string(class.join(&name).join("size")).is_ok_and(|size| size.trim() == "0");
            if made_later || empty {
                continue;
            }
            found.partitions |= class.join(&name).join("partition").exists();
            found.add(File::open(nodes.join(&name)).and_then(|device| {
                let mut superblock = [0; 256];
                device.read_exact_at(&mut superblock, SUPERBLOCK)?;
                Ok(superblock)
            }));
        }
        Ok(found)
    }

    fn add(&mut self, superblock: io::Result<[u8; 256]>) {
        let Ok(superblock) = superblock else {
            self.unknown = true;
            return;
        };
        let field = |at: usize, length: usize| superblock.get(at..at + length).unwrap_or_default();
        if field(MAGIC_AT, 2) != MAGIC {
            self.unknown = true;
            return;
        }
        let digits = field(UUID_AT, 16).iter().map(|byte| format!("{byte:02x}"));
        self.uuids.insert(digits.collect());
        let label = field(LABEL_AT, 16).split(|byte| *byte == 0).next().unwrap_or_default();
        self.labels.insert(label.to_owned());
    }

    /// Whether `source`, a device or a tag as in fstab(5), is certainly not among them. `mapped`
    /// are the names that the guest's own `/etc/crypttab` will make in `/dev/mapper`; `exists`
    /// looks for a node.
    pub(super) fn lacks(&self, source: &str, mapped: &BTreeSet<String>, exists: impl Fn(&str) -> bool) -> bool {
        let Some((kind, value)) = tag(source) else {
            let ours = MADE_LATER.iter().any(|made| source.starts_with(made))
                || source.strip_prefix("/dev/mapper/").is_some_and(|name| mapped.contains(name));
            return source.starts_with("/dev/") && !ours && !exists(source);
        };
        match kind {
            "UUID" => {
                let digits: String = value.chars().filter(|c| *c != '-').collect();
                !self.unknown && !self.uuids.contains(&digits.to_lowercase())
            }
            "LABEL" => !self.unknown && !self.labels.contains(value.as_bytes()),
            "PARTUUID" | "PARTLABEL" => !self.partitions,
            _ => !OURS.iter().any(|ours| value.contains(ours)),
        }
    }
}

/// A tag and its value, also of a path in `/dev/disk`.
pub(super) fn tag(source: &str) -> Option<(&'static str, &str)> {
    const TAGS: [(&str, &str); 6] = [
        ("UUID", "uuid"),
        ("LABEL", "label"),
        ("PARTUUID", "partuuid"),
        ("PARTLABEL", "partlabel"),
        ("ID", "id"),
        ("PATH", "path"),
    ];
    let of_path = source.strip_prefix("/dev/disk/by-").and_then(|rest| rest.split_once('/'));
    TAGS.into_iter().find_map(|(tag, folder)| match (of_path, source.split_once('=')) {
        (Some((name, value)), _) => (name == folder).then_some((tag, value)),
        (None, Some((name, value))) => (name == tag && tag != "PATH").then_some((tag, value.trim_matches('"'))),
        (None, None) => None,
    })
}

/// Where udev puts a device of this tag (`udev_node_escape_path`, `encode_devnode_name` in
/// systemd).
pub(super) fn udev_path(source: &str) -> String {
    match (source.starts_with("/dev/"), tag(source)) {
        (false, Some((kind, value))) => format!("/dev/disk/by-{}/{}", kind.to_lowercase(), udev_name(value)),
        _ => source.to_owned(),
    }
}

fn udev_name(value: &str) -> String {
    let plain = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c);
    value.chars().map(|c| if plain(c) { c.to_string() } else { format!("\\x{:02x}", u32::from(c)) }).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn ext4(label: &[u8], uuid: u8) -> [u8; 256] {
        let mut block = [0; 256];
        block[MAGIC_AT..][..2].copy_from_slice(&MAGIC);
        block[UUID_AT..][..16].fill(uuid);
        block[LABEL_AT..][..label.len()].copy_from_slice(label);
        block
    }

    fn lacks(attached: &Attached, source: &str) -> bool {
        attached.lacks(source, &["secret".to_owned()].into(), |path| path == "/dev/vda" || path == "/dev/cdrom")
    }

    #[test]
    fn what_is_not_there_is_known() {
        let mut attached = Attached::default();
        attached.add(Ok(ext4(b"root", 0xab)));
        attached.add(Ok(ext4(b"sixteen letters.", 0x12)));
        let there = [
            "UUID=abababab-abab-abab-abab-abababababab",
            "UUID=\"ABABABAB-abab-abab-abab-abababababab\"",
            "/dev/disk/by-uuid/12121212-1212-1212-1212-121212121212",
            "LABEL=root",
            "LABEL=sixteen letters.",
            "/dev/vda",
            "/dev/cdrom",
            "/dev/loop7",
            "/dev/zram0",
            "/dev/mapper/secret",
            "/dev/disk/by-id/virtio-work",
            "ID=virtio-work",
            // No devices.
            "tmpfs",
            "/srv/swapfile",
            "server:/export",
            "//server/share",
            "overlay",
            "name=systemd",
        ];
        for source in there {
            assert!(!lacks(&attached, source), "{source}");
        }
        let not_there = [
            "UUID=11111111-2222-3333-4444-555555555555",
            "UUID=ABCD-1234",
            "LABEL=data",
            "LABEL=",
            "PARTUUID=01020304-01",
            "PARTLABEL=EFI System Partition",
            "/dev/disk/by-partuuid/01020304-01",
            "/dev/disk/by-id/ata-DISK_123-part1",
            "/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
            "/dev/sda1",
            "/dev/vda1",
            "/dev/mapper/vg-root",
            "/dev/vg/root",
        ];
        for source in not_there {
            assert!(lacks(&attached, source), "{source}");
        }
    }

    #[test]
    fn a_doubt_counts_as_attached() {
        let unknown = Attached { unknown: true, ..Attached::default() };
        assert!(!lacks(&unknown, "UUID=1") && !lacks(&unknown, "LABEL=x") && lacks(&unknown, "/dev/sdb"));
        let partitioned = Attached { partitions: true, ..Attached::default() };
        assert!(!lacks(&partitioned, "PARTUUID=1") && !lacks(&partitioned, "PARTLABEL=x"));
    }

    #[test]
    fn devices_are_found_in_the_kernels_list() {
        let folder = tempfile::tempdir().unwrap();
        let (class, nodes) = (folder.path().join("class"), folder.path().join("dev"));
        let device = |name: &str, size: &str, content: &[u8]| {
            fs::create_dir_all(class.join(name)).unwrap();
            fs::create_dir_all(&nodes).unwrap();
            fs::write(class.join(name).join("size"), size).unwrap();
            fs::write(nodes.join(name), content).unwrap();
        };
        let disk = [&[0; 1024][..], &ext4(b"root", 0xab)].concat();
        device("vda", "8\n", &disk);
        device("loop0", "8\n", b"no file system");
        device("sr0", "0\n", b"");
        let read = || Attached::read(&class, &nodes).unwrap();
        let mut expected = Attached::default();
        expected.add(Ok(ext4(b"root", 0xab)));
        assert_eq!(read(), expected);
        device("vdb", "8\n", b"swap or so");
        fs::create_dir(class.join("vdb/partition")).unwrap();
        assert_eq!(read(), Attached { unknown: true, partitions: true, ..expected });
    }

    #[test]
    fn tags_have_a_place_in_dev() {
        assert_eq!(udev_path("UUID=\"ABCD-1234\""), "/dev/disk/by-uuid/ABCD-1234");
        assert_eq!(udev_path("LABEL=my disk/2"), "/dev/disk/by-label/my\\x20disk\\x2f2");
        assert_eq!(udev_path("/dev/sda1"), "/dev/sda1");
        assert_eq!(udev_path("/dev/disk/by-label/x"), "/dev/disk/by-label/x");
    }
}
