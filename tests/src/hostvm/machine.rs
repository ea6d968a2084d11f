//! One running host VM: QEMU on a private copy of the image, reached by ssh over a loopback port,
//! with a key that is made for it, or under emulation for the kept host VM that it goes on from.
//!
//! Called by `banger-bench`. Whatever happens to the bench, QEMU ends with it: by `Drop`, and by a
//! parent-death signal when `Drop` never runs. The guest network is closed (`restrict=on`): traffic
//! stays inside the host VM.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::accel::Accel;
use super::booted::{self, Booted};
use super::image::Image;
use super::payload::DISK_BYTES;

/// Memory of the host VM; nested guests have 256 to 512 MiB each. Taken from the machine only as it
/// is touched.
const MEMORY_MIB: u32 = 6144;
/// A minute of the host VM's kernel (HZ=250): shorter stalls pass on a machine that has much else
/// to do.
const STALLED: u32 = 60 * 250;
/// From power on to an answering sshd, under KVM. Emulation gets the multiple of
/// [`Accel::slowness`].
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// From `poweroff` to QEMU's end, likewise.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(40);

/// A host VM that is running or can be started again on the same disk.
#[derive(Debug)]
pub struct Machine {
    image: Image,
    accel: Accel,
    files: Files,
    port: u16,
    qemu: Option<Child>,
}

/// Where its files are.
#[derive(Debug)]
pub(super) struct Files {
    /// Disks and the serial log, under `target/`: large.
    folder: PathBuf,
    /// Key and sockets: in the system's temporary folder, because a socket's path has at most 108
    /// bytes.
    secrets: TempDir,
}

/// A guest of the host VM's that never runs, under emulation. KVM patches its own and the
/// scheduler's code when the first guest comes or the last one goes, and when a guest's local APIC
/// is off as this one's is; QEMU before 8.1 may go on with what it has translated of such code
/// while it changed ("accel/tcg: Always lock pages before translation"), and the kernel then dies
/// of a breakpoint that is no longer there.
const IDLE_GUEST: &str = "systemctl --quiet is-active bench-idle-guest || { modprobe -q kvm_amd; \
    systemd-run --quiet --collect --unit=bench-idle-guest qemu-system-x86_64 -M microvm -accel kvm -cpu host -m 16 -nodefaults -no-user-config -display none -serial none -monitor none -S; }";

impl Machine {
    /// A host VM of its own in `folder`: booted, or under emulation one that goes on from where the
    /// kept one has stopped. The folder holds a `payload.tar`, which is seen inside as `/dev/vdb`,
    /// and is removed at the end.
    pub fn boot(image: &Image, accel: Accel, folder: &Path) -> Result<Self> {
        if accel == Accel::Kvm {
            return Self::cold(image, accel, folder);
        }
        let booted = Booted::ensure(image, accel)?;
        let mut machine = Self::new(image, accel, folder)?;
        booted.copy_to(&machine.files)?;
        machine.power_on(Some(&booted.memory()))?;
        // Its clock has stopped with it. What its kernel remembers of the payload's disk is of
        // another payload.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        machine.shell(&format!("date --utc --set=@{now} && blockdev --flushbufs /dev/vdb"))?;
        Ok(machine)
    }

    /// Copies the image into `folder` and boots it.
    pub(super) fn cold(image: &Image, accel: Accel, folder: &Path) -> Result<Self> {
        let mut machine = Self::new(image, accel, folder)?;
        booted::copy_disk(&image.disk, &machine.files.disk())?;
        let key = machine.files.key();
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(key))?;
        machine.power_on(None)?;
        Ok(machine)
    }

    fn new(image: &Image, accel: Accel, folder: &Path) -> Result<Self> {
        let secrets = tempfile::Builder::new().prefix("banger-bench.").tempdir().context("make a temporary folder")?;
        let files = Files { folder: folder.to_owned(), secrets };
        Ok(Self { image: image.clone(), accel, files, port: 0, qemu: None })
    }

    /// What of QEMU's arguments is the machine itself.
    pub(super) fn hardware(accel: Accel) -> Vec<String> {
        let memory = MEMORY_MIB.to_string();
        let mut words = accel.arguments().to_vec();
        words.extend(["-smp", "2", "-m", &memory, "-device", "virtio-rng-pci"]);
        words.into_iter().map(str::to_owned).collect()
    }

    /// All that a kept host VM has of what stands in this file.
    pub(super) fn made_of(accel: Accel) -> (Vec<String>, &'static str, &'static str, u64) {
        (Self::hardware(accel), accel.kernel_words(), IDLE_GUEST, DISK_BYTES)
    }

    /// Starts QEMU on the present disk, from this memory if there is one, and waits for sshd.
    fn power_on(&mut self, memory: Option<&Path>) -> Result<()> {
        ensure!(self.qemu.is_none(), "the host VM is running already");
        self.port = free_port()?;
        let key = fs::read_to_string(self.files.key().with_extension("pub")).context("read the run's public key")?;
        let append = format!(
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet {} \
             \"systemd.set_credential=ssh.authorized_keys.root:{}\"",
            self.accel.kernel_words(),
            key.trim()
        );
        let files = &self.files;
        let log = fs::File::create(files.folder.join("qemu.log")).context("create QEMU's log")?;
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(Self::hardware(self.accel))
            .args(["-display", "none", "-monitor", "none", "-no-reboot"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", files.monitor().display()))
            .arg("-serial")
            .arg(format!("file:{}", files.serial().display()))
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initrd)
            .arg("-append")
            .arg(append)
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=unsafe,discard=unmap", files.disk().display()))
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,readonly=on", files.payload().display()))
            .arg("-nic")
            .arg(format!("user,model=virtio-net-pci,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{}-:22", self.port))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share QEMU's log")?)
            .stderr(log);
        if let Some(memory) = memory {
            // The bench's folders are ours, so their names have no quote in them.
            qemu.arg("-incoming").arg(format!("exec:cat '{}'", memory.display()));
        }
        self.qemu = Some(qemu.spawn().context("run qemu-system-x86_64 (install the package qemu-system-x86)")?);
        self.wait_for_ssh()
    }

    fn wait_for_ssh(&mut self) -> Result<()> {
        let limit = self.limit(BOOT_LIMIT);
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                bail!("QEMU ended with {status} while the host VM was booting\n{}", self.last_words());
            }
            ensure!(!self.is_lost(), "the host VM's kernel has died while it booted\n{}", self.last_words());
            let answer = self.ssh(&["true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if answer.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!("no ssh into the host VM within {} s\n{}", limit.as_secs(), self.last_words());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits until systemd has finished its boot; units that failed are named.
    pub fn wait_until_up(&mut self) -> Result<()> {
        let limit = self.limit(BOOT_LIMIT).as_secs();
        let line = format!(
            "timeout {limit} systemctl is-system-running --wait || {{ systemctl --failed --no-legend --plain; systemctl list-jobs; false; }}"
        );
        let output = self.ssh(&[&line]).output().context("ask systemd for its state")?;
        ensure!(
            output.status.success(),
            "systemd in the host VM is not up: {}\n{}",
            String::from_utf8_lossy(&output.stdout),
            self.last_words()
        );
        if self.accel == Accel::Tcg {
            self.shell(IDLE_GUEST).context("start the idle guest")?;
        }
        Ok(())
    }

    /// The folder with the run's key, for whoever must remove it when this value is never dropped.
    #[must_use]
    pub fn secrets(&self) -> &Path {
        self.files.secrets.path()
    }

    pub(super) const fn files(&self) -> &Files {
        &self.files
    }

    /// An ssh command to root in the host VM, ready to be given its streams and run.
    pub fn ssh(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(["-F", "none", "-q", "-p"])
            .arg(self.port.to_string())
            .arg("-i")
            .arg(self.files.key())
            .arg("-o")
            .arg(format!("ControlPath={}", self.files.secrets.path().join("ctl").display()))
            // The host key is the image's and new per image; the port is loopback's and QEMU's.
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", "ConnectTimeout=10"])
            // Two minutes without a sign of life: longer than any pause of a live one.
            .args(["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=4"])
            .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "root@127.0.0.1"])
            .args(words);
        command
    }

    /// Runs a shell line as root inside; its output must be text and its status zero.
    pub fn shell(&self, line: &str) -> Result<String> {
        let output = self.ssh(&[line]).stdin(Stdio::null()).output().context("run ssh")?;
        ensure!(
            output.status.success(),
            "`{line}` in the host VM ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).with_context(|| format!("output of `{line}` is not text"))
    }

    /// Ends the host VM the clean way; when it does not end in time, it is cut off and that is the
    /// error.
    pub fn shut_down(&mut self) -> Result<()> {
        let _ = self.ssh(&["systemctl poweroff --no-block"]).output();
        self.wait_for_end("poweroff")
    }

    /// A clean reboot on the same disk.
    pub fn reboot(&mut self) -> Result<()> {
        let _ = self.ssh(&["systemctl reboot --no-block"]).output();
        self.wait_for_end("reboot")?;
        self.power_on(None)
    }

    /// A power cut and a new start on the same disk.
    pub fn reset(&mut self) -> Result<()> {
        self.cut_power();
        self.power_on(None)
    }

    fn wait_for_end(&mut self, what: &str) -> Result<()> {
        let limit = self.limit(SHUTDOWN_LIMIT);
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.ended()?.is_some() {
                self.cut_power();
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.cut_power();
        bail!("the host VM did not end within {} s after {what}\n{}", limit.as_secs(), self.last_words())
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.qemu.as_mut().context("the host VM is not running")?.try_wait().context("watch QEMU")
    }

    /// Ends the connection that ssh keeps: it would wait for a host that is gone.
    pub(super) fn hang_up(&self) {
        let _ = self.ssh(&[]).args(["-O", "exit"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    fn cut_power(&mut self) {
        self.hang_up();
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }

    /// Does the host VM's kernel say that it has panicked, or that one of its CPUs no longer wakes
    /// up? QEMU's emulation of two CPUs with nested guests loses an interrupt now and then, or lets
    /// one run what the other has just replaced (seen as a trap in KVM's patched code).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let text = fs::read(self.files.serial()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if text.contains("Kernel panic - not syncing") {
            return true;
        }
        let jiffies = |line: &str| line.split("kthread starved for ").nth(1)?.split(' ').next()?.parse::<u32>().ok();
        text.lines().filter_map(jiffies).any(|jiffies| jiffies > STALLED)
    }

    /// The end of the serial console, for error messages.
    #[must_use]
    pub fn last_words(&self) -> String {
        let serial = fs::read(self.files.serial()).unwrap_or_default();
        let text = String::from_utf8_lossy(&serial);
        let qemu = fs::read_to_string(self.files.folder.join("qemu.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.len().saturating_sub(40);
        format!(
            "--- QEMU said:\n{qemu}--- end of the serial log:\n{}",
            lines.get(tail..).unwrap_or_default().join("\n")
        )
    }

    /// Copies what explains a failure into `target`: serial log, QEMU's log, the journal.
    pub fn collect(&self, target: &Path) -> Result<()> {
        fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
        self.keep_logs(target);
        let journal = fs::File::create(target.join("journal.txt")).context("create the journal's copy")?;
        let line = "timeout 60 journalctl --no-pager -o short-precise -n 20000";
        self.ssh(&[line]).stdin(Stdio::null()).stdout(journal).status().context("fetch the journal")?;
        Ok(())
    }

    /// The serial log and QEMU's own, which can be had of a host VM that no longer answers.
    pub fn keep_logs(&self, target: &Path) {
        for name in ["serial.log", "qemu.log"] {
            let _ = fs::copy(self.files.folder.join(name), target.join(name));
        }
    }

    fn limit(&self, under_kvm: Duration) -> Duration {
        under_kvm * self.accel.slowness()
    }
}

impl Files {
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.join("disk.ext4")
    }

    fn payload(&self) -> PathBuf {
        self.folder.join("payload.tar")
    }

    fn serial(&self) -> PathBuf {
        self.folder.join("serial.log")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.secrets.path().join("key")
    }

    /// Of QEMU's machine protocol.
    pub(super) fn monitor(&self) -> PathBuf {
        self.secrets.path().join("qmp")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
        let _ = fs::remove_dir_all(&self.files.folder);
    }
}

pub(super) fn output(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} ended with {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no text"))
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("run {}", program.display()))?;
    ensure!(status.success(), "{} ended with {status}", program.display());
    Ok(())
}

/// A loopback port that nobody holds at this moment; QEMU fails loudly when somebody takes it in
/// between.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("read the free port")?.port())
}
