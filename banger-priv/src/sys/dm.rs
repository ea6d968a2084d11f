//! Device-mapper through `/dev/mapper/control` (linux/dm-ioctl.h). Devices are always named by UUID, which
//! is fixed when they are made and which only root can set.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Size of `struct dm_ioctl`, and the offsets of its fields.
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const OPEN_COUNT: usize = 24;
const FLAGS: usize = 28;
const DEV: usize = 40;
const NAME: usize = 48;
const NAME_LEN: usize = 128;
const UUID: usize = 176;
const UUID_LEN: usize = 129;
/// The kernel's interface version that is asked for; any 4.x answers.
const VERSION: u32 = 4;
/// `DM_BUFFER_FULL_FLAG`: the answer did not fit.
const BUFFER_FULL: u32 = 1 << 8;
/// Room for an answer, bytes.
const ROOM: usize = 2048;
/// The commands used, `_IOWR(0xfd, n, struct dm_ioctl)`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Command {
    Create = 0xc138_fd03,
    Remove = 0xc138_fd04,
    Suspend = 0xc138_fd06,
    Status = 0xc138_fd07,
    Load = 0xc138_fd09,
    Deps = 0xc138_fd0b,
}

/// The request and its answer.
#[derive(Debug, PartialEq, Eq)]
struct Message(Vec<u8>);

impl Message {
    fn new(room: usize, name: &str, uuid: &str) -> nix::Result<Self> {
        let mut message = Self(vec![0; HEADER.saturating_add(room)]);
        message.put_u32(0, VERSION)?;
        message.put_u32(DATA_SIZE, u32::try_from(message.0.len()).map_err(|_| Errno::EINVAL)?)?;
        message.put_u32(DATA_START, u32::try_from(HEADER).map_err(|_| Errno::EINVAL)?)?;
        message.put_text(NAME, NAME_LEN, name)?;
        message.put_text(UUID, UUID_LEN, uuid)?;
        Ok(message)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> nix::Result<()> {
        let end = at.checked_add(bytes.len()).ok_or(Errno::EINVAL)?;
        self.0.get_mut(at..end).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
        Ok(())
    }

    fn put_u32(&mut self, at: usize, value: u32) -> nix::Result<()> {
        self.put(at, &value.to_ne_bytes())
    }

    /// With room for the final zero, or not at all.
    fn put_text(&mut self, at: usize, room: usize, text: &str) -> nix::Result<()> {
        if text.len() >= room || text.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(Errno::EINVAL);
        }
        self.put(at, text.as_bytes())
    }

    fn u32(&self, at: usize) -> nix::Result<u32> {
        let bytes = self.0.get(at..at.saturating_add(4)).ok_or(Errno::EPROTO)?;
        Ok(u32::from_ne_bytes(bytes.try_into().map_err(|_| Errno::EPROTO)?))
    }

    fn u64(&self, at: usize) -> nix::Result<u64> {
        let bytes = self.0.get(at..at.saturating_add(8)).ok_or(Errno::EPROTO)?;
        Ok(u64::from_ne_bytes(bytes.try_into().map_err(|_| Errno::EPROTO)?))
    }

    fn text(&self, at: usize, room: usize) -> nix::Result<String> {
        let field = self.0.get(at..at.saturating_add(room).min(self.0.len())).ok_or(Errno::EPROTO)?;
        let end = field.iter().position(|byte| *byte == 0).ok_or(Errno::EPROTO)?;
        Ok(String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned())
    }

    /// Where the answer's data begins.
    fn data(&self) -> nix::Result<usize> {
        usize::try_from(self.u32(DATA_START)?).map_err(|_| Errno::EPROTO)
    }

    /// One `struct dm_target_spec` with its parameters.
    fn put_target(&mut self, sectors: u64, kind: &str, parameters: &str) -> nix::Result<()> {
        self.put_u32(TARGET_COUNT, 1)?;
        self.put(HEADER.saturating_add(8), &sectors.to_ne_bytes())?;
        self.put_text(HEADER.saturating_add(24), 16, kind)?;
        // A space is the only character that a name may not have and parameters must.
        let room = ROOM.saturating_sub(40);
        if parameters.len() >= room || parameters.bytes().any(|byte| !(byte.is_ascii_graphic() || byte == b' ')) {
            return Err(Errno::EINVAL);
        }
        self.put(HEADER.saturating_add(40), parameters.as_bytes())
    }

    fn call(mut self, control: BorrowedFd<'_>, command: Command) -> nix::Result<Self> {
        let number = command as u32 as libc::c_ulong;
        // SAFETY: the descriptor is open, and the buffer is as long as its data_size field says: the
        // kernel reads and writes within it (checked in `new`, and the vector never changes its length).
        Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), number, self.0.as_mut_ptr()) })?;
        if self.u32(FLAGS)? & BUFFER_FULL == 0 { Ok(self) } else { Err(Errno::ENOBUFS) }
    }
}

/// A device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// N of `/dev/dm-N`.
    pub minor: u32,
    /// Its name, which root can change.
    pub name: String,
    /// Its UUID, which nobody can.
    pub uuid: String,
    /// How often it is open.
    pub open_count: u32,
    /// Major and minor of the devices that its table uses, in the kernel's order.
    pub uses: Vec<(u32, u32)>,
}

/// A device number as the kernel's ABI packs it (huge_encode_dev).
fn split(device: u64) -> nix::Result<(u32, u32)> {
    let major = u32::try_from((device >> 8) & 0xfff).map_err(|_| Errno::EPROTO)?;
    let minor = u32::try_from((device & 0xff) | ((device >> 12) & 0xf_ff00)).map_err(|_| Errno::EPROTO)?;
    Ok((major, minor))
}

/// Makes an empty device and answers its minor.
///
/// # Errors
/// EBUSY when the name or the UUID is taken.
pub fn create(control: BorrowedFd<'_>, name: &str, uuid: &str) -> nix::Result<u32> {
    let answer = Message::new(0, name, uuid)?.call(control, Command::Create)?;
    Ok(split(answer.u64(DEV)?)?.1)
}

/// Loads a table of one target.
///
/// # Errors
/// EINVAL when the target refuses its parameters.
pub fn load(control: BorrowedFd<'_>, uuid: &str, sectors: u64, kind: &str, parameters: &str) -> nix::Result<()> {
    let mut message = Message::new(ROOM, "", uuid)?;
    message.put_target(sectors, kind, parameters)?;
    message.call(control, Command::Load).map(drop)
}

/// Makes the loaded table live.
///
/// # Errors
/// The target's, when it cannot read its devices.
pub fn resume(control: BorrowedFd<'_>, uuid: &str) -> nix::Result<()> {
    Message::new(0, "", uuid)?.call(control, Command::Suspend).map(drop)
}

/// Removes a device that nobody has open.
///
/// # Errors
/// EBUSY while it is open, ENXIO when it is gone.
pub fn remove(control: BorrowedFd<'_>, uuid: &str) -> nix::Result<()> {
    Message::new(0, "", uuid)?.call(control, Command::Remove).map(drop)
}

/// Looks a device up.
///
/// # Errors
/// The kernel's; no such device is `None`.
pub fn find(control: BorrowedFd<'_>, uuid: &str) -> nix::Result<Option<Device>> {
    let ask = |room, command| match Message::new(room, "", uuid)?.call(control, command) {
        Err(Errno::ENXIO) => Ok(None),
        other => other.map(Some),
    };
    let (Some(status), Some(deps)) = (ask(0, Command::Status)?, ask(ROOM, Command::Deps)?) else { return Ok(None) };
    let start = deps.data()?;
    let count = usize::try_from(deps.u32(start)?).map_err(|_| Errno::EPROTO)?;
    let mut uses = Vec::new();
    for index in 0..count {
        uses.push(split(deps.u64(start.saturating_add(8).saturating_add(index.saturating_mul(8)))?)?);
    }
    Ok(Some(Device {
        minor: split(status.u64(DEV)?)?.1,
        name: status.text(NAME, NAME_LEN)?,
        uuid: status.text(UUID, UUID_LEN)?,
        open_count: status.u32(OPEN_COUNT)?,
        uses,
    }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout() {
        let mut message = Message::new(ROOM, "bgr-x", "BANGER-x").unwrap();
        message.put_target(16_384, "snapshot", "7:1 7:2 PO 8").unwrap();
        let bytes = &message.0;
        assert_eq!(bytes.len(), 312 + 2048);
        assert_eq!(bytes[0..4], 4_u32.to_ne_bytes());
        assert_eq!(bytes[12..16], 2360_u32.to_ne_bytes());
        assert_eq!(bytes[16..20], 312_u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 1_u32.to_ne_bytes());
        assert_eq!(&bytes[48..54], b"bgr-x\0");
        assert_eq!(&bytes[176..185], b"BANGER-x\0");
        // dm_target_spec: start, length, status, next, type, then the parameters.
        assert_eq!(bytes[312..320], 0_u64.to_ne_bytes());
        assert_eq!(bytes[320..328], 16_384_u64.to_ne_bytes());
        assert_eq!(&bytes[336..345], b"snapshot\0");
        assert_eq!(&bytes[352..365], b"7:1 7:2 PO 8\0");
    }

    #[test]
    fn text_that_does_not_fit_or_is_not_plain_is_refused() {
        assert_eq!(Message::new(0, &"n".repeat(128), ""), Err(Errno::EINVAL));
        assert_eq!(Message::new(0, "", &"u".repeat(129)), Err(Errno::EINVAL));
        assert_eq!(Message::new(0, "a b", ""), Err(Errno::EINVAL));
        assert_eq!(Message::new(0, "a\0b", ""), Err(Errno::EINVAL));
        let mut message = Message::new(ROOM, "", "").unwrap();
        assert_eq!(message.put_target(1, "snapshot", "7:1\n7:2"), Err(Errno::EINVAL));
        assert_eq!(message.put_target(1, "a-target-of-16-ch", ""), Err(Errno::EINVAL));
    }

    #[test]
    fn device_numbers_are_unpacked() {
        // From the kernel's huge_encode_dev: minor 0x12345, major 0xfd.
        assert_eq!(split(0x1230_fd45), Ok((0xfd, 0x12345)));
        assert_eq!(split(0x0701), Ok((7, 1)));
    }

    #[test]
    fn an_answer_is_never_read_past_its_end() {
        let mut answer = Message::new(8, "", "").unwrap();
        assert_eq!(answer.u64(312), Ok(0));
        assert_eq!((answer.u64(313), answer.u32(usize::MAX)), (Err(Errno::EPROTO), Err(Errno::EPROTO)));
        answer.put(48, &[b'x'; 128]).unwrap();
        assert_eq!(answer.text(48, 128), Err(Errno::EPROTO), "no final zero");
        answer.put_u32(16, u32::MAX).unwrap();
        assert_eq!(answer.u32(answer.data().unwrap()), Err(Errno::EPROTO));
    }
}
