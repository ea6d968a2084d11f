//! Growing a mounted ext4 to the size of its device (`fs/ext4/ioctl.c`).

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

mod ioctls {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, libc::size_t);
    nix::ioctl_write_ptr!(resize_fs, b'f', 16, u64);
}

/// Size of a block device, bytes.
pub(crate) fn device_size(device: &File) -> Result<u64, Errno> {
    let mut size: libc::size_t = 0;
    // SAFETY: BLKGETSIZE64 writes one u64, and size_t is 64 bits wide on every target of this
    // program.
    unsafe { ioctls::blkgetsize64(device.as_raw_fd(), &raw mut size) }?;
    Ok(size as u64)
}

/// Grows the file system that `folder` is on to `blocks` blocks; equal sizes are a no-op in the
/// kernel.
pub(crate) fn resize(folder: &File, blocks: u64) -> Result<(), Errno> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64 from the pointer, which lives across the call.
    unsafe { ioctls::resize_fs(folder.as_raw_fd(), &raw const blocks) }.map(drop)
}
