//! Whether KVM serves a stock kernel on this machine. A `/dev/kvm` that opens proves nothing: some
//! build machines have one in which a distribution's kernel dies. So it is tried, once, for a
//! bounded time; the answer is cached for this kernel and processor.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::Image;

/// How QEMU runs the host VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation. `-cpu max` emulates SVM, so nested guests run all the same. Without cmpxchg16b:
    /// QEMU 7.2 leaves wrong flags behind it, and kernels die of that.
    Tcg,
}

/// A stock kernel under KVM is past its own start in about a second; under a KVM that does not
/// serve, never.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// Printed by the kernel when it hands over to its initramfs: it has survived processor and
/// interrupt set-up.
const MILESTONE: &str = "Run /init as init process";

impl Accel {
    /// QEMU's arguments for it.
    #[must_use]
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"],
        }
    }

    /// Words for the host VM's kernel. QEMU 7.2's emulation of SVM changes a CPU's pending
    /// interrupts without a lock when a nested guest exits (`target/i386/tcg/sysemu/svm_helper.c`),
    /// so now and then one that arrives at that moment is lost; a CPU whose only timer it was
    /// sleeps for good. A timer that fires periodically by itself makes it good within a tick.
    #[must_use]
    pub const fn kernel_words(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => "nohz=off highres=off",
        }
    }

    /// Emulation is slower by about this factor: time limits of the bench are multiplied by it.
    #[must_use]
    pub fn slowness(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 4,
        }
    }
}

/// Finds out, or reads what was found out before. `BANGER_BENCH_ACCEL=kvm|tcg` decides without a
/// probe.
pub fn choose(cache: &Path, image: &Image) -> Result<Accel> {
    match std::env::var("BANGER_BENCH_ACCEL").as_deref() {
        Ok("kvm") => return Ok(Accel::Kvm),
        Ok("tcg") => return Ok(Accel::Tcg),
        _ => {}
    }
    let note = cache.join("accel");
    let machine = machine_identity();
    if let Ok(text) = fs::read_to_string(&note)
        && let Some((answer, known)) = text.split_once('\n')
        && known == machine
    {
        return Ok(if answer == "kvm" { Accel::Kvm } else { Accel::Tcg });
    }
    let accel = if probe(cache, image)? { Accel::Kvm } else { Accel::Tcg };
    let answer = if accel == Accel::Kvm { "kvm" } else { "tcg" };
    fs::write(&note, format!("{answer}\n{machine}")).with_context(|| format!("write {}", note.display()))?;
    eprintln!("bench: {answer} is used on this machine");
    Ok(accel)
}

fn machine_identity() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    // Part of the answer is whether this user may open the device.
    let usable = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    format!("{} {model} kvm device {usable}", kernel.trim())
}

fn probe(cache: &Path, image: &Image) -> Result<bool> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let serial = cache.join("accel-probe.log");
    let _ = fs::remove_file(&serial);
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(Accel::Kvm.arguments())
        .args(["-m", "512", "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none"])
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .args(["-append", "console=ttyS0 panic=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run qemu-system-x86_64 (install the package qemu-system-x86)")?;
    let started = Instant::now();
    let mut alive = false;
    while started.elapsed() < PROBE_LIMIT {
        alive = fs::read(&serial).is_ok_and(|text| String::from_utf8_lossy(&text).contains(MILESTONE));
        if alive || child.try_wait().context("watch the KVM probe")?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(alive)
}
