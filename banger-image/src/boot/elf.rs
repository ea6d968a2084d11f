//! The few fields of an ELF file that tell whether it can be what it is said to be (gABI, "Object
//! Files").

use crate::source::Window;
use std::collections::BTreeSet;

const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;
/// `e_type`: a relocatable file, which a kernel module is.
pub(super) const ET_REL: u16 = 1;

/// What is wrong with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElfFault {
    NotElf,
    NotX86_64,
    Truncated,
    /// Nothing to load.
    NoSegments,
}

/// Checks magic, class, byte order and machine; returns `e_type`.
pub(super) fn check(header: &[u8]) -> Result<u16, ElfFault> {
    if header.get(..4) != Some(b"\x7fELF") {
        return Err(ElfFault::NotElf);
    }
    let short = |at: usize| header.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    match (header.get(4), header.get(5), short(18), short(16)) {
        (Some(2), Some(1), Some(EM_X86_64), Some(kind)) => Ok(kind),
        (Some(_), Some(_), Some(_), Some(_)) => Err(ElfFault::NotX86_64),
        _ => Err(ElfFault::Truncated),
    }
}

/// A kernel: x86-64, with segments to load, all of them inside the file.
pub(super) fn check_kernel(image: &Window) -> Result<(), ElfFault> {
    let mut header = [0; 64];
    if image.read_exact_at(&mut header, 0).is_err() {
        let head = image.head().unwrap_or_default();
        return Err(if head.starts_with(b"\x7fELF") { ElfFault::Truncated } else { ElfFault::NotElf });
    }
    check(&header)?;
    let (Some(offset), Some(size), Some(count)) = (long(&header, 32), short(&header, 54), short(&header, 56)) else {
        return Err(ElfFault::Truncated);
    };
    let mut loadable = false;
    for n in 0..u64::from(count) {
        let mut entry = [0; 56];
        let at = offset.checked_add(n * u64::from(size)).ok_or(ElfFault::Truncated)?;
        image.read_exact_at(&mut entry, at).map_err(|_| ElfFault::Truncated)?;
        let kind = entry.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if kind == Some(PT_LOAD) {
            loadable = true;
            let (start, length) = (long(&entry, 8).unwrap_or_default(), long(&entry, 32).unwrap_or_default());
            if start.checked_add(length).is_none_or(|end| end > image.len()) {
                return Err(ElfFault::Truncated);
            }
        }
    }
    if loadable { Ok(()) } else { Err(ElfFault::NoSegments) }
}

fn short(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes)
}

fn long(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
}

/// What [`strings`] found.
#[derive(Debug, Default)]
pub(super) struct Strings {
    /// The release in `Linux version RELEASE (...`, `init/version-timestamp.c`.
    pub(super) release: Option<String>,
    /// Those of the wanted names that are there as whole strings.
    pub(super) names: BTreeSet<&'static str>,
}

/// Looks through the zero-terminated strings of a kernel.
pub(super) fn strings(image: &Window, wanted: &[&'static str]) -> std::io::Result<Strings> {
    const CHUNK: u64 = 1 << 20;
    /// Longer than any string that we look for: what a chunk's end cuts is whole in the next.
    const OVERLAP: u64 = 512;
    let mut found = Strings::default();
    let mut at = 0;
    while at < image.len() {
        let length = (CHUNK + OVERLAP).min(image.len() - at);
        let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
        image.read_exact_at(&mut chunk, at)?;
        for text in chunk.split(|b| *b == 0).filter(|text| text.len() >= 4) {
            if found.release.is_none() {
                found.release = text.strip_prefix(b"Linux version ").and_then(release);
            }
            found.names.extend(wanted.iter().filter(|name| name.as_bytes() == text));
        }
        at += CHUNK;
    }
    Ok(found)
}

/// The word up to the first space, when it can be a release: `uname -r` has at most 64 bytes.
pub(super) fn release(text: &[u8]) -> Option<String> {
    let word = text.split(|b| *b == b' ').next()?;
    let release = std::str::from_utf8(word).ok()?;
    let plain = release.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b));
    let fits = (3..=64).contains(&release.len()) && release.starts_with(|c: char| c.is_ascii_digit());
    (plain && fits && text.len() > word.len()).then(|| release.to_owned())
}
