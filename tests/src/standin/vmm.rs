//! The machine's state and the main loop: one thread answers the API's requests in turn, starts
//! QEMU and sees it end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::VERSION;
use super::api::{self, Action};
use super::early::{self, Early};
use super::http::Response;
use super::machine::{self, Config, OpenDrive, OpenInterface};
use super::model::{BootSource, Drive, MachineConfig, NetworkInterface, Vsock};
use super::server::{self, Call};
use super::tap;
use super::vsock;
use crate::qmp::{Monitor, QmpError};

/// Firecracker's `MAX_SUPPORTED_VCPUS`.
const MAX_VCPUS: u8 = 32;

/// Firecracker's `CMDLINE_MAX_SIZE` on x86-64, in bytes with the terminator.
const MAX_BOOT_ARGS: usize = 2048;

/// What the main loop waits for.
#[derive(Debug)]
pub(super) enum Event {
    Call(Call),
    /// QEMU's reason for the guest's end.
    GuestEnded(String),
    /// Time to look whether the guest boots.
    Look,
    /// The QEMU with this pid has ended.
    QemuEnded(u32, io::Result<ExitStatus>),
}

/// Why the stand-in itself ends with a failure.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("Failed to open the API socket at: {0}. Check that it is not already used. ({1})")]
    Socket(String, #[source] io::Error),
    #[error("QEMU ended with {0}")]
    Qemu(ExitStatus),
    #[error("waiting for QEMU: {0}")]
    Wait(#[source] io::Error),
    #[error("the event channel is closed")]
    Closed,
}

/// Why an action is refused; the texts are Firecracker's where it has one.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterBoot,
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeBoot,
    #[error("Boot source error: The kernel file cannot be opened: {0}")]
    Kernel(#[source] io::Error),
    #[error("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    Initrd(#[source] io::Error),
    #[error("Boot source error: The kernel command line is invalid: Invalid cmdline capacity provided.")]
    CommandLineLength,
    #[error("Drive config error: Unable to create the virtio block device: Invalid block config.")]
    DriveWithoutPath,
    #[error("Drive config error: A root block device already exists!")]
    SecondRoot,
    #[error(
        "Drive config error: Unable to create the virtio block device: Virtio backend error: \
         Error manipulating the backing file: {0} {1}"
    )]
    Drive(#[source] io::Error, String),
    #[error("Logger error: Failed to open target file: {0}")]
    Logger(#[source] io::Error),
    #[error(
        "Machine config error: The number of vCPUs must be greater than 0, less than {MAX_VCPUS} and must be 1 or an even number \
         if SMT is enabled."
    )]
    VcpuCount,
    #[error("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    MemorySize,
    #[error("Metrics error: Cannot initialize the metrics system due to bad user input: {0}")]
    Metrics(#[source] io::Error),
    #[error(
        "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed."
    )]
    MetricsTwice,
    #[error("Internal VMM error: Failed to write metrics: {0}")]
    FlushMetrics(#[source] io::Error),
    #[error("Network config error: The MAC address is already in use: {0}")]
    MacInUse(String),
    #[error(
        "Network config error: Could not create the network device: Open tap device failed: Error while creating ifreq structure: \
         {0}. Invalid TUN/TAP Backend provided by {1}. Check our documentation on setting up the network devices."
    )]
    Tap(#[source] io::Error, String),
    #[error(
        "Network config error: Could not create the network device: Open tap device failed: Invalid interface name"
    )]
    TapName,
    #[error(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: {0}"
    )]
    VsockBind(#[source] io::Error),
    #[error("Start microvm error: Cannot start microvm without kernel configuration.")]
    NoKernel,
    #[error("Start microvm error: {0}")]
    Start(#[source] io::Error),
    #[error("Start microvm error: {0}")]
    Qemu(#[source] QmpError),
    #[error("Internal VMM error: {0}")]
    Monitor(#[from] QmpError),
}

/// A started QEMU.
#[derive(Debug)]
struct Machine {
    pid: u32,
    monitor: Monitor,
    paused: bool,
    /// Until the guest has read a disk, under emulation.
    early: Option<Early>,
}

/// The VMM as its clients see it. It differs from Firecracker in what follows:
///
/// - a guest's connection to a port with a stale socket file is accepted and closed, where
///   Firecracker refuses it;
/// - ports that a guest connects to must be unique among the VMs of a host, since `AF_VSOCK` is one
///   name space, and a socket file that appears later is noticed within [`vsock::SCAN_INTERVAL`];
/// - a guest that powers off does so (`reboot: Power down`) and is then stopped, where Firecracker
///   offers no power-off and the guest halts; both leave the process running;
/// - metrics are those of the block devices only, and written on `FlushMetrics` only;
/// - a connection asked for while the guest is paused or halted is closed after two seconds, where
///   Firecracker leaves it open without an answer;
/// - QEMU takes more memory than Firecracker beside the guest's: some 20 MiB against 5, and what it
///   maps of its libraries.
#[derive(Debug)]
pub(super) struct Standin {
    id: String,
    config: Config,
    vsock: Option<vsock::Listener>,
    log: Option<File>,
    metrics: Option<File>,
    machine: Option<Machine>,
    events: Sender<Event>,
}

/// Serves the API until the machine has ended.
pub(super) fn run(api_sock: &Path, id: String) -> Result<(), RunError> {
    let (events, inbox) = mpsc::channel();
    server::spawn(api_sock, events.clone()).map_err(|error| RunError::Socket(api_sock.display().to_string(), error))?;
    let (config, vsock, log, metrics, machine) = Default::default();
    let mut standin = Standin { id, config, vsock, log, metrics, machine, events };
    standin.say(&format!("Running Firecracker v{VERSION} (banger bench stand-in over QEMU microvm)"));
    for event in inbox {
        match event {
            Event::Call(Call { action, reply }) => {
                let answer = standin.answer(action).unwrap_or_else(|error| api::fault(&error));
                // A client that has gone away does not undo what it asked for.
                let _ = reply.send(answer);
            }
            Event::GuestEnded(reason) => standin.guest_ended(&reason),
            Event::Look => standin.look(),
            Event::QemuEnded(pid, status) if standin.machine.as_ref().is_some_and(|machine| machine.pid == pid) => {
                let status = status.map_err(RunError::Wait)?;
                standin.say(&format!("QEMU ended with {status}"));
                return if status.success() { Ok(()) } else { Err(RunError::Qemu(status)) };
            }
            // One that failed to start: the client knows from its answer.
            Event::QemuEnded(..) => {}
        }
    }
    Err(RunError::Closed)
}

impl Standin {
    fn answer(&mut self, action: Action) -> Result<Response, ActionError> {
        let body = match action {
            Action::InstanceInfo => Some(self.instance_info()),
            Action::Version => Some(super::version()),
            Action::GetMachineConfig => Some(json!(self.config.machine)),
            Action::FlushMetrics | Action::SendCtrlAltDel | Action::Pause | Action::Resume => self.control(&action)?,
            configure => {
                if self.machine.is_some() {
                    return Err(ActionError::AfterBoot);
                }
                self.configure(configure)?;
                None
            }
        };
        let status = if body.is_some() { 200 } else { 204 };
        Ok(Response { status, body: body.map(|value| value.to_string()) })
    }

    fn instance_info(&self) -> Value {
        let state = match &self.machine {
            None => "Not started",
            Some(machine) if machine.paused => "Paused",
            Some(_) => "Running",
        };
        json!({ "id": self.id, "state": state, "vmm_version": VERSION, "app_name": "Firecracker" })
    }

    /// Before the start.
    fn configure(&mut self, action: Action) -> Result<(), ActionError> {
        match action {
            Action::MachineConfig(machine) => self.set_machine(machine),
            Action::BootSource(boot) => self.set_boot_source(boot),
            Action::Drive(drive) => self.add_drive(drive),
            Action::NetworkInterface(interface) => self.add_interface(interface),
            Action::Vsock(vsock) => self.set_vsock(vsock),
            Action::Logger(logger) => {
                if let Some(path) = logger.log_path {
                    self.log = Some(open_output(&path).map_err(ActionError::Logger)?);
                }
                Ok(())
            }
            Action::Metrics(metrics) => {
                if self.metrics.is_some() {
                    return Err(ActionError::MetricsTwice);
                }
                self.metrics = Some(open_output(&metrics.metrics_path).map_err(ActionError::Metrics)?);
                Ok(())
            }
            Action::Serial(serial) => {
                self.config.serial_out_path = serial.serial_out_path;
                Ok(())
            }
            Action::InstanceStart => self.start(),
            _ => Ok(()),
        }
    }

    /// After the start.
    fn control(&mut self, action: &Action) -> Result<Option<Value>, ActionError> {
        let machine = self.machine.as_mut().ok_or(ActionError::BeforeBoot)?;
        match action {
            Action::Pause => {
                machine.monitor.execute("stop", &json!({}))?;
                machine.paused = true;
            }
            Action::Resume => {
                machine.monitor.execute("cont", &json!({}))?;
                machine.paused = false;
            }
            Action::SendCtrlAltDel => {
                let keys = ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key }));
                machine.monitor.execute("send-key", &json!({ "keys": keys }))?;
            }
            _ => self.flush_metrics()?,
        }
        Ok(None)
    }

    fn set_machine(&mut self, machine: MachineConfig) -> Result<(), ActionError> {
        if machine.vcpu_count == 0 || machine.vcpu_count > MAX_VCPUS {
            return Err(ActionError::VcpuCount);
        }
        if machine.mem_size_mib == 0 {
            return Err(ActionError::MemorySize);
        }
        self.config.machine = machine;
        Ok(())
    }

    fn set_boot_source(&mut self, boot: BootSource) -> Result<(), ActionError> {
        File::open(&boot.kernel_image_path).map_err(ActionError::Kernel)?;
        if let Some(initrd) = &boot.initrd_path {
            File::open(initrd).map_err(ActionError::Initrd)?;
        }
        let args = boot.boot_args.as_deref().unwrap_or_default();
        if args.len() >= MAX_BOOT_ARGS {
            return Err(ActionError::CommandLineLength);
        }
        self.config.boot = Some(boot);
        Ok(())
    }

    fn add_drive(&mut self, drive: Drive) -> Result<(), ActionError> {
        let drives = &mut self.config.drives;
        let at = drives.iter().position(|open| open.drive.drive_id == drive.drive_id);
        let has_root = drives.first().is_some_and(|open| open.drive.is_root_device);
        if drive.is_root_device && has_root && at != Some(0) {
            return Err(ActionError::SecondRoot);
        }
        let path = drive.path_on_host.clone().ok_or(ActionError::DriveWithoutPath)?;
        let opened = OpenOptions::new().read(true).write(!drive.is_read_only.unwrap_or(false)).open(&path);
        let fault = |error| ActionError::Drive(error, path.clone());
        let file = opened.map_err(fault)?;
        let block_device = file.metadata().map_err(fault)?.file_type().is_block_device();
        let root = drive.is_root_device;
        let open = OpenDrive { drive, path, block_device, _file: file };
        if let Some(old) = at.filter(|&at| at < drives.len()) {
            drives.remove(old);
            drives.insert(if root { 0 } else { old }, open);
        } else {
            drives.insert(if root { 0 } else { drives.len() }, open);
        }
        Ok(())
    }

    fn add_interface(&mut self, interface: NetworkInterface) -> Result<(), ActionError> {
        let interfaces = &mut self.config.interfaces;
        let other = |open: &OpenInterface| open.interface.iface_id != interface.iface_id;
        if let Some(mac) = &interface.guest_mac
            && interfaces.iter().any(|open| other(open) && open.interface.guest_mac.as_ref() == Some(mac))
        {
            return Err(ActionError::MacInUse(mac.clone()));
        }
        // First, for the same tap may be attached again.
        interfaces.retain(other);
        let tap = tap::open(&interface.host_dev_name).map_err(|error| match error {
            tap::OpenError::Name => ActionError::TapName,
            tap::OpenError::Io(error) => ActionError::Tap(error, interface.host_dev_name.clone()),
        })?;
        interfaces.push(OpenInterface { interface, tap });
        Ok(())
    }

    fn set_vsock(&mut self, config: Vsock) -> Result<(), ActionError> {
        if let Some(old) = self.config.vsock.take() {
            self.vsock = None;
            std::fs::remove_file(old.uds_path).map_err(ActionError::VsockBind)?;
        }
        self.vsock = Some(vsock::Listener::bind(&config).map_err(ActionError::VsockBind)?);
        self.config.vsock = Some(config);
        Ok(())
    }

    fn start(&mut self) -> Result<(), ActionError> {
        let boot = self.config.boot.as_ref().ok_or(ActionError::NoKernel)?;
        let (mut child, stream) = machine::spawn(&self.config, boot).map_err(ActionError::Start)?;
        let pid = child.id();
        let events = self.events.clone();
        thread::spawn(move || {
            let status = child.wait();
            // The main loop can only have ended together with the process.
            let _ = events.send(Event::QemuEnded(pid, status));
        });
        let events = self.events.clone();
        let mut monitor = Monitor::open(stream, move |event, data| match shutdown_reason(event, data) {
            Some(reason) => events.send(Event::GuestEnded(reason)).is_ok(),
            None => true,
        })
        .map_err(ActionError::Qemu)?;
        if let Some(listener) = self.vsock.take() {
            listener.serve().map_err(ActionError::Start)?;
        }
        monitor.execute("cont", &json!({})).map_err(ActionError::Qemu)?;
        let early = Early::watch(!self.config.drives.is_empty(), &self.events);
        // QEMU holds them now; ours would keep tap and disks busy for nothing.
        self.config.drives.clear();
        self.config.interfaces.clear();
        self.machine = Some(Machine { pid, monitor, paused: false, early });
        Ok(())
    }

    fn look(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        let Some(early) = &mut machine.early else { return };
        let (said, boots) = early.look(&mut machine.monitor);
        if boots {
            machine.early = None;
        }
        said.iter().for_each(|text| self.say(text));
    }

    fn guest_ended(&mut self, reason: &str) {
        self.say(&format!("the guest ended: {reason}"));
        if let Some(machine) = &mut self.machine
            && reason == "guest-reset"
        {
            if let Some(said) = machine.early.as_mut().and_then(|early| early.was_reset(&mut machine.monitor)) {
                self.say(&said);
                return;
            }
            // Firecracker ends when a guest resets the machine, and only then.
            if let Err(error) = machine.monitor.execute("quit", &json!({})) {
                self.say(&format!("QEMU did not quit: {error}"));
                std::process::exit(1);
            }
        }
    }

    /// Appends the counters of the block devices as one line, under Firecracker's names.
    fn flush_metrics(&mut self) -> Result<(), ActionError> {
        let (Some(file), Some(machine)) = (&mut self.metrics, &mut self.machine) else { return Ok(()) };
        let stats = machine.monitor.execute("query-blockstats", &json!({}))?;
        let sum = |name: &str| early::sum(&stats, name);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let line = json!({
            "utc_timestamp_ms": u64::try_from(now).unwrap_or(u64::MAX),
            "block": {
                "read_bytes": sum("rd_bytes"), "write_bytes": sum("wr_bytes"),
                "read_count": sum("rd_operations"), "write_count": sum("wr_operations"), "flush_count": sum("flush_operations"),
            },
        });
        writeln!(file, "{line}").map_err(ActionError::FlushMetrics)
    }

    /// One line to the log, or to standard output where none is configured, as Firecracker does.
    fn say(&mut self, text: &str) {
        let line = format!("[{}:main] {text}\n", self.id);
        let written = match &mut self.log {
            Some(log) => log.write_all(line.as_bytes()),
            None => io::stdout().write_all(line.as_bytes()),
        };
        if let Err(error) = written {
            eprintln!("stand-in: {error}: {line}");
        }
    }
}

/// Source: `qapi/run-state.json` of QEMU.
fn shutdown_reason(event: &str, data: &Value) -> Option<String> {
    (event == "SHUTDOWN").then(|| data.get("reason").and_then(Value::as_str).unwrap_or("unknown").to_owned())
}

/// Opens as Firecracker's `open_file_nonblock` does: made when missing, neither cut nor appended
/// to, no waiting on a pipe.
fn open_output(path: &str) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
}
