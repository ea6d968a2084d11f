//! Device-mapper's requests and answers as bytes (linux/dm-ioctl.h). The helper passes them to the
//! kernel; nothing is read or written past their end.

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
/// Room for a table or an answer, bytes.
const ROOM: usize = 2048;

/// A request, and its answer in the same place. Its field `data_size` is always its length, and its
/// length never changes: the kernel reads and writes that much.
#[derive(Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// About a device, by its name and UUID; `None` for text that does not fit or is not plain.
    #[must_use]
    pub fn about(name: &str, uuid: &str) -> Option<Self> {
        Self::new(0, name, uuid)
    }

    /// The same by UUID alone, with room for a longer answer.
    #[must_use]
    pub fn with_room(uuid: &str) -> Option<Self> {
        Self::new(ROOM, "", uuid)
    }

    /// With a table of one target.
    #[must_use]
    pub fn table(uuid: &str, sectors: u64, kind: &str, parameters: &str) -> Option<Self> {
        let mut message = Self::new(ROOM, "", uuid)?;
        message.put_target(sectors, kind, parameters)?;
        Some(message)
    }

    /// For the kernel.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Did the answer fit?
    #[must_use]
    pub fn is_whole(&self) -> Option<bool> {
        Some(self.u32(FLAGS)? & BUFFER_FULL == 0)
    }

    /// The device's minor.
    #[must_use]
    pub fn minor(&self) -> Option<u32> {
        Some(split(self.u64(DEV)?)?.1)
    }

    fn new(room: usize, name: &str, uuid: &str) -> Option<Self> {
        let mut message = Self(vec![0; HEADER.saturating_add(room)]);
        message.put_u32(0, VERSION)?;
        message.put_u32(DATA_SIZE, u32::try_from(message.0.len()).ok()?)?;
        message.put_u32(DATA_START, u32::try_from(HEADER).ok()?)?;
        message.put_text(NAME, NAME_LEN, name)?;
        message.put_text(UUID, UUID_LEN, uuid)?;
        Some(message)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        let end = at.checked_add(bytes.len())?;
        self.0.get_mut(at..end)?.copy_from_slice(bytes);
        Some(())
    }

    fn put_u32(&mut self, at: usize, value: u32) -> Option<()> {
        self.put(at, &value.to_ne_bytes())
    }

    /// With room for the final zero, or not at all.
    fn put_text(&mut self, at: usize, room: usize, text: &str) -> Option<()> {
        if text.len() >= room || text.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        self.put(at, text.as_bytes())
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at.saturating_add(4))?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at..at.saturating_add(8))?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn text(&self, at: usize, room: usize) -> Option<String> {
        let field = self.0.get(at..at.saturating_add(room).min(self.0.len()))?;
        let end = field.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned())
    }

    /// Where the answer's data begins.
    fn data(&self) -> Option<usize> {
        usize::try_from(self.u32(DATA_START)?).ok()
    }

    /// One `struct dm_target_spec` with its parameters.
    fn put_target(&mut self, sectors: u64, kind: &str, parameters: &str) -> Option<()> {
        self.put_u32(TARGET_COUNT, 1)?;
        self.put(HEADER.saturating_add(8), &sectors.to_ne_bytes())?;
        self.put_text(HEADER.saturating_add(24), 16, kind)?;
        // A space is the only character that a name may not have and parameters must.
        let room = ROOM.saturating_sub(40);
        if parameters.len() >= room || parameters.bytes().any(|byte| !(byte.is_ascii_graphic() || byte == b' ')) {
            return None;
        }
        self.put(HEADER.saturating_add(40), parameters.as_bytes())
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

impl Device {
    /// From the answers to "status" and "deps"; `None` when they cannot be read.
    #[must_use]
    pub fn read(status: &Message, deps: &Message) -> Option<Self> {
        let start = deps.data()?;
        let count = usize::try_from(deps.u32(start)?).ok()?;
        let mut uses = Vec::new();
        for index in 0..count {
            uses.push(split(deps.u64(start.saturating_add(8).saturating_add(index.saturating_mul(8)))?)?);
        }
        let (name, uuid) = (status.text(NAME, NAME_LEN)?, status.text(UUID, UUID_LEN)?);
        Some(Self { minor: status.minor()?, name, uuid, open_count: status.u32(OPEN_COUNT)?, uses })
    }
}

/// A device number as the kernel's ABI packs it (huge_encode_dev).
fn split(device: u64) -> Option<(u32, u32)> {
    let major = u32::try_from((device >> 8) & 0xfff).ok()?;
    let minor = u32::try_from((device & 0xff) | ((device >> 12) & 0xf_ff00)).ok()?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
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
        assert_eq!(Message::new(0, &"n".repeat(128), ""), None);
        assert_eq!(Message::new(0, "", &"u".repeat(129)), None);
        assert_eq!(Message::new(0, "a b", ""), None);
        assert_eq!(Message::new(0, "a\0b", ""), None);
        let mut message = Message::new(ROOM, "", "").unwrap();
        assert_eq!(message.put_target(1, "snapshot", "7:1\n7:2"), None);
        assert_eq!(message.put_target(1, "a-target-of-16-ch", ""), None);
    }

    #[test]
    fn device_numbers_are_unpacked() {
        // From the kernel's huge_encode_dev: minor 0x12345, major 0xfd.
        assert_eq!(split(0x1230_fd45), Some((0xfd, 0x12345)));
        assert_eq!(split(0x0701), Some((7, 1)));
    }

    #[test]
    fn an_answer_is_never_read_past_its_end() {
        let mut answer = Message::new(8, "", "").unwrap();
        assert_eq!(answer.u64(312), Some(0));
        assert_eq!((answer.u64(313), answer.u32(usize::MAX)), (None, None));
        answer.put(48, &[b'x'; 128]).unwrap();
        assert_eq!(answer.text(48, 128), None, "no final zero");
        answer.put_u32(16, u32::MAX).unwrap();
        assert_eq!(answer.u32(answer.data().unwrap()), None);
    }
}
