//! A host VM that has booted, kept as QEMU's migration stream beside the disk and the key that
//! belong to it. Called by [`super::machine`].
//!
//! Under emulation a boot takes one to three minutes, which every suite that wants a host VM of its
//! own would wait for; going on with one that has booted takes a quarter to half a minute. It is
//! made once per image, QEMU and way of starting it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::accel::Accel;
use super::image::Image;
use super::machine::{Files, Machine, output, run};
use super::payload::Payload;
use crate::qmp::Monitor;

/// Writing the memory takes seconds; this is a disk that stands still.
const SAVE_LIMIT: Duration = Duration::from_secs(120);
/// Bytes per second that QEMU may write: no limit.
const BANDWIDTH: u64 = 1 << 40;

/// One that is there.
#[derive(Debug)]
pub(super) struct Booted {
    folder: PathBuf,
}

impl Booted {
    /// The one of this image, made now when there is none.
    pub(super) fn ensure(image: &Image, accel: Accel) -> Result<Self> {
        let lock = File::create(image.folder.join("booted.lock")).context("create the lock of the booted host VM")?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("lock it")?;
        let folder = image.folder.join(format!("booted-{}", fingerprint(accel)?));
        if folder.is_dir() {
            super::used(&folder)?;
        } else {
            for other in super::unused(&image.folder, "booted-")? {
                fs::remove_dir_all(&other).with_context(|| format!("remove {}", other.display()))?;
            }
            let unfinished = image.folder.join("booted.unfinished");
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
            }
            fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
            make(image, accel, &unfinished)?;
            fs::rename(&unfinished, &folder).with_context(|| format!("publish {}", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// Copies disk and key to where a host VM of its own has them.
    pub(super) fn copy_to(&self, files: &Files) -> Result<()> {
        copy_disk(&self.folder.join("disk.ext4"), &files.disk())?;
        for name in ["key", "key.pub"] {
            let (from, to) = (self.folder.join(name), files.key().with_file_name(name));
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(())
    }

    /// The migration stream: memory and devices.
    pub(super) fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }
}

/// What the stream fits, and what has gone into it: this QEMU with these devices, and a host VM
/// that was started like this.
fn fingerprint(accel: Accel) -> Result<String> {
    let version = output("qemu-system-x86_64", &["--version"])?;
    let digest = Sha256::digest(format!("{version}{:?}", Machine::made_of(accel)));
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn make(image: &Image, accel: Accel, folder: &Path) -> Result<()> {
    let started = Instant::now();
    let run_folder = folder.join("run");
    fs::create_dir_all(&run_folder).with_context(|| format!("create {}", run_folder.display()))?;
    Payload::default().write(&run_folder.join("payload.tar"))?;
    let mut machine = Machine::cold(image, accel, &run_folder)?;
    machine.wait_until_up()?;
    machine.hang_up();
    save(machine.files(), &folder.join("memory"))?;
    // QEMU has stopped the machine and written its disk; it does not touch either again.
    copy_disk(&machine.files().disk(), &folder.join("disk.ext4"))?;
    for name in ["key", "key.pub"] {
        fs::copy(machine.files().key().with_file_name(name), folder.join(name)).context("keep the key")?;
    }
    eprintln!("bench: a booted host VM is kept, made in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn save(files: &Files, target: &Path) -> Result<()> {
    let stream = UnixStream::connect(files.monitor()).context("reach QEMU's monitor")?;
    let mut monitor = Monitor::open(stream, |_, _| true)?;
    monitor.execute("migrate-set-parameters", &json!({ "max-bandwidth": BANDWIDTH }))?;
    // The bench's folders are ours, so their names have no quote in them.
    monitor.execute("migrate", &json!({ "uri": format!("exec:cat > '{}'", target.display()) }))?;
    let started = Instant::now();
    while started.elapsed() < SAVE_LIMIT {
        let state = monitor.execute("query-migrate", &json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed") => bail!("QEMU could not write the host VM's memory: {state}"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    bail!("QEMU has not written the host VM's memory within {} s", SAVE_LIMIT.as_secs())
}

pub(super) fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    run(std::process::Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to))
}
