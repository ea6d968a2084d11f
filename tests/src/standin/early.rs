//! A guest that stands still, or is reset, before it has read a disk: under emulation, and there
//! only, it is begun again. Called by `vmm`.
//!
//! Under QEMU's emulation of SVM about one nested boot in twenty ends like that, whatever the VMM.
//! Nobody has seen anything of such a guest but its console, so a reset of the machine is a boot
//! that took longer. A kernel that panics that early is begun again too, and ends the same way
//! after the last try. On real CPUs it is a finding, and nothing is done.

use std::arch::x86_64::__cpuid;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::vmm::Event;
use crate::qmp::{Monitor, QmpError};

/// From power on to the first disk, at most: twice what was seen under emulation beside a second
/// host VM.
const LIMIT: Duration = Duration::from_secs(40);
/// How often a guest is begun again.
const TRIES: u32 = 2;
const INTERVAL: Duration = Duration::from_secs(1);

/// A machine that has not read a disk yet.
#[derive(Debug)]
pub(super) struct Early {
    /// Of the last power on.
    since: Instant,
    left: u32,
}

impl Early {
    /// Has [`Event::Look`] sent while it matters. Nothing for a guest without disks, and none on a
    /// real CPU.
    pub(super) fn watch(has_disks: bool, events: &Sender<Event>) -> Option<Self> {
        if !has_disks || !emulated() {
            return None;
        }
        let events = events.clone();
        let until = Instant::now() + LIMIT * (TRIES + 2);
        thread::spawn(move || {
            while Instant::now() < until && events.send(Event::Look).is_ok() {
                thread::sleep(INTERVAL);
            }
        });
        Some(Self { since: Instant::now(), left: TRIES })
    }

    /// What there is to say, and whether the guest is past the point that matters.
    pub(super) fn look(&mut self, monitor: &mut Monitor) -> (Option<String>, bool) {
        match has_read(monitor) {
            Ok(true) => (Some(format!("first disk after {:.1} s", self.since.elapsed().as_secs_f64())), true),
            Ok(false) if self.since.elapsed() > LIMIT && self.left > 0 => match self.again("stood still", monitor) {
                Ok(said) => (Some(said), false),
                Err(error) => (Some(format!("the guest stands still, and is not begun again: {error}")), true),
            },
            Ok(false) => (None, false),
            Err(error) => (Some(format!("not watched any longer: {error}")), true),
        }
    }

    /// After a reset: what there is to say if the guest was begun again.
    pub(super) fn was_reset(&mut self, monitor: &mut Monitor) -> Option<String> {
        if self.left == 0 || has_read(monitor).unwrap_or(true) {
            return None;
        }
        // One that cannot be begun again has ended, as after any reset.
        self.again("was reset", monitor).ok()
    }

    fn again(&mut self, what: &str, monitor: &mut Monitor) -> Result<String, QmpError> {
        self.left -= 1;
        self.since = Instant::now();
        reset(monitor)?;
        Ok(format!("the guest {what} before its first disk; it is begun again"))
    }
}

fn has_read(monitor: &mut Monitor) -> Result<bool, QmpError> {
    let stats = monitor.execute("query-blockstats", &json!({}))?;
    Ok(sum(&stats, "rd_operations") > 0)
}

/// A counter of all block devices. Source: `BlockDeviceStats` in `qapi/block-core.json` of QEMU.
pub(super) fn sum(stats: &Value, name: &str) -> u64 {
    let devices = stats.as_array().into_iter().flatten();
    devices.filter_map(|device| device.pointer(&format!("/stats/{name}"))?.as_u64()).sum()
}

/// A guest's own resets end the machine (`-action reboot=shutdown`); this one must not.
fn reset(monitor: &mut Monitor) -> Result<(), QmpError> {
    monitor.execute("set-action", &json!({ "reboot": "reset" }))?;
    monitor.execute("system_reset", &json!({}))?;
    // QEMU resets on its own time, and refuses to go on with a machine that has ended until it has.
    let mut gone_on = monitor.execute("cont", &json!({}));
    for _ in 0..50 {
        if gone_on.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        gone_on = monitor.execute("cont", &json!({}));
    }
    // Whatever came of it: the guest's own next reset ends the machine again.
    monitor.execute("set-action", &json!({ "reboot": "shutdown" }))?;
    gone_on.map(drop)
}

/// Whether this very machine is emulated: the signature of QEMU's TCG where hypervisors have theirs
/// (`Documentation/virt/kvm/x86/cpuid.rst`).
fn emulated() -> bool {
    let leaf = __cpuid(0x4000_0000);
    let signature = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    signature.as_flattened() == b"TCGTCGTCGTCG"
}
