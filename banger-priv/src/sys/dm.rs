//! Device-mapper through `/dev/mapper/control` (messages: `banger_policy::helper::dm`). Devices are
//! always named by UUID, which is fixed when they are made and which only root can set.

pub use banger_policy::helper::dm::Device;
use banger_policy::helper::dm::Message;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The commands used, `_IOWR(0xfd, n, struct dm_ioctl)`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Command {
    Create = 0xc138_fd03,
    Remove = 0xc138_fd04,
    Suspend = 0xc138_fd06,
    Status = 0xc138_fd07,
    Load = 0xc138_fd09,
    Deps = 0xc138_fd0b,
}

fn call(control: BorrowedFd<'_>, command: Command, request: Option<Message>) -> nix::Result<Message> {
    let mut message = request.ok_or(Errno::EINVAL)?;
    let number = command as u32 as libc::c_ulong;
    // SAFETY: the descriptor is open, and the buffer is as long as its data_size field says (see
    // `Message`): the kernel reads and writes within it.
    Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), number, message.bytes_mut().as_mut_ptr()) })?;
    if message.is_whole() == Some(true) { Ok(message) } else { Err(Errno::ENOBUFS) }
}

/// Makes an empty device and answers its minor.
///
/// # Errors
/// EBUSY when the name or the UUID is taken.
pub fn create(control: BorrowedFd<'_>, name: &str, uuid: &str) -> nix::Result<u32> {
    call(control, Command::Create, Message::about(name, uuid))?.minor().ok_or(Errno::EPROTO)
}

/// Loads a table of one target.
///
/// # Errors
/// EINVAL when the target refuses its parameters.
pub fn load(control: BorrowedFd<'_>, uuid: &str, sectors: u64, kind: &str, parameters: &str) -> nix::Result<()> {
    call(control, Command::Load, Message::table(uuid, sectors, kind, parameters)).map(drop)
}

/// Makes the loaded table live.
///
/// # Errors
/// The target's, when it cannot read its devices.
pub fn resume(control: BorrowedFd<'_>, uuid: &str) -> nix::Result<()> {
    call(control, Command::Suspend, Message::about("", uuid)).map(drop)
}

/// Removes a device that nobody has open.
///
/// # Errors
/// EBUSY while it is open, ENXIO when it is gone.
pub fn remove(control: BorrowedFd<'_>, uuid: &str) -> nix::Result<()> {
    call(control, Command::Remove, Message::about("", uuid)).map(drop)
}

/// Looks a device up.
///
/// # Errors
/// The kernel's; no such device is `None`.
pub fn find(control: BorrowedFd<'_>, uuid: &str) -> nix::Result<Option<Device>> {
    let ask = |command, message| match call(control, command, message) {
        Err(Errno::ENXIO) => Ok(None),
        other => other.map(Some),
    };
    let status = ask(Command::Status, Message::about("", uuid))?;
    let (Some(status), Some(deps)) = (status, ask(Command::Deps, Message::with_room(uuid))?) else { return Ok(None) };
    Device::read(&status, &deps).map(Some).ok_or(Errno::EPROTO)
}
