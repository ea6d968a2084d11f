//! Entries of the image's `/etc/fstab` that name a disk of another machine, and what systemd makes
//! of them.
//!
//! systemd waits 90 s for each and then goes into its emergency mode. The file itself is the user's
//! and stays as it is, also for what is written to it later: each boot looks again, and what it
//! finds lies under `/run` ([`super::systemd`]). Other inits say that they cannot mount it and go
//! on.

use std::collections::BTreeSet;

use super::attached::{Attached, udev_path};
use super::systemd::{File, NEVER, unit_of};

/// Options by which an entry is not mounted at boot, or says itself how long it is waited for.
const LEFT_ALONE: [&str; 4] = ["noauto", "_netdev", "x-systemd.automount", "x-systemd.device-timeout"];
/// As good as none: 0 would mean for ever.
const DEVICE_WAIT: &str = "1ms";

/// A line of fstab(5).
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    source: String,
    target: String,
    is_swap: bool,
    options: String,
}

impl Entry {
    /// `None` for what is no entry, and for names that no unit file can hold.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().map(unescape);
        let [source, target, kind] = [fields.next()??, fields.next()??, fields.next()??];
        let options = fields.next().flatten().unwrap_or_default();
        (!source.starts_with('#')).then(|| Self { source, target, is_swap: kind == "swap", options })
    }
}

fn is_left_alone(options: &str) -> bool {
    options.split(',').any(|option| LEFT_ALONE.contains(&option.split('=').next().unwrap_or_default()))
}

/// A field with its `\040`. `None` for control characters and backslashes.
fn unescape(field: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(|c| c.is_control() || c == '\\'))
}

/// What a crypttab(5) is told: its devices that are not attached are not waited for either, and the
/// names that it makes of the others in `/dev/mapper`.
pub(super) fn crypttab(
    text: &str,
    attached: &Attached,
    exists: impl Fn(&str) -> bool,
) -> (Vec<File>, BTreeSet<String>) {
    let (mut files, mut mapped) = (Vec::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(name), Some(device)) = (fields.next(), fields.next()) else { continue };
        if is_left_alone(fields.nth(1).unwrap_or_default()) || !attached.lacks(device, &BTreeSet::new(), &exists) {
            mapped.insert(name.to_owned());
        } else {
            files.push(no_wait(device));
        }
    }
    (files, mapped)
}

/// What to tell systemd about the entries of `fstab` whose devices are not attached, and their
/// sources. `real` follows the links in a mount point, as systemd does for the name of the unit.
pub(super) fn without_device(
    fstab: &str,
    attached: &Attached,
    mapped: &BTreeSet<String>,
    exists: impl Fn(&str) -> bool,
    real: impl Fn(&str) -> String,
) -> (Vec<File>, Vec<String>) {
    let entries = fstab.lines().filter_map(Entry::parse);
    let missing = |entry: &Entry| !is_left_alone(&entry.options) && attached.lacks(&entry.source, mapped, &exists);
    let (mut files, mut sources) = (Vec::new(), Vec::new());
    for entry in entries.filter(missing) {
        if entry.is_swap {
            files.push(no_wait(&entry.source));
        } else if entry.target == "/" {
            // It is mounted, and by its device nothing is waited for; but mounting it anew would
            // fail.
            files.push(File::drop_in("systemd-remount-fs.service", NEVER));
        } else if entry.target.starts_with('/') {
            let real = real(&entry.target);
            if real != entry.target {
                files.push(skipped(&entry, &real));
            }
            files.push(skipped(&entry, &entry.target));
        } else {
            continue;
        }
        sources.push(entry.source);
    }
    (files, sources)
}

/// A unit in place of the one that systemd would make of the entry. It is skipped, which is no
/// failure, so that what requires it goes on; and it needs no device.
fn skipped(entry: &Entry, target: &str) -> File {
    let plain = |text: &str| text.replace('%', "%%");
    let (source, place) = (plain(&entry.source), plain(target));
    let unit =
        format!("[Unit]\nDescription={place} ({source} is not attached)\n{NEVER}[Mount]\nWhat=none\nWhere={place}\n");
    File::unit(&unit_of(target, "mount"), &unit)
}

/// The unit of a swap or of an encrypted device is bound to its device, whatever its file says.
/// What wants it goes on without it.
fn no_wait(source: &str) -> File {
    File::drop_in(&unit_of(&udev_path(source), "device"), &format!("[Unit]\nJobTimeoutSec={DEVICE_WAIT}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FSTAB: &str = "\
# comment
UUID=1 / ext4 errors=remount-ro 0 1

UUID=2\t/boot/efi vfat umask=0077 0 1
LABEL=my\\040disk /srv/my\\040data xfs defaults,nofail 0 0
/dev/sdb1 /media/100%-cd auto ro 0 0
/dev/sdc1 /mnt auto ro,noauto 0 0
/dev/sdc1 /slow auto ro,x-systemd.device-timeout=5 0 0
/dev/sdc1 /net auto _netdev 0 0
/dev/sda5 none swap sw 0 0
UUID=3 swap swap
/dev/vda /again ext4 defaults 0 0
tmpfs /tmp tmpfs size=10m 0 0
server:/export /nfs nfs defaults 0 0
/dev/sdd1 bad\\012name ext4 defaults 0 0
short /line
";

    fn made(fstab: &str) -> (Vec<File>, Vec<String>) {
        let real = |path: &str| path.replace("/media", "/run/media");
        without_device(fstab, &Attached::default(), &BTreeSet::new(), |path| path == "/dev/vda", real)
    }

    #[test]
    fn only_entries_without_their_device_are_told() {
        let (files, sources) = made(FSTAB);
        let paths: Vec<&str> = files.iter().map(|file| file.path.trim_start_matches("/run/systemd/system/")).collect();
        let expected = [
            "systemd-remount-fs.service.d/50-banger.conf",
            "boot-efi.mount",
            "srv-my\\x20data.mount",
            "run-media-100\\x25\\x2dcd.mount",
            "media-100\\x25\\x2dcd.mount",
            "dev-sda5.device.d/50-banger.conf",
            "dev-disk-by\\x2duuid-3.device.d/50-banger.conf",
        ];
        assert_eq!(paths, expected);
        assert_eq!(sources, ["UUID=1", "UUID=2", "LABEL=my disk", "/dev/sdb1", "/dev/sda5", "UUID=3"]);
    }

    #[test]
    fn a_unit_is_skipped_and_needs_no_device() {
        let (files, _) = made("/dev/sdb1 /media/100%-cd auto ro 0 0\n");
        let expected = "[Unit]\nDescription=/run/media/100%%-cd (/dev/sdb1 is not attached)\n\
                        ConditionPathExists=!/\n[Mount]\nWhat=none\nWhere=/run/media/100%%-cd\n";
        assert!(files.first().is_some_and(|file| file.content.ends_with(expected)), "{files:?}");
    }

    #[test]
    fn a_crypttab_waits_for_nothing_that_is_not_attached() {
        let text =
            "# name device\nhere /dev/vda none luks\nlater /dev/sdb1 none noauto\nshort\n\n gone UUID=1 none luks\n";
        let (files, mapped) = crypttab(text, &Attached::default(), |path| path == "/dev/vda");
        assert_eq!(mapped, ["here".to_owned(), "later".to_owned()].into());
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["/run/systemd/system/dev-disk-by\\x2duuid-1.device.d/50-banger.conf"]);
    }

    #[test]
    fn fields_are_unescaped_or_refused() {
        assert_eq!(unescape("a\\040b\\011"), None);
        assert_eq!(unescape("a\\040b").as_deref(), Some("a b"));
        assert_eq!(unescape("\\134"), None);
        assert_eq!(unescape("tail\\04"), None);
        assert_eq!(unescape("\\303\\244").as_deref(), Some("ä"));
    }
}
