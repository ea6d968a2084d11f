//! Puts the product into the host VM, as an administrator would, and cleans up after a scenario
//! that failed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::command::Run;
use super::list::Setup;
use super::report;
use super::runner::Options;
use super::vmm::STILL;
use crate::hostvm::payload::INSIDE;
use crate::inventory::{Change, What};

/// Where the bench's VMM is installed.
pub(super) const VMM: &str = "/usr/local/lib/banger-bench/firecracker";

/// What the packaged unit and the confinement of VMMs rightly refuse and the stand-in needs: QEMU
/// with its firmware, and the host's own vsock for its vsock device. Only this drop-in is the
/// bench's; suites about confinement run without it.
const STAND_IN_DROP_IN: &str = "# Bench only: the stand-in VMM runs QEMU.
[Service]
DeviceAllow=/dev/vhost-vsock rw
RestrictAddressFamilies=AF_VSOCK
Environment=BANGER_STAND_IN_PATHS=/usr/bin:/usr/share/qemu:/usr/share/seabios:/dev/vhost-vsock:/dev/null
";

/// Who scenarios act as.
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// A package is installed and its units are up well within this, under KVM.
const INSTALL: Duration = Duration::from_secs(60);
/// An image is imported within this, under KVM.
const IMPORT: Duration = Duration::from_secs(90);

/// Brings the host to the state that a suite names.
pub(super) fn prepare(setup: Setup, options: &Options) -> Result<()> {
    let wanted = |step: Setup| setup >= step && options.standing < step;
    if wanted(Setup::Installed) {
        install(options)?;
    }
    if wanted(Setup::Vmm) {
        install_vmm(options)?;
    }
    if wanted(Setup::Still) {
        import(options)?;
    }
    if setup == Setup::Still && options.standing < Setup::Still {
        root(&format!("install -m 0755 {INSIDE}/{STILL} {VMM}"), INSTALL, options)?;
    }
    if setup == Setup::Guests && options.standing == Setup::Still {
        root(&format!("install -m 0755 {INSIDE}/firecracker {VMM}"), INSTALL, options)?;
    }
    Ok(())
}

/// Installs the package and lets alice and bob use it.
pub(super) fn install(options: &Options) -> Result<()> {
    let package = format!("{INSIDE}/banger.deb");
    ensure!(Path::new(&package).exists(), "the harness has not brought the package: {package} is missing");
    root(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {package}"), INSTALL, options)?;
    root("for user in alice bob; do usermod --append --groups banger $user; done", INSTALL, options)?;
    // The first call starts the daemon: what that makes is nobody's leak.
    root("runuser -u alice -- banger vm list", INSTALL, options)
}

fn install_vmm(options: &Options) -> Result<()> {
    root(&format!("install -D -m 0755 {INSIDE}/firecracker {VMM}"), INSTALL, options)?;
    let config = "/etc/banger/banger.toml";
    root(
        &format!(
            "mkdir -p /etc/banger; touch {config}; sed -i '/^firecracker_bin/d' {config}; sed -i '1i firecracker_bin = \"{VMM}\"' {config}"
        ),
        INSTALL,
        options,
    )?;
    if options.surroundings.vmm == "stand-in" {
        let folder = "/etc/systemd/system/bangerd.service.d";
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
        fs::write(format!("{folder}/bench.conf"), STAND_IN_DROP_IN).context("write the bench's drop-in")?;
    }
    root("systemctl daemon-reload && systemctl restart bangerd.service", INSTALL, options)
}

/// The small image that scenarios boot, for everybody; the kernel came with the package. The large
/// Debian images are imported by the suites that are about them.
fn import(options: &Options) -> Result<()> {
    root(&format!("banger image import --shared --name tiny --size 512M {INSIDE}/tiny.tar"), IMPORT, options)
}

/// After a failed scenario: whatever VMs it has left are deleted, and the images that it made, so
/// that the next one starts from a known state. Errors are printed only: the failure itself is
/// already on record.
pub(super) fn clean_up(leaks: &[Change]) {
    show_consoles();
    if !Path::new("/usr/bin/banger").exists() {
        return;
    }
    for user in USERS {
        let line = "banger vm list --json | grep -o '\"id\": *\"[0-9a-f]*\"' | grep -o '[0-9a-f]\\{64\\}' | xargs --no-run-if-empty banger vm delete";
        clean(user, &["sh", "-c", line]);
    }
    for (user, image) in leaks.iter().filter_map(image_left) {
        clean(user, &["banger", "image", "delete", image]);
    }
}

fn clean(user: &str, words: &[&str]) {
    match Run::start(Some(user), words).and_then(|run| run.wait(INSTALL * 2)) {
        Ok(finished) if finished.status.success() => {}
        Ok(finished) => report::print_line(&format!("  clean-up: {finished}")),
        Err(error) => report::print_line(&format!("  clean-up: {error:#}")),
    }
}

/// Whose image it is and what they call it, if a row of such a name was left.
fn image_left(change: &Change) -> Option<(&str, &str)> {
    let row = change.name.strip_prefix("image_names ").filter(|_| matches!(change.what, What::Added { .. }))?;
    let mut fields = row.split(',').skip(1).map(|field| field.trim_matches('\''));
    let (user, image) = (fields.next()?, fields.next()?);
    USERS.contains(&user).then_some((user, image))
}

/// What the VMs that are there said last, and their VMM on its end: the rest of their traces goes
/// with the clean-up.
fn show_consoles() {
    const LINES: usize = 30;
    for folder in fs::read_dir("/var/lib/banger/vms").into_iter().flatten().flatten() {
        let Ok(console) = fs::read(folder.path().join("console.log")) else { continue };
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            report::print_line(&format!("  console {:.12}: {}", folder.file_name().display(), line.escape_debug()));
        }
    }
}

fn root(line: &str, under_kvm: Duration, options: &Options) -> Result<()> {
    let finished = Run::start(None, &["sh", "-ec", line])?.wait(under_kvm * options.surroundings.slowness)?.ok()?;
    report::print_line(&format!("  setup {:>6.1} s  {line}", finished.took.as_secs_f64()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Kind;

    #[test]
    fn images_that_a_failed_scenario_has_left_are_known_by_their_rows() {
        let of = |name: &str, what| image_left(&Change { kind: Kind::Row, name: name.to_owned(), what }).is_some();
        let added = || What::Added { detail: String::new() };
        assert!(of("image_names 1001,'alice','odd'", added()));
        assert!(!of("image_names 1001,'alice','odd'", What::Gone { detail: String::new() }));
        assert!(!of("image_names 0,'root','tiny'", added()) && !of("images '3bf9'", added()));
    }
}
