//! The files by which a guest knows its own name and its resolver.
//!
//! Called by `init` after the switch to the image's root, so links in the image lead inside it. A file
//! that cannot be written is said on the console and does not stop the boot.

use banger_proto::guest::GuestConfig;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::console::say;

/// The end of a line in `/etc/hosts` that is ours and is replaced at each boot.
const MARK: &str = "# banger";
/// Larger files are not what they claim to be; PID 1 does not read them.
const MAX_HOSTS: u64 = 1024 * 1024;

pub(super) fn apply(config: &GuestConfig) {
    if let Err(error) = nix::unistd::sethostname(&config.hostname) {
        say(format_args!("cannot set the host name: {error}"));
    }
    if let Err(error) = fs::create_dir_all("/etc") {
        say(format_args!("/etc: {error}"));
    }
    let hosts = hosts(&read_hosts(Path::new("/etc/hosts")), config);
    write("/etc/hostname", &format!("{}\n", config.hostname));
    write("/etc/hosts", &hosts);
    write("/etc/resolv.conf", &format!("nameserver {}\n", config.dns));
    if let Err(error) = machine_id(Path::new("/etc/machine-id")) {
        say(format_args!("/etc/machine-id: {error}"));
    }
}

fn read_hosts(path: &Path) -> String {
    let mut text = Vec::new();
    let _ = fs::File::open(path).and_then(|file| file.take(MAX_HOSTS).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// The image's hosts file with our line in it: other lines stay, our line of an earlier boot goes, and
/// so does 127.0.1.1, by which Debian names the machine.
fn hosts(old: &str, config: &GuestConfig) -> String {
    let address = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let kept = || old.lines().filter(|l| !l.trim_end().ends_with(MARK) && address(l).as_deref() != Some("127.0.1.1"));
    let mut text = String::new();
    if !kept().any(|line| address(line).as_deref() == Some("127.0.0.1")) {
        text.push_str("127.0.0.1\tlocalhost\n");
    }
    for line in kept() {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&format!("{}\t{} {MARK}\n", config.address, config.hostname));
    text
}

/// Gives the machine an identity when the image has none. Without it systemd takes the boot for the
/// first one and may ask for a locale on a console that nobody answers.
fn machine_id(path: &Path) -> io::Result<()> {
    let present = fs::read_to_string(path).unwrap_or_default();
    if !matches!(present.trim(), "" | "uninitialized") {
        return Ok(());
    }
    if !Path::new("/usr/lib/systemd").exists() && !Path::new("/lib/systemd").exists() && !path.exists() {
        return Ok(());
    }
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let id: String = uuid.trim().chars().filter(|c| *c != '-').collect();
    replace(path, &format!("{id}\n"))
}

fn write(path: &str, text: &str) {
    if let Err(error) = replace(Path::new(path), text) {
        say(format_args!("{path}: {error}"));
    }
}

/// Puts a new file in the place of whatever is there. A link (`/etc/resolv.conf` into `/run`, often) is
/// replaced and never followed.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".banger");
    let temporary = Path::new(&name);
    match fs::remove_file(temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(temporary)?;
    file.write_all(text.as_bytes())?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::net::Ipv4Addr;

    fn config() -> GuestConfig {
        GuestConfig {
            hostname: "web".into(),
            address: Ipv4Addr::new(172, 16, 0, 2),
            gateway: Ipv4Addr::new(172, 16, 0, 1),
            dns: Ipv4Addr::new(1, 1, 1, 1),
            daemon_key: String::new(),
            authorized_keys: Vec::new(),
            host_key: String::new(),
            control_port: 10001,
            token: banger_proto::guest::BootToken::new([1; 32]),
            root_device: "/dev/vda".into(),
            work_device: None,
            image: banger_policy::ImageConfig::default(),
        }
    }

    #[test]
    fn an_empty_hosts_file_gets_both_lines() {
        assert_eq!(hosts("", &config()), "127.0.0.1\tlocalhost\n172.16.0.2\tweb # banger\n");
    }

    #[test]
    fn foreign_lines_stay_and_ours_is_replaced() {
        let old = "127.0.0.1 localhost\n127.0.1.1 debian\n::1 ip6-localhost\n10.0.0.9 db\n172.16.0.7\told # banger\n";
        let new = "127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.9 db\n172.16.0.2\tweb # banger\n";
        assert_eq!(hosts(old, &config()), new);
        assert_eq!(hosts(new, &config()), new);
    }

    #[test]
    fn a_link_is_replaced_and_its_target_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let link = folder.path().join("resolv.conf");
        fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        replace(&link, "ours").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read_to_string(&link).unwrap(), "ours");
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    }

    #[test]
    fn a_machine_id_is_kept_or_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine-id");
        fs::write(&path, "0123\n").unwrap();
        machine_id(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "0123\n");
        fs::write(&path, "uninitialized\n").unwrap();
        machine_id(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().trim().len(), 32);
    }
}
