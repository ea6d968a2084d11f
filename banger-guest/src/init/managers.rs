//! The network managers of the image: told in advance that `eth0` is not theirs.
//!
//! Called by `init` under any init of the image. Each is told in its own way, in files under `/run`
//! that are gone with the boot. For systemd-networkd see [`super::systemd`].

use super::image::Image;
use super::network::INTERFACE;
use crate::console::say;

const NETWORK_MANAGERS: [&str; 2] = ["/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"];
const IFUPS: [&str; 2] = ["/sbin/ifup", "/usr/sbin/ifup"];

pub(super) fn prepare(image: &Image) {
    let has = |programs: &[&str]| programs.iter().any(|path| image.exists(path));
    let mut files = Vec::new();
    if has(&NETWORK_MANAGERS) {
        // A section of its own adds to what the image's configuration says; the key
        // `unmanaged-devices` would be replaced by it (NetworkManager.conf(5)).
        let section = format!("[device-0-banger]\nmatch-device=interface-name:{INTERFACE}\nmanaged=0\n");
        files.push(("/run/NetworkManager/conf.d/0-banger.conf", section));
    }
    if has(&IFUPS) {
        // An interface that is configured already is passed over, and `lo` is not: ifupdown of
        // Debian, which has a file for each interface and one for all, and those of busybox and
        // Alpine.
        files.push(("/run/network/ifstate.eth0", format!("{INTERFACE}\n")));
        files.push(("/run/network/ifstate", format!("{INTERFACE}={INTERFACE}\n")));
        files.push(("/run/ifstate", format!("{INTERFACE}={INTERFACE} 1\n")));
    }
    for (path, content) in files {
        if let Err(error) = image.write(path, content.as_bytes(), 0o644) {
            say(format_args!("{path}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_managers_that_are_there_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::at(folder.path());
        prepare(&image);
        assert!(!image.exists("/run"));
        image.write("/usr/sbin/ifup", b"", 0o755).unwrap();
        prepare(&image);
        assert_eq!(image.read("/run/network/ifstate", 100).unwrap(), b"eth0=eth0\n");
        assert!(!image.exists("/run/NetworkManager"));
        image.write("/usr/sbin/NetworkManager", b"", 0o755).unwrap();
        prepare(&image);
        assert!(image.exists("/run/NetworkManager/conf.d/0-banger.conf"));
    }
}
