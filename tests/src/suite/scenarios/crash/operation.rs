//! The operations that are cut short, and the points of each, learnt from a run of it that nothing
//! disturbs.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::strike::USER;
use super::{place, strike};
use crate::suite::command::Run;
use crate::suite::guests::TINY;
use crate::suite::scene::Scene;

/// The name of whatever an operation makes.
pub(super) const NAME: &str = "matrix";
const IMAGE: &str = "/srv/bench/matrix-image.tar";
const KERNEL: &str = "/srv/bench/matrix-vmlinux";
/// A helper that dies at no point that it will ever reach, and counts them.
const NEVER: u32 = u32::MAX;

/// Points on the database's thread that the VM's actor does not wait for: while the daemon is
/// stopped there, the VMM may come to its end by itself.
const BESIDE: &[&str] = &["row: a job", "row: the end of a job", "row: touch_vm"];

/// What must be there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Nothing,
    Created,
    Running,
}

/// A command of alice's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    from: From,
    words: &'static [&'static str],
    /// Followed by the size of the VM.
    sized: bool,
    /// It begins with a crash: daemon and VMM are killed, and what the next daemon does about it is
    /// the operation.
    crash: bool,
    /// What it makes beside VMs: `image` or `kernel`.
    pub(super) imports: Option<&'static str>,
    /// Whether it succeeds when nothing disturbs it: in a VM that boots nothing no command can be
    /// run.
    succeeds: bool,
}

const fn plain(name: &'static str, from: From, words: &'static [&'static str]) -> Operation {
    Operation { name, from, words, sized: false, crash: false, imports: None, succeeds: true }
}

const fn making(name: &'static str, words: &'static [&'static str], succeeds: bool) -> Operation {
    Operation { name, from: From::Nothing, words, sized: true, crash: false, imports: None, succeeds }
}

pub(super) const OPERATIONS: &[Operation] = &[
    making("create", &["vm", "create", "--name", NAME, "--nat"], true),
    plain("start", From::Created, &["vm", "start", NAME]),
    plain("stop", From::Running, &["vm", "stop", NAME]),
    plain("kill", From::Running, &["vm", "kill", NAME]),
    plain("restart", From::Running, &["vm", "restart", NAME]),
    plain("set", From::Running, &["vm", "set", NAME, "--nat", "off"]),
    plain("grow", From::Created, &["vm", "set", NAME, "--root-size", "256M"]),
    plain("delete", From::Running, &["vm", "delete", NAME]),
    making("run --rm", &["vm", "run", "--rm", "--name", NAME, "--nat"], false),
    Operation { crash: true, ..plain("recovery", From::Running, &["vm", "list"]) },
    Operation {
        imports: Some("image"),
        ..plain("image import", From::Nothing, &["image", "import", "--name", NAME, "--size", "64M", IMAGE])
    },
    Operation {
        imports: Some("kernel"),
        ..plain("kernel import", From::Nothing, &["kernel", "import", "--name", NAME, KERNEL])
    },
];

/// A point of the daemon's: its name, and which time it is passed in the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Point {
    /// As a plan names it: both, with a tab between.
    pub(super) key: String,
    pub(super) name: String,
    /// A process of the VM lives, and goes on living while the daemon is stopped here.
    pub(super) vmm: bool,
}

/// The points of one operation.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    pub(super) daemon: Vec<Point>,
    /// Number and name; numbers count from the helper's start.
    pub(super) helper: Vec<(u32, String)>,
}

impl Operation {
    /// What makes something passes the most points: `vm run --rm` starts, stops and deletes as
    /// well.
    pub(super) fn makes_something(&self) -> bool {
        self.sized || self.imports.is_some()
    }

    /// Brings about what must be there before.
    pub(super) fn prepare(&self, scene: &Scene) -> Result<()> {
        let words: &[&str] = match self.from {
            From::Nothing => return Ok(()),
            From::Created => &["vm", "create", "--name", NAME, "--nat"],
            From::Running => &["vm", "run", "--detach", "--name", NAME, "--nat"],
        };
        place::plan(None)?;
        scene.banger_long(USER, &[words, TINY].concat())?.ok()?;
        // Or the last of it would be taken for a point of the operation.
        every_job_has_ended(scene)?;
        place::forget_plan()
    }

    pub(super) fn begin(&self, scene: &Scene) -> Result<Run> {
        let mut words = self.words.to_vec();
        if self.sized {
            words.extend(TINY);
        }
        if !self.succeeds {
            words.extend(["--", "true"]);
        }
        if self.crash {
            // The VMM second: its end is for the next daemon to find.
            strike::daemons().into_iter().try_for_each(strike::end)?;
            strike::vmms(scene)?.into_iter().try_for_each(strike::end)?;
        }
        scene.start_banger(USER, &words)
    }

    /// Does it undisturbed.
    pub(super) fn trace(&self, scene: &Scene) -> Result<Trace> {
        self.prepare(scene)?;
        let pid = place::doom_helper(scene, NEVER)?;
        // What it passed in its recovery is not of the operation.
        let before = place::helper_points(scene, pid)?.len();
        place::plan(None)?;
        let ended = self.begin(scene)?.wait(scene.limit(Duration::from_secs(60)))?;
        ensure!(ended.status.success() == self.succeeds, "undisturbed: {ended}");
        if self.crash {
            scene.wait_until("the dead VM is stopped", Duration::from_secs(10), || {
                let passed = place::passed()?;
                Ok((!passed.iter().any(|line| line.starts_with("row: set_vm_state\t"))).then(|| passed.join(", ")))
            })?;
        } else {
            every_job_has_ended(scene)?;
        }
        let daemon = place::passed()?.iter().map(|line| point(line)).collect::<Result<Vec<_>>>()?;
        place::forget_plan()?;
        ensure!(scene.main_pid("banger-priv.service")? == pid, "the helper has died while its points were counted");
        let helper = place::helper_points(scene, pid)?.split_off(before);
        Ok(Trace { daemon, helper })
    }
}

/// The client hears of a job's end before its row does.
fn every_job_has_ended(scene: &Scene) -> Result<()> {
    let jobs = || {
        let passed = place::passed()?;
        let count = |name: &str| passed.iter().filter(|line| line.starts_with(name)).count();
        let (begun, over) = (count("row: a job\t"), count("row: the end of a job\t"));
        Ok((begun == 0 || begun != over).then(|| format!("{over} of {begun}")))
    };
    scene.wait_until("every job has ended", Duration::from_secs(5), jobs).map(drop)
}

/// A line of what was passed.
fn point(line: &str) -> Result<Point> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, count, process] = fields.as_slice() else { anyhow::bail!("a point: {line:?}") };
    let vmm = *process == "process" && !BESIDE.contains(name);
    Ok(Point { key: format!("{name}\t{count}"), name: (*name).to_owned(), vmm })
}

/// An image and a kernel that are not there yet, and small.
pub(super) fn write_material() -> Result<()> {
    let mut image = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(NAME.len() as u64);
    image.append_data(&mut header, "etc/matrix", NAME.as_bytes()).context("write the image")?;
    fs::write(IMAGE, image.into_inner().context("write the image")?).with_context(|| format!("write {IMAGE}"))?;
    fs::write(KERNEL, vmlinux()).with_context(|| format!("write {KERNEL}"))
}

pub(super) fn remove_material() -> Result<()> {
    [IMAGE, KERNEL].into_iter().try_for_each(|path| fs::remove_file(path).with_context(|| format!("remove {path}")))
}

/// As much of an ELF file (gABI) as an import looks at: one segment, the release, the drivers that
/// must be built in.
fn vmlinux() -> Vec<u8> {
    let body = b"\0Linux version 6.12.0-matrix (bench)\0virtio-mmio\0virtio_blk\0virtio_net\0ext4\0vmw_vsock_virtio_transport\0";
    let length = 64 + 56 + body.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    let mut put = |at: usize, bytes: &[u8]| {
        elf.resize(at, 0);
        elf.extend(bytes);
    };
    put(16, &[2, 0, 62, 0]);
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 1, 0]);
    put(64, &1_u32.to_le_bytes());
    put(64 + 32, &length.to_le_bytes());
    put(64 + 40, &length.to_le_bytes());
    put(64 + 56, body);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_point_is_understood() -> Result<()> {
        let point = point("vmm's api: drive\t2\tprocess")?;
        assert_eq!(
            (point.key.as_str(), point.name.as_str(), point.vmm),
            ("vmm's api: drive\t2", "vmm's api: drive", true)
        );
        assert!(super::point("half a li").is_err());
        Ok(())
    }

    #[test]
    fn the_kernel_is_as_long_as_its_segment_says() {
        let elf = vmlinux();
        assert_eq!(elf.get(96..104), Some(&(elf.len() as u64).to_le_bytes()[..]));
    }
}
