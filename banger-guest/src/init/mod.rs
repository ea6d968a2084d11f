//! PID 1 from the initramfs: from a bare kernel to the image's own init.
//!
//! Called by `main` when the process is PID 1. The order below is the whole boot. It never returns
//! to the kernel: an error is said on the console and to the daemon, and the VM is switched off.

use banger_proto::guest::{CONFIG_PATH, GuestConfig, GuestEvent, Hello};
use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

use crate::console::{describe, say};
use crate::init_kind::InitKind;
use crate::launch::{PATH, launch};
use crate::sys::{random, vsock};
use error::Error;
use image::Image;
use nix::sys::resource::{Resource, setrlimit};
use pid1::Ending;

mod attached;
mod error;
mod fresh;
mod fstab;
mod identity;
mod image;
mod image_init;
mod keep;
mod managers;
mod modules;
mod mounts;
mod network;
mod pid1;
mod reader;
mod systemd;

/// Open files of a process, as systemd has them for services: few enough that a program which
/// closes every possible descriptor is quick, and more for those that ask.
const OPEN_FILES: (u64, u64) = (1024, 512 * 1024);

/// Boots the guest.
pub(crate) fn main() -> ExitCode {
    let mut config = None;
    let error = match boot(&mut config) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let reason = describe(&error);
    say(format_args!("the boot cannot go on: {reason}"));
    if let Some(config) = &config
        && let Err(error) = report_failure(config, &reason)
    {
        say(format_args!("the daemon could not be told: {error}"));
    }
    pid1::end_machine(Ending::PowerOff)
}

fn boot(seen: &mut Option<GuestConfig>) -> Result<Infallible, Error> {
    mounts::kernel_file_systems()?;
    mounts::open_console();
    let config = read_config()?;
    *seen = Some(config.clone());
    seed_random(&config);
    modules::load_all(Path::new(banger_proto::guest::MODULES_DIR))?;
    if config.reads {
        return reader::run(&config);
    }
    let root = Path::new(&config.root_device);
    mounts::wait_for_device(root)?;
    mounts::root(root)?;
    // From here on every path means the image's: links in it lead where the image says, never out
    // of it.
    mounts::switch_root()?;
    mounts::kernel_file_systems()?;
    mounts::runtime_file_systems();
    if let Some(device) = &config.work_device {
        mounts::work_disk(Path::new(device))?;
    }
    let image = Image::at("/");
    if let Some(device) = &config.modules_device {
        mounts::modules(&image, Path::new(device));
    }
    identity::apply(&image, &config);
    fresh::apply(&image, &config);
    if let Err(error) = network::configure(&config) {
        // The agent needs no network, so the VM stays usable and its owner can look.
        say(format_args!("no network: {}", describe(&error)));
    }
    managers::prepare(&image);
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1) {
        say(format_args!("cannot set the limit of open files: {error}"));
    }
    for found in image_init::find(&image) {
        if found.kind == InitKind::Systemd {
            systemd::prepare(&image);
        }
        start_agent(&config, found.kind)?;
        say(describe(&hand_over(&found.path)));
        // Another architecture, no interpreter, no loader. The agent has been told of an init that
        // is none.
        pid1::end_all();
    }
    mounts::without_image_init();
    pid1::run(|| start_agent(&config, InitKind::Own))
}

/// Mounts what an init of the image has unmounted: systemd does so at a soft-reboot, and knows of
/// no disks of ours that it would mount again. Called by the agent when it begins; usually there is
/// nothing to do.
pub(crate) fn mount_again(config: &GuestConfig, init: InitKind) {
    if init.now() != InitKind::Systemd {
        return;
    }
    let image = Image::at("/");
    if let Some(device) = &config.work_device
        && !mounts::is_mounted(Path::new(device), Path::new("/root"))
        && let Err(error) = mounts::work_disk(Path::new(device))
    {
        say(format_args!("the work disk is not mounted again: {}", describe(&error)));
    }
    if let Some(device) = &config.modules_device
        && !mounts::modules_are_mounted(Path::new(device))
    {
        mounts::modules(&image, Path::new(device));
    }
}

/// A guest has few events by which the kernel could gather randomness early, and a virtual CPU may
/// have no source of its own. The token is 256 bits from the host's generator, new at each boot;
/// what the kernel makes of it tells nothing about it.
fn seed_random(config: &GuestConfig) {
    if let Err(error) = random::add(config.token.reveal().as_bytes(), 256) {
        say(format_args!("the kernel's random generator is not seeded: {error}"));
    }
}

/// Executes the image's init in this process. Returns only the error.
fn hand_over(program: &Path) -> Error {
    // What the kernel itself gives to an init.
    let source = Command::new(program).env_clear().env("HOME", "/").env("TERM", "linux").env("PATH", PATH).exec();
    Error::Init { path: program.to_owned(), source }
}

fn start_agent(config: &GuestConfig, init: InitKind) -> Result<Child, Error> {
    let text = serde_json::to_vec(config).map_err(Error::EncodeConfig)?;
    launch(&text, &[init.flag()]).map_err(Error::Agent)
}

fn read_config() -> Result<GuestConfig, Error> {
    let path = Path::new(CONFIG_PATH);
    let text = fs::read(path).map_err(|source| Error::ReadConfig { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::ParseConfig { path: path.to_owned(), source })
}

/// Tells the daemon on the control channel, which the agent would otherwise open.
fn report_failure(config: &GuestConfig, reason: &str) -> std::io::Result<()> {
    let mut lines = serde_json::to_vec(&Hello { token: config.token.clone() })?;
    lines.push(b'\n');
    lines.append(&mut serde_json::to_vec(&GuestEvent::Failed { reason: shorten(reason) })?);
    lines.push(b'\n');
    let mut stream = fs::File::from(vsock::connect_host_blocking(config.control_port)?);
    stream.write_all(&lines)?;
    // The data is on its way, but a VM that ends takes the device with it: the host reads first.
    std::thread::sleep(std::time::Duration::from_millis(200));
    Ok(())
}

/// Keeps a reason within a control line, with room for its JSON form.
fn shorten(reason: &str) -> String {
    const ROOM: usize = banger_proto::guest::MAX_CONTROL_LINE / 2 - 40;
    let clean: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().find(|(at, c)| at + c.len_utf8() > ROOM) {
        Some((at, _)) => clean.get(..at).unwrap_or_default().to_owned(),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration of some VM.
    pub(super) fn config() -> GuestConfig {
        GuestConfig {
            hostname: "web".into(),
            address: [172, 16, 0, 2].into(),
            gateway: [172, 16, 0, 1].into(),
            dns: [1, 1, 1, 1].into(),
            authorized_keys: Vec::new(),
            host_key: String::new(),
            control_port: 10001,
            token: banger_proto::guest::BootToken::new([1; 32]),
            root_device: "/dev/vda".into(),
            work_device: None,
            modules_device: None,
            reads: false,
            image: banger_policy::ImageConfig::default(),
        }
    }

    #[test]
    fn a_reason_fits_a_control_line() {
        let long = "ä\"\n".repeat(1000);
        let line = serde_json::to_string(&GuestEvent::Failed { reason: shorten(&long) }).unwrap_or_default();
        assert!(line.len() < banger_proto::guest::MAX_CONTROL_LINE, "{}", line.len());
        assert_eq!(shorten("no disk"), "no disk");
    }

    #[test]
    fn an_error_is_described_with_its_causes() {
        let source = std::io::Error::other("bad disk");
        let error = Error::Init { path: "/sbin/init".into(), source };
        assert_eq!(describe(&error), "cannot execute the image's init /sbin/init: bad disk");
    }
}
