//! Root disks that a guest fills to the last block: it gets ENOSPC, and its disk stays a disk. And
//! the kernel's exception store itself, with files as long as the helper makes them, written from
//! end to end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_policy::snapshot::cow_file_bytes;

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::report::is_of_the_emulator;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "root-disk",
    about: "guests fill their root disks, which then grow",
    setup: Setup::Guests,
    scenarios,
};

/// Larger disks, which take a guest under emulation a quarter of an hour each.
pub(in crate::suite) const SIZES: Suite = Suite {
    name: "root-disk-sizes",
    about: "guests fill root disks of 512 MiB and 8 GiB",
    setup: Setup::Guests,
    scenarios: sizes,
};

/// The kernel alone, without a guest.
pub(in crate::suite) const STORE: Suite = Suite {
    name: "exception-store",
    about: "snapshots with files as long as the helper makes them, written from end to end",
    setup: Setup::Nothing,
    scenarios: store_scenarios,
};

/// The same twenty times, and a disk of 8 GiB filled with nothing spared: hours under emulation.
pub(in crate::suite) const LONG: Suite = Suite {
    name: "root-disk-long",
    about: "the same twenty times over, and 8 GiB written whole",
    setup: Setup::Guests,
    scenarios: long,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("filled-at-128M", |scene| filled(scene, 128, Fill::Whole, 1)),
        Scenario::new("larger-than-the-host", too_large),
    ]
}

fn sizes() -> Vec<Scenario> {
    vec![
        Scenario::new("filled-at-512M-and-grown", |scene| filled(scene, 512, Fill::Rest, 2)),
        Scenario::new("filled-at-8G", |scene| filled(scene, 8192, Fill::Rest, 1)),
    ]
}

fn store_scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("as-long-as-ours-it-never-overflows", |scene| stores(scene, &[128])),
        Scenario::new("a-shorter-one-does", shorter),
    ]
}

fn long() -> Vec<Scenario> {
    vec![
        Scenario::new("stores-of-many-sizes", |scene| stores(scene, &[256, 384, 640, 1024, 2048])),
        Scenario::new("filled-at-128M-twenty-times", |scene| filled(scene, 128, Fill::Whole, 20)),
        Scenario::new("filled-at-512M-twenty-times", |scene| filled(scene, 512, Fill::Whole, 20)),
        Scenario::new("filled-at-8G-twenty-times", |scene| filled(scene, 8192, Fill::Rest, 20)),
        Scenario::new("filled-at-8G-whole", |scene| filled(scene, 8192, Fill::Whole, 1)),
    ]
}

/// How a guest fills its disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Each free block is written.
    Whole,
    /// All but the last [`WRITTEN`] MiB are only allocated, which writes no chunk: what is
    /// practical under emulation.
    Rest,
}

/// See [`Fill::Rest`], MiB.
const WRITTEN: u64 = 192;
/// For a guest that writes some hundred MiB.
const SLOW: Duration = Duration::from_secs(120);

fn filled(scene: &mut Scene, mib: u64, how: Fill, times: u64) -> Result<Outcome> {
    scene.allow_database_growth();
    let size = format!("{mib}M");
    let words = ["vm", "run", "--detach", "--name", "full", "--image", "tiny", "--vcpu", "1", "--memory", "256M"];
    let words = [&words[..], &["--root-size", &size, "--disk-size", "64M"]].concat();
    scene.step(&format!("a VM with a root disk of {size}"), |scene| scene.banger_long("alice", &words)?.ok())?;
    let guest = Guest::known(scene, "alice", "full")?;
    let whole = root_mib(scene, &guest)?;
    ensure!(whole > mib * 3 / 4 - 40 && whole <= mib, "a root disk of {mib} MiB has a file system of {whole} MiB");
    let sum = guest.shell(scene, "md5sum /bin/busybox | cut -d' ' -f1 | tee /etc/sum")?.ok()?.stdout;
    let mut stood_still = 0;
    for time in 1..=times {
        while let Err(error) = once_more(scene, &guest, how, &format!("{time} of {times}"), sum.trim()) {
            if stood_still >= times / 5 || !has_stood_still(scene, &guest)? {
                return Err(error);
            }
            stood_still += 1;
            scene.measured("emulated guests that stood still", stood_still);
            // Killed in the middle of it, with a full disk: its journal mends the file system.
            guest.order(scene, "start")?.ok()?;
            guest.shell(scene, EMPTY)?.ok()?;
        }
        if time < times {
            guest.shell(scene, EMPTY)?.ok()?;
        }
    }
    if how == Fill::Rest && mib > 4096 {
        // Twice that is more than the host has.
        guest.delete(scene)?;
        return scene.passed();
    }
    let double = format!("{}M", mib * 2);
    scene.step(&format!("made {double} large, and used"), |scene| {
        let set = ["vm", "set", "full", "--root-size", &double];
        scene.banger("alice", &set)?.refused(&["running"])?;
        guest.order(scene, "stop")?.ok()?;
        scene.banger("alice", &["vm", "set", "full", "--root-size", "128M"]).and_then(|finished| {
            // Of a disk of 128 MiB that is no change; of any other it would be a smaller one.
            if mib == 128 { finished.ok() } else { finished.refused(&["only grows"]) }
        })?;
        scene.banger_long("alice", &set)?.ok()?;
        guest.order(scene, "start")?.ok()?;
        let grown = root_mib(scene, &guest)?;
        ensure!(grown > whole + mib * 3 / 4, "the file system has {grown} MiB after {whole}");
        guest.shell(scene, "dd if=/dev/urandom of=/more bs=1M count=48 && sync && md5sum /more > /etc/more")?.ok()?;
        guest.shell(scene, "md5sum /bin/busybox | cut -d' ' -f1 | diff - /etc/sum")?.ok()?;
        healthy(scene)
    })?;
    scene.step("filled again, stopped; e2fsck finds nothing", |scene| {
        fill(scene, &guest, how)?;
        healthy(scene)?;
        guest.order(scene, "restart")?.ok()?;
        guest.shell(scene, "md5sum -c /etc/more")?.ok()?;
        guest.order(scene, "stop")?.ok()?;
        checked(scene, &guest)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

const EMPTY: &str = "rm -f /big /held && sync";

/// Filled, stopped and started again. The disk stays full.
fn once_more(scene: &mut Scene, guest: &Guest, how: Fill, which: &str, sum: &str) -> Result<()> {
    scene.step(&format!("filled by root in the guest: ENOSPC ({which})"), |scene| {
        fill(scene, guest, how)?;
        healthy(scene)
    })?;
    scene.step("stopped; e2fsck finds nothing", |scene| {
        guest.order(scene, "stop")?.ok()?;
        guest.is(scene, "stopped")?;
        checked(scene, guest)
    })?;
    scene.step("started again: it boots, and what was there is there", |scene| {
        guest.order(scene, "start")?.ok()?;
        let now = guest.shell(scene, "md5sum /bin/busybox | cut -d' ' -f1")?.ok()?.stdout;
        ensure!(now.trim() == sum, "another content");
        guest.shell(scene, "test -s /big")?.ok()?;
        // More than what ext4 gives back by itself when it has written delayed blocks.
        let more = guest.shell(scene, "dd if=/dev/zero of=/more bs=64k count=4; rm -f /more")?;
        ensure!(more.stderr.contains("No space left"), "there is room again: {more}");
        healthy(scene)
    })
}

/// About one in twenty boots of an emulated guest stands still or is reset. On a real CPU that
/// would be a finding.
fn has_stood_still(scene: &Scene, guest: &Guest) -> Result<bool> {
    let (state, reason) = guest.state(scene)?;
    Ok(scene.is_emulated() && state != "running" && is_of_the_emulator(&reason))
}

/// The guest's root file system, MiB.
fn root_mib(scene: &Scene, guest: &Guest) -> Result<u64> {
    let text = guest.shell(scene, "df -m / | tail -n 1 | awk '{print $2}'")?.ok()?.stdout;
    text.trim().parse().with_context(|| format!("df says {text:?}"))
}

/// Until no block is left.
fn fill(scene: &Scene, guest: &Guest, how: Fill) -> Result<()> {
    let most = format!(
        "free=$(df -m / | tail -n 1 | awk '{{print $4}}'); \
         if [ $free -gt {WRITTEN} ]; then fallocate -l $(( (free - {WRITTEN}) * 1048576 )) /held; fi; "
    );
    let most = if how == Fill::Rest { most.as_str() } else { "" };
    let line = format!("{most}dd if=/dev/zero of=/big bs=1M; status=$?; sync; exit $status");
    let words = ["vm", "exec", "--no-tty", "--no-stdin", guest.name, "--", "sh", "-c", line.as_str()];
    let finished = scene.start_banger(guest.owner, &words)?.wait(scene.limit(SLOW))?;
    ensure!(finished.stderr.contains("No space left on device"), "not ENOSPC: {finished}");
    let free = guest.shell(scene, "df -k / | tail -n 1 | awk '{print $4}'")?.ok()?.stdout;
    let free: u64 = free.trim().parse().with_context(|| format!("df says {free:?}"))?;
    ensure!(free <= 64, "{free} KiB are still free");
    Ok(())
}

/// No snapshot of the host is lost.
fn healthy(scene: &Scene) -> Result<()> {
    let status = scene.root("dmsetup status")?;
    ensure!(status.contains(" snapshot "), "there is no snapshot to look at: {status}");
    for word in ["Overflow", "Invalid"] {
        ensure!(!status.contains(word), "a snapshot is lost: {status}");
    }
    Ok(())
}

/// A stopped VM's disk under e2fsck, attached by the bench itself with the length that the VM has.
pub(super) fn checked(scene: &Scene, guest: &Guest) -> Result<()> {
    let record = guest.record(scene)?;
    let image = record.get("image_id").and_then(serde_json::Value::as_str).context("no image")?;
    let bytes = record.pointer("/spec/system_overlay_size_bytes").and_then(serde_json::Value::as_u64);
    let sectors = bytes.context("no size")? / 512;
    let line = format!(
        "set -e; base=$(losetup --find --show --read-only /var/lib/banger/images/{image}/rootfs.ext4); \
         cow=$(losetup --find --show /var/lib/banger-priv/cow/{id}); \
         echo \"0 {sectors} snapshot $base $cow PO 8\" | dmsetup create bench-look; udevadm settle; \
         status=$(dmsetup status bench-look); e2fsck -fn /dev/mapper/bench-look >/run/bench-fsck 2>&1 && clean=0 || clean=$?; \
         udevadm settle; dmsetup remove --retry bench-look; losetup -d $cow $base; \
         echo \"$status\"; cat /run/bench-fsck; rm /run/bench-fsck; exit $clean",
        id = guest.id
    );
    let said = scene.start_root(&line)?.wait(scene.limit(SLOW))?.ok()?.stdout;
    ensure!(!said.contains("Overflow") && !said.contains("Invalid"), "{said}");
    Ok(())
}

/// A snapshot over zeros, with a file of the helper's arithmetic: written from end to end twice
/// with different bytes, then grown and written again.
fn stores(scene: &mut Scene, sizes: &[u64]) -> Result<Outcome> {
    for mib in sizes {
        scene.step(&format!("a disk of {mib} MiB, written twice, then one of {} MiB", mib + 128), |scene| {
            let (small, large) = (mib << 20, (mib + 128) << 20);
            let result = store(scene, &[(small, cow_file_bytes(small)), (large, cow_file_bytes(large))], large);
            scene.root("rm -f /srv/bench/base.img /srv/bench/cow.img")?;
            let statuses = result?;
            for status in statuses {
                ensure!(!status.contains("Overflow") && !status.contains("Invalid"), "{status}");
            }
            Ok(())
        })?;
    }
    scene.passed()
}

/// The control: with a chunk less, the same test sees the snapshot lost.
fn shorter(scene: &mut Scene) -> Result<Outcome> {
    for (less, word) in [(4096, "Invalid"), (2 * 4096, "Overflow")] {
        scene.step(&format!("{less} bytes less: {word}"), |scene| {
            let size = 128 << 20;
            let statuses = store(scene, &[(size, cow_file_bytes(size) - less)], size);
            scene.root("rm -f /srv/bench/base.img /srv/bench/cow.img")?;
            let statuses = statuses?;
            ensure!(statuses.iter().any(|status| status.contains(word)), "{statuses:?}");
            Ok(())
        })?;
    }
    scene.passed()
}

/// Writes a disk of each size twice; what the kernel said of it after each time.
fn store(scene: &Scene, sizes: &[(u64, u64)], base: u64) -> Result<Vec<String>> {
    scene.root(&format!(
        "modprobe -a dm_snapshot loop; truncate -s {base} /srv/bench/base.img; rm -f /srv/bench/cow.img"
    ))?;
    let mut statuses = Vec::new();
    for (disk, file) in sizes {
        for byte in ["\\125", "\\252"] {
            // A write that fails is what the status tells.
            let line = format!(
                "set -e; cd /srv/bench; fallocate -l {file} cow.img; base=$(losetup --find --show --read-only base.img); \
                 cow=$(losetup --find --show cow.img); \
                 echo \"0 {sectors} snapshot $base $cow PO 8\" | dmsetup create bench-store; udevadm settle; \
                 (tr '\\0' '{byte}' < /dev/zero | dd of=/dev/mapper/bench-store bs=1M count={count} iflag=fullblock oflag=direct status=none; \
                 sync) || true; dmsetup status bench-store; udevadm settle; dmsetup remove --retry bench-store; losetup -d $cow $base",
                sectors = disk / 512,
                count = disk >> 20,
            );
            statuses.push(scene.start_root(&line)?.wait(scene.limit(SLOW))?.ok()?.stdout);
        }
    }
    Ok(statuses)
}

/// More than the host has is refused before anything is made, with all three numbers.
fn too_large(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = ["vm", "create", "--name", "huge", "--image", "tiny", "--disk-size", "64M", "--root-size", "128G"];
    let free = scene.root("df --output=avail -BM /var/lib | tail -n 1")?;
    let refused = scene.banger_long("alice", &words)?.refused(&["reserve", "512 MiB", "--root-size"])?;
    ensure!(refused.stderr.contains("131649 MiB"), "the need is not named: {refused}, free: {free}");
    scene.banger("alice", &["vm", "show", "huge"])?.refused(&["huge"])?;
    let words = ["vm", "create", "--name", "odd", "--image", "tiny", "--disk-size", "64M", "--root-size", "200M"];
    scene.banger_long("alice", &words)?.ok()?;
    scene.banger("alice", &["vm", "show", "odd"])?.ok()?.says("256M")?;
    let more = scene.banger_long("alice", &["vm", "set", "odd", "--root-size", "128G"])?;
    more.refused(&["reserve", "512 MiB"])?;
    scene.banger("alice", &["vm", "set", "odd", "--disk-size", "128G"])?.refused(&["reserve"])?;
    scene.banger("alice", &["vm", "show", "odd"])?.ok()?.says("256M")?;
    scene.banger_long("alice", &["vm", "delete", "odd"])?.ok()?;
    scene.passed()
}
