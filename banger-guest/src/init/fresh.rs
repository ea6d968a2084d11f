//! What must be this VM's own, whatever the image brings: machine id, random seeds, SSH host keys.
//!
//! Called by `init` at each boot. All VMs of an image begin with the same files, so the first boot
//! of a VM replaces them; from then on they are the guest's. Which VM a root disk has been used by
//! is written on it ([`MARKER`]), as the fingerprint of the host key that the daemon gives to the
//! VM, so that the root of one VM made into an image for others is an image like any other. Nothing
//! here stops the boot.

use banger_proto::guest::GuestConfig;
use russh::keys::ssh_key::{HashAlg, LineEnding};
use russh::keys::{Algorithm, PrivateKey, key};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::identity::{can_be_covered, cover};
use super::image::Image;
use crate::console::say;

/// Says for which VM this root was made fresh.
const MARKER: &str = "/var/lib/banger/fresh-for";
const MACHINE_ID: &str = "/etc/machine-id";
/// D-Bus's own, often a link to the other.
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
/// A machine id has 32 digits and a line end.
const MAX_ID: u64 = 64;
/// Where systemd, sysvinit, OpenRC, busybox and old distributions keep what the kernel's random
/// generator is fed at a boot. The same bytes in every VM of an image are no secret.
const SEEDS: [&str; 7] = [
    "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed",
    "/var/lib/misc/random-seed",
    "/var/lib/random-seed",
    "/var/lib/seedrng/seed.credit",
    "/var/lib/seedrng/seed.no-credit",
    "/etc/random-seed",
];
const SSH: &str = "/etc/ssh";
const SSHD: [&str; 2] = ["/usr/sbin/sshd", "/usr/bin/sshd"];
const SSH_KEYGEN: &str = "/usr/bin/ssh-keygen";
/// dropbear makes its own when it finds none (`-R`, which every distribution sets).
const DROPBEAR: &str = "/etc/dropbear";
/// Longest sshd_config, bytes.
const MAX_SSHD_CONFIG: u64 = 1 << 20;

pub(super) fn apply(image: &Image, config: &GuestConfig) {
    let vm = match PrivateKey::from_openssh(&config.host_key) {
        Ok(key) => key.public_key().fingerprint(HashAlg::Sha256).to_string(),
        // The agent says the same and cannot work.
        Err(error) => return say(format_args!("the VM's host key is not usable: {error}")),
    };
    let first = !image.read(MARKER, 200).is_ok_and(|of| of.trim_ascii() == vm.as_bytes());
    if let Err(error) = machine_id(image, first) {
        say(format_args!("{MACHINE_ID}: {error}"));
    }
    if !first {
        return;
    }
    for seed in SEEDS {
        if let Err(error) = image.remove(seed) {
            say(format_args!("{seed}: {error}"));
        }
    }
    if let Err(error) = host_keys(image) {
        say(format_args!("the SSH host keys of the image are not replaced: {error}"));
    }
    // Last: a boot that was cut short does it all again.
    if let Err(error) = image.write(MARKER, format!("{vm}\n").as_bytes(), 0o644) {
        say(format_args!("{MARKER}: {error}; the next boot takes itself for the first one, too"));
    }
}

/// Replaces the machine id at the first boot, and later where there is none.
///
/// systemd takes a boot without an id, or with `uninitialized`, for the first of an installation,
/// and may ask for a locale on a console that nobody answers: so it always finds one.
fn machine_id(image: &Image, first: bool) -> io::Result<()> {
    let present = image.read(MACHINE_ID, MAX_ID).unwrap_or_default();
    if !first && is_id(present.trim_ascii()) {
        return Ok(());
    }
    let itself = |path: &str| image.itself(Path::new(path)).is_ok_and(|here| fs::symlink_metadata(here).is_ok());
    let (wanted, dbus) = (itself(MACHINE_ID) || has_systemd(image), itself(DBUS_MACHINE_ID));
    if !wanted && !dbus {
        return Ok(());
    }
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let id: String = uuid.chars().filter(char::is_ascii_hexdigit).chain(['\n']).collect();
    if wanted && let Err(error) = image.write(MACHINE_ID, id.as_bytes(), 0o444) {
        if !can_be_covered(&error) {
            return Err(error);
        }
        cover(image, MACHINE_ID, id.as_bytes(), 0o444)?;
    }
    // A link to the other file is replaced too: it may lead back, or nowhere.
    if dbus { image.write(DBUS_MACHINE_ID, id.as_bytes(), 0o444) } else { Ok(()) }
}

fn is_id(text: &[u8]) -> bool {
    text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit)
}

fn has_systemd(image: &Image) -> bool {
    image.exists("/usr/lib/systemd/systemd") || image.exists("/lib/systemd/systemd")
}

/// Replaces the host keys of the image's own SSH daemon.
///
/// Debian's sshd does not start without a key, and its units make keys at the first boot of an
/// installation only, which no boot is here ([`machine_id`]). So one is made where there is an
/// sshd: ed25519, which every client since OpenSSH 6.5 (2014) accepts and which takes no time, and
/// in OpenSSH's form. An RSA key takes the image's own ssh-keygen a second or many, and is made
/// only where sshd would look for nothing else.
fn host_keys(image: &Image) -> io::Result<()> {
    for name in image.names(SSH) {
        let bytes = name.as_bytes();
        let of_key = [&b"_key"[..], b"_key.pub", b"_key-cert.pub"].iter().any(|end| bytes.ends_with(end));
        if bytes.starts_with(b"ssh_host_") && of_key {
            image.remove(Path::new(SSH).join(name))?;
        }
    }
    for name in image.names(DROPBEAR) {
        if name.as_bytes().starts_with(b"dropbear_") && name.as_bytes().ends_with(b"_host_key") {
            image.remove(Path::new(DROPBEAR).join(name))?;
        }
    }
    if !SSHD.iter().any(|path| image.exists(path)) {
        return Ok(());
    }
    let mut key = PrivateKey::random(&mut key::safe_rng(), Algorithm::Ed25519).map_err(io::Error::other)?;
    key.set_comment("banger");
    let private = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let public = key.public_key().to_openssh().map_err(io::Error::other)?;
    image.write("/etc/ssh/ssh_host_ed25519_key", private.as_bytes(), 0o600)?;
    image.write("/etc/ssh/ssh_host_ed25519_key.pub", format!("{public}\n").as_bytes(), 0o644)?;
    if wants_only_rsa(image) { rsa_key(image) } else { Ok(()) }
}

/// Whether sshd is told to use RSA host keys and no others.
fn wants_only_rsa(image: &Image) -> bool {
    let parts = "/etc/ssh/sshd_config.d";
    let more = image.names(parts).into_iter().filter(|name| name.as_bytes().ends_with(b".conf"));
    let files = more.map(|name| Path::new(parts).join(name)).chain(["/etc/ssh/sshd_config".into()]);
    let text: Vec<u8> = files.filter_map(|path| image.read(path, MAX_SSHD_CONFIG).ok()).flatten().collect();
    let text = String::from_utf8_lossy(&text);
    let mut keys = text.lines().filter_map(host_key).peekable();
    keys.peek().is_some() && keys.all(|path| path.contains("rsa"))
}

/// The path in a line `HostKey PATH`; sshd_config(5) has no case and takes `=` and quotes too.
fn host_key(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let (keyword, rest) = line.split_at_checked("hostkey".len())?;
    let named = keyword.eq_ignore_ascii_case("hostkey") && rest.starts_with([' ', '\t', '=', '"']);
    named.then(|| rest.trim_matches([' ', '\t', '=', '"', '\r']))
}

fn rsa_key(image: &Image) -> io::Result<()> {
    let program = image.resolve(SSH_KEYGEN).ok_or(ErrorKind::NotFound)?;
    let key = image.folder(SSH)?.join("ssh_host_rsa_key");
    let mut command = Command::new(program);
    command.args(["-q", "-t", "rsa", "-N", "", "-C", "banger", "-f"]).arg::<&OsStr>(key.as_ref());
    let ended = command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if ended.success() { Ok(()) } else { Err(io::Error::other(format!("{SSH_KEYGEN} ended with {ended}"))) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    const BAKED: &str = "0123456789abcdef0123456789abcdef\n";

    fn image_with(files: &[(&str, &str)]) -> (TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::at(folder.path());
        for (path, text) in files {
            image.write(path, text.as_bytes(), 0o644).unwrap();
        }
        (folder, image)
    }

    fn config() -> GuestConfig {
        let key = PrivateKey::random(&mut key::safe_rng(), Algorithm::Ed25519).unwrap();
        let mut config = crate::init::tests::config();
        config.host_key = key.to_openssh(LineEnding::LF).unwrap().to_string();
        config
    }

    fn text(image: &Image, path: &str) -> String {
        String::from_utf8(image.read(path, 10_000).unwrap()).unwrap()
    }

    #[test]
    fn a_baked_id_is_replaced_once_for_each_vm() {
        let (_folder, image) = image_with(&[(MACHINE_ID, BAKED), (DBUS_MACHINE_ID, BAKED)]);
        let (one, other) = (config(), config());
        apply(&image, &one);
        let id = text(&image, MACHINE_ID);
        assert!(is_id(id.trim().as_bytes()) && id != BAKED);
        assert_eq!(text(&image, DBUS_MACHINE_ID), id);
        assert_eq!(image.metadata(MACHINE_ID).unwrap().permissions().mode() & 0o777, 0o444);
        apply(&image, &one);
        assert_eq!(text(&image, MACHINE_ID), id, "the same VM again");
        // The root of one VM as the image of another.
        apply(&image, &other);
        assert_ne!(text(&image, MACHINE_ID), id);
    }

    #[test]
    fn an_id_that_says_nothing_is_replaced_at_any_boot() {
        let vm = config();
        for present in
            ["", "\n", "uninitialized\n", "0123", "no id at all, and a long one at that, with no end in sight...."]
        {
            let (_folder, image) = image_with(&[(MACHINE_ID, BAKED)]);
            apply(&image, &vm);
            image.write(MACHINE_ID, present.as_bytes(), 0o644).unwrap();
            apply(&image, &vm);
            assert!(is_id(text(&image, MACHINE_ID).trim().as_bytes()), "{present:?}");
        }
    }

    #[test]
    fn links_between_the_two_ids_are_no_trap() {
        for (etc, dbus) in [
            ("/var/lib/dbus/machine-id", "/etc/machine-id"),
            ("../var/lib/dbus/machine-id", "/nowhere"),
            ("/run/machine-id", "/etc/machine-id"),
        ] {
            let (folder, image) = image_with(&[("/etc/x", ""), ("/var/lib/dbus/x", "")]);
            symlink(etc, folder.path().join("etc/machine-id")).unwrap();
            symlink(dbus, folder.path().join("var/lib/dbus/machine-id")).unwrap();
            apply(&image, &config());
            assert!(is_id(text(&image, MACHINE_ID).trim().as_bytes()), "{etc}");
            assert_eq!(text(&image, MACHINE_ID), text(&image, DBUS_MACHINE_ID), "{etc}");
        }
    }

    #[test]
    fn an_image_that_knows_no_ids_gets_none() {
        let (_folder, image) = image_with(&[]);
        apply(&image, &config());
        assert!(!image.exists(MACHINE_ID) && !image.exists(DBUS_MACHINE_ID));
        let (_folder, image) = image_with(&[("/usr/lib/systemd/systemd", "")]);
        apply(&image, &config());
        assert!(image.exists(MACHINE_ID) && !image.exists(DBUS_MACHINE_ID));
    }

    #[test]
    fn seeds_go_at_the_first_boot_only() {
        let (_folder, image) = image_with(&SEEDS.map(|seed| (seed, "baked")));
        let vm = config();
        apply(&image, &vm);
        assert!(SEEDS.iter().all(|seed| !image.exists(seed)));
        image.write(SEEDS[0], b"saved", 0o600).unwrap();
        apply(&image, &vm);
        assert_eq!(text(&image, SEEDS[0]), "saved");
    }

    #[test]
    fn host_keys_are_replaced_at_the_first_boot_only() {
        let key = "/etc/ssh/ssh_host_ed25519_key";
        let baked = [
            ("/usr/sbin/sshd", ""),
            (key, "baked"),
            ("/etc/ssh/ssh_host_rsa_key", "baked"),
            ("/etc/ssh/ssh_host_rsa_key.pub", "baked"),
            ("/etc/ssh/ssh_host_ecdsa_key-cert.pub", "baked"),
            ("/etc/ssh/sshd_config", "Port 22\n#HostKey /etc/ssh/ssh_host_rsa_key\n"),
            ("/etc/dropbear/dropbear_rsa_host_key", "baked"),
        ];
        let (_folder, image) = image_with(&baked);
        let vm = config();
        apply(&image, &vm);
        let made = text(&image, key);
        let public = PrivateKey::from_openssh(&made).unwrap().public_key().to_openssh().unwrap();
        assert_eq!(text(&image, "/etc/ssh/ssh_host_ed25519_key.pub").trim(), public);
        assert_eq!(image.metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        let mut left = image.names(SSH);
        left.sort();
        assert_eq!(left, ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "sshd_config"]);
        assert!(image.names(DROPBEAR).is_empty());
        apply(&image, &vm);
        assert_eq!(text(&image, key), made);
    }

    #[test]
    fn an_image_without_sshd_gets_no_key() {
        let (_folder, image) = image_with(&[("/etc/ssh/ssh_host_rsa_key", "baked")]);
        apply(&image, &config());
        assert!(image.names(SSH).is_empty());
    }

    #[test]
    fn rsa_is_for_those_who_want_nothing_else() {
        let with = |files: &[(&str, &str)]| wants_only_rsa(&image_with(files).1);
        let main = "/etc/ssh/sshd_config";
        assert!(!with(&[]));
        assert!(!with(&[(main, "HostKeyAlgorithms rsa-sha2-512\n# HostKey /etc/ssh/ssh_host_rsa_key\n")]));
        assert!(with(&[(main, " hostkey=\"/etc/ssh/ssh_host_rsa_key\"\n")]));
        let both = "HostKey /etc/ssh/ssh_host_rsa_key\nHostKey /etc/ssh/ssh_host_ed25519_key\n";
        assert!(!with(&[(main, both)]));
        let part = "/etc/ssh/sshd_config.d/10-own.conf";
        assert!(with(&[(main, ""), (part, "HostKey /etc/ssh/ssh_host_rsa_key\n")]));
        assert!(!with(&[(main, "HostKey /k/ed25519\n"), (part, "HostKey /etc/ssh/ssh_host_rsa_key\n")]));
    }

    #[test]
    fn a_first_boot_that_cannot_write_says_so_and_goes_on() {
        let (_folder, image) = image_with(&[("/etc/x", "")]);
        image.write("/var", b"a file", 0o644).unwrap();
        apply(&image, &config());
        assert!(!image.exists(MARKER), "there is no folder for it");
    }
}
