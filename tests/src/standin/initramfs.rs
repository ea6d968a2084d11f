//! Keeps a guest's initramfs clear of its ACPI tables. Called by `machine`.
//!
//! QEMU's `microvm` puts an initramfs at the very end of the guest's memory, down from the top by
//! its size and then to a page's start; its firmware has put the ACPI tables into the last page,
//! from the end. So an archive whose last page is nearly full is written over them, and the kernel
//! stands still where it reads them. (QEMU's other machines leave 128 KiB free: `acpi_data_size`.)
//! Firecracker has no such page.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of a page of x86.
const PAGE: u64 = 4096;

/// A copy of the archive in memory, with zeros behind it until one byte of it is in the last page.
/// The kernel skips them (`Documentation/driver-api/early-userspace/buffer-format.rst`).
pub(super) fn clear_of_tables(path: &str) -> io::Result<OwnedFd> {
    let copy = File::from(memfd_create("initramfs", MFdFlags::MFD_CLOEXEC)?);
    let bytes = io::copy(&mut File::open(path)?, &mut &copy)?;
    copy.set_len(padded(bytes))?;
    Ok(copy.into())
}

/// The next size that ends one byte behind the start of a page.
const fn padded(bytes: u64) -> u64 {
    bytes.saturating_sub(1).next_multiple_of(PAGE) + 1
}

/// How a child that inherits `fd` opens the copy.
pub(super) fn inherited_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_of_memory_stays_free_but_for_a_byte() {
        for bytes in [1, 2, 3_264, PAGE - 1, PAGE, PAGE + 1, PAGE + 2, 5_897_564] {
            let size = padded(bytes);
            assert!(size >= bytes && size < bytes + PAGE, "{bytes}");
            // As `x86_load_linux` computes it, with memory that ends at 256 MiB.
            let end = ((256 << 20) - size) / PAGE * PAGE + size;
            assert_eq!(end, (256 << 20) - PAGE + 1, "{bytes}");
        }
    }

    #[test]
    fn the_archive_comes_first_and_zeros_follow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initramfs");
        std::fs::write(&path, b"070701").unwrap();
        let copy = clear_of_tables(path.to_str().unwrap()).unwrap();
        let bytes = std::fs::read(inherited_path(&copy)).unwrap();
        assert_eq!(bytes.len() as u64, PAGE + 1);
        assert!(bytes.starts_with(b"070701") && bytes[6..].iter().all(|&byte| byte == 0));
    }
}
