//! An RPM package (version 3 and 4: "Package File Format" in the Linux Standard Base): a lead, two
//! headers, and a packed cpio archive in the format `newc` (cpio(5)).

use super::Files;
use crate::ImageError;
use crate::source::Window;

pub(super) const MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
const LEAD: u64 = 96;
/// Of a header: magic and version, four bytes that are reserved, numbers of entries and of bytes.
const HEADER_MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 1];
const HEADER: usize = 16;
/// Bytes of an entry of a header's index.
const INDEX_ENTRY: u64 = 16;
/// Magic and thirteen numbers of eight hexadecimal digits.
const CPIO: usize = 110;
const MAX_NAME: u64 = 4096;

/// Why a payload cannot be read.
pub(super) enum Fault {
    Damaged(&'static str),
    Budget(ImageError),
}

/// The packed cpio archive: all that follows the headers.
pub(super) fn payload(package: &Window) -> Result<Window, &'static str> {
    // The signature is padded to eight bytes, the header is not.
    let signature = header_end(package, LEAD)?.next_multiple_of(8);
    let start = header_end(package, signature)?;
    let length = package.len().checked_sub(start).filter(|length| *length > 0).ok_or("it has no payload")?;
    package.part(start, length).ok_or("it has no payload")
}

fn header_end(package: &Window, at: u64) -> Result<u64, &'static str> {
    let mut header = [0; HEADER];
    package.read_exact_at(&mut header, at).map_err(|_| "it ends inside its headers")?;
    if !header.starts_with(&HEADER_MAGIC) {
        return Err("a header of it is none");
    }
    let number = |from: usize| header.get(from..from + 4).and_then(|raw| raw.try_into().ok()).map(u32::from_be_bytes);
    let (Some(entries), Some(bytes)) = (number(8), number(12)) else { return Err("a header of it is none") };
    let end = at + HEADER as u64 + u64::from(entries) * INDEX_ENTRY + u64::from(bytes);
    if end > package.len() { Err("it ends inside its headers") } else { Ok(end) }
}

/// The regular files of a cpio archive.
pub(super) fn files(cpio: &Window, count: &mut dyn FnMut() -> Result<(), ImageError>) -> Result<Files, Fault> {
    let short = |_| Fault::Damaged("its payload ends early");
    let mut files = Files::new();
    let mut at = 0;
    loop {
        count().map_err(Fault::Budget)?;
        let mut header = [0; CPIO];
        cpio.read_exact_at(&mut header, at).map_err(short)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(Fault::Damaged("its payload is no cpio archive of the format newc"));
        }
        let number = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8).and_then(|raw| std::str::from_utf8(raw).ok());
            let number = digits.filter(|text| text.bytes().all(|c| c.is_ascii_hexdigit()));
            let number = number.and_then(|text| u64::from_str_radix(text, 16).ok());
            number.ok_or(Fault::Damaged("a number in its payload is none"))
        };
        let (mode, size, name_size) = (number(1)?, number(6)?, number(11)?);
        if !(1..=MAX_NAME).contains(&name_size) {
            return Err(Fault::Damaged("a name in its payload is too long"));
        }
        let mut name = vec![0; usize::try_from(name_size).unwrap_or_default()];
        cpio.read_exact_at(&mut name, at + CPIO as u64).map_err(short)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        if name == b"TRAILER!!!" {
            return Ok(files);
        }
        let start = (at + CPIO as u64 + name_size).next_multiple_of(4);
        let window = cpio.part(start, size).ok_or(Fault::Damaged("its payload ends early"))?;
        let is_file = mode & 0o170_000 == 0o100_000;
        if let (true, Ok(name)) = (is_file, std::str::from_utf8(&name)) {
            let name = name.strip_prefix('.').unwrap_or(name).trim_start_matches('/').to_owned();
            // Of several names of one file, the last one has the data.
            files.insert(name, window);
        }
        at = (start + size).next_multiple_of(4);
    }
}
