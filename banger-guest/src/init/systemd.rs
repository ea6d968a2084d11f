//! What a systemd of the image is told before it starts: files under `/run`, which are gone with
//! the boot.
//!
//! Called by `init` when systemd is what it executes: the folder `/run/systemd/system` says to
//! every program that systemd is PID 1 (`sd_booted(3)`). systemd keeps a `/run` that is mounted
//! already. Files here come before those of the distribution in `/usr/lib` and before generated
//! ones, and behind the user's own in `/etc`, so everything can be overridden there
//! (`systemd.unit(5)`).

use std::path::Path;

use super::attached::Attached;
use super::fstab;
use super::image::Image;
use super::network::INTERFACE;
use crate::console::say;

/// A condition that never holds: the unit is skipped, and counts as started for those that want or
/// require it.
pub(super) const NEVER: &str = "ConditionPathExists=!/\n";
const FOLDER: &str = "/run/systemd/system";
const SAID: &str = "# Made by banger at each boot.\n";
/// Longest fstab or crypttab, bytes.
const MAX_TABLE: u64 = 1 << 20;

/// Units that are skipped. The network is "online" before systemd starts, and what waits for that
/// takes up to five minutes when it manages no interface; a DHCP client takes every interface there
/// is; and the agent has the vsock port that systemd would give to sshd
/// (`systemd-ssh-generator(8)`).
const WITHOUT: [&str; 8] = [
    "systemd-networkd-wait-online.service",
    "systemd-networkd-wait-online@.service",
    "NetworkManager-wait-online.service",
    "ifupdown-wait-online.service",
    "connman-wait-online.service",
    "dhcpcd.service",
    "dhcpcd@.service",
    "sshd-vsock.socket",
];

/// A file to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) content: String,
}

impl File {
    /// A whole unit, in place of another of that name.
    pub(super) fn unit(name: &str, content: &str) -> Self {
        Self { path: format!("{FOLDER}/{name}"), content: format!("{SAID}{content}") }
    }

    /// More for a unit that there is or is not. `content` without a section belongs to `[Unit]`.
    pub(super) fn drop_in(unit: &str, content: &str) -> Self {
        let section = if content.starts_with('[') { "" } else { "[Unit]\n" };
        Self { path: format!("{FOLDER}/{unit}.d/50-banger.conf"), content: format!("{SAID}{section}{content}") }
    }
}

/// Writes all that this boot needs. What cannot be written is said and costs the guest time.
pub(super) fn prepare(image: &Image) {
    let mut files = network();
    let (missing, sources) = disks(image);
    files.extend(missing);
    for source in sources {
        say(format_args!("/etc/fstab names {source}, which is not attached; its entry is left out"));
    }
    for File { path, content } in files {
        if let Err(error) = image.write(&path, content.as_bytes(), 0o644) {
            say(format_args!("{path}: {error}"));
        }
    }
}

/// `eth0` has its address and its name; systemd-networkd lets it be. The names sort before those of
/// any other file (`systemd.network(5)`: the first that matches counts).
fn network() -> Vec<File> {
    let file = |kind: &str, content: String| File {
        path: format!("/run/systemd/network/0-banger.{kind}"),
        content: format!("{SAID}{content}"),
    };
    let mut files = vec![
        file("network", format!("[Match]\nName={INTERFACE}\n[Link]\nUnmanaged=yes\n")),
        file("link", format!("[Match]\nOriginalName={INTERFACE}\n[Link]\nName={INTERFACE}\n")),
    ];
    files.extend(WITHOUT.map(|unit| File::drop_in(unit, NEVER)));
    files
}

fn disks(image: &Image) -> (Vec<File>, Vec<String>) {
    let text = |path: &str| match image.read(path, MAX_TABLE) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => String::new(),
    };
    let attached = match Attached::read(Path::new("/sys/class/block"), Path::new("/dev")) {
        Ok(attached) => attached,
        Err(error) => {
            say(format_args!("/etc/fstab is not looked at, because the disks are not known: {error}"));
            return (Vec::new(), Vec::new());
        }
    };
    let exists = |path: &str| image.exists(path);
    let real = |path: &str| match image.seen(path) {
        Some(real) => real.to_string_lossy().into_owned(),
        None => path.to_owned(),
    };
    let (mut files, mapped) = fstab::crypttab(&text("/etc/crypttab"), &attached, exists);
    let (more, sources) = fstab::without_device(&text("/etc/fstab"), &attached, &mapped, exists, real);
    files.extend(more);
    (files, sources)
}

/// The name of the unit for a path (`systemd-escape --path`).
pub(super) fn unit_of(path: &str, kind: &str) -> String {
    let mut name = String::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if !name.is_empty() {
            name.push('-');
        }
        for byte in part.bytes() {
            let plain = byte.is_ascii_alphanumeric() || b":_.".contains(&byte);
            if plain && !(byte == b'.' && name.is_empty()) {
                name.push(byte.into());
            } else {
                name.push_str(&format!("\\x{byte:02x}"));
            }
        }
    }
    if name.is_empty() {
        name.push('-');
    }
    format!("{name}.{kind}")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::process::Command;

    #[test]
    fn units_have_the_names_that_systemd_gives_them() {
        let paths = ["/", "/srv", "/srv/my data", "/.hidden/.a", "//a//b/", "/100%-ä", "/a\\b", "/a_b:c.d", "/./a"];
        let expected = [
            "-",
            "srv",
            "srv-my\\x20data",
            "\\x2ehidden-.a",
            "a-b",
            "100\\x25\\x2d\\xc3\\xa4",
            "a\\x5cb",
            "a_b:c.d",
            "a",
        ];
        for (path, name) in paths.into_iter().zip(expected) {
            assert_eq!(unit_of(path, "mount"), format!("{name}.mount"), "{path}");
        }
        // Where there is a systemd-escape, it says the same.
        for path in paths {
            if let Ok(output) = Command::new("systemd-escape").args(["--path", "--suffix=mount", path]).output()
                && output.status.success()
            {
                assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), unit_of(path, "mount"), "{path}");
            }
        }
    }

    #[test]
    fn files_lie_below_run_and_say_whose_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::at(folder.path());
        prepare(&image);
        let condition = image.read("/run/systemd/system/dhcpcd.service.d/50-banger.conf", 1000).unwrap();
        assert_eq!(String::from_utf8(condition).unwrap(), format!("{SAID}[Unit]\n{NEVER}"));
        assert_eq!(image.names("/"), ["run"]);
        let mut names = image.names("/run/systemd/network");
        names.sort();
        assert_eq!(names, ["0-banger.link", "0-banger.network"]);
    }
}
