//! The ELF kernel inside a bzImage (`Documentation/arch/x86/boot.rst` in the kernel, "The Real-Mode
//! Kernel Header"): Firecracker boots an ELF, distributions ship a compressed one behind a boot
//! loader's header.

use super::error::KernelImportError;
use crate::codec::Codec;
use crate::source::{Progress, Window};
use std::fs::File;
use std::io::{BufReader, Read, Write};

/// Protocol 2.08 brought `payload_offset`; Linux 2.6.26 has it.
const MIN_PROTOCOL: u16 = 0x0208;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// A vmlinux without debug information has less than 100 MiB.
const MAX_ELF: u64 = 1 << 30;

/// True when the boot loader's header is there.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(b"HdrS") && head.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

/// Decompresses the payload into `out`.
///
/// # Errors
/// `Truncated`, `NotX86_64`, `Compression`, `Corrupt`, `Write`, `Cancelled`.
pub(super) fn extract(image: &Window, out: &mut File, progress: &dyn Progress) -> Result<(), KernelImportError> {
    let mut header = [0_u8; 0x268];
    image.read_exact_at(&mut header, 0).map_err(|_| KernelImportError::Truncated)?;
    let short = |at: usize| header.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    if short(0x206) < MIN_PROTOCOL {
        return Err(KernelImportError::NotAKernel);
    }
    if short(0x236) & XLF_KERNEL_64 == 0 {
        return Err(KernelImportError::NotX86_64);
    }
    // 0 means 4, for historical reasons; the boot sector itself is not counted.
    let sectors = match header.get(0x1f1) {
        Some(0) | None => 4,
        Some(n) => u64::from(*n),
    };
    let setup = (sectors + 1) * 512;
    let protected = u64::from(word(0x1f4)) * 16;
    let offset = setup + u64::from(word(0x248));
    let length = u64::from(word(0x24c));
    if setup + protected > image.len() {
        return Err(KernelImportError::Truncated);
    }
    let payload = image.part(offset, length).filter(|_| length > 4).ok_or(KernelImportError::Truncated)?;
    let mut size = [0; 4];
    payload.read_exact_at(&mut size, length - 4).map_err(|_| KernelImportError::Truncated)?;
    let size = u64::from(u32::from_le_bytes(size));
    // gzip counts these four bytes to its stream; the others end before them.
    let gzip = payload.head().is_ok_and(|head| Codec::of(&head) == Codec::Gzip);
    let stream = if gzip { Some(payload) } else { payload.part(0, length - 4) };
    unpack(&stream.ok_or(KernelImportError::Truncated)?, size, out, progress)
}

/// `size` is what the build appended to the payload; gzip's own trailer has it in the same place.
fn unpack(payload: &Window, size: u64, out: &mut File, progress: &dyn Progress) -> Result<(), KernelImportError> {
    let codec = Codec::of(&payload.head().map_err(KernelImportError::Read)?);
    match codec {
        Codec::Other(format) => return Err(KernelImportError::Compression { format }),
        // An uncompressed payload exists (CONFIG_KERNEL_UNCOMPRESSED), but no distribution has one.
        Codec::Plain => return Err(KernelImportError::Compression { format: "an unknown method" }),
        Codec::Gzip | Codec::Zstd | Codec::Xz | Codec::Bzip2 | Codec::Lz4 | Codec::Lz4Legacy => {}
    }
    if size > MAX_ELF {
        return Err(KernelImportError::Corrupt(std::io::Error::other("its payload claims more than 1 GiB")));
    }
    let mut reader =
        codec.decode(BufReader::with_capacity(1 << 20, payload.reader())).map_err(KernelImportError::Corrupt)?;
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        if progress.cancelled() {
            return Err(KernelImportError::Cancelled);
        }
        let n = reader.read(&mut buf).map_err(KernelImportError::Corrupt)?;
        done += n as u64;
        let chunk = buf.get(..n).unwrap_or_default();
        if chunk.is_empty() || done > size {
            break;
        }
        out.write_all(chunk).map_err(KernelImportError::write)?;
        progress.bytes(done, size);
    }
    if done == size {
        Ok(())
    } else {
        Err(KernelImportError::Corrupt(std::io::Error::other("its payload does not have the size that it claims")))
    }
}
