//! Loop devices (linux/loop.h), always with AUTOCLEAR: the last one to close it frees it, so that
//! nothing is left when the helper dies between two steps.

use crate::record::beneath;
use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor, openat2};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `struct loop_info64`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [[u8; 32]; 2],
    crypt_name: [[u8; 32]; 2],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

pub(crate) const LOOP_GET_STATUS64: u32 = 0x4c05;
pub(crate) const LOOP_CONFIGURE: u32 = 0x4c0a;
pub(crate) const LOOP_CTL_GET_FREE: u32 = 0x4c82;
pub(crate) const BLKGETDISKSEQ: u32 = 0x8008_1280;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// The block major of loop devices (linux/major.h).
pub const LOOP_MAJOR: u32 = 7;
/// How often a free device may be taken by somebody else between asking for it and configuring it.
const RACES: u32 = 64;

nix::ioctl_none_bad!(loop_get_free, LOOP_CTL_GET_FREE);
nix::ioctl_write_ptr_bad!(loop_configure, LOOP_CONFIGURE, LoopConfig);
nix::ioctl_read_bad!(loop_status, LOOP_GET_STATUS64, LoopInfo64);
nix::ioctl_read_bad!(block_disk_sequence, BLKGETDISKSEQ, u64);

/// A configured loop device; freed when this is dropped and nobody else has it open.
#[derive(Debug)]
pub struct Loop {
    node: OwnedFd,
    number: u32,
    sequence: u64,
}

impl Loop {
    /// Attaches `file`. `control` is `/dev/loop-control`, `dev` is `/dev`; `label` is a mark for
    /// people.
    ///
    /// # Errors
    /// EBUSY when every free device was taken by others 64 times, else the kernel's.
    pub fn attach(
        control: BorrowedFd<'_>,
        dev: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        read_only: bool,
        label: &str,
    ) -> io::Result<Self> {
        let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        let mut info = LoopInfo64 { flags, ..LoopInfo64::default() };
        for (to, from) in info.file_name.as_flattened_mut().iter_mut().take(63).zip(label.bytes()) {
            *to = from;
        }
        let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        let config = LoopConfig { fd, info, ..LoopConfig::default() };
        for _ in 0..RACES {
            // SAFETY: the descriptor is open; no argument.
            let number = unsafe { loop_get_free(control.as_raw_fd()) }?.cast_unsigned();
            match Self::configure(dev, number, read_only, &config) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENXIO | libc::ENOENT)) => {}
                other => return other,
            }
        }
        Err(Errno::EBUSY.into())
    }

    fn configure(dev: BorrowedFd<'_>, number: u32, read_only: bool, config: &LoopConfig) -> io::Result<Self> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let node = openat2(dev, format!("loop{number}"), flags, Mode::empty(), beneath())?;
        let stat = fstat(&node)?;
        let block = FileType::from_raw_mode(stat.st_mode).is_block_device();
        if !block || (major(stat.st_rdev), minor(stat.st_rdev)) != (LOOP_MAJOR, number) {
            return Err(Errno::ENODEV.into());
        }
        // SAFETY: the descriptor is open and `config` is a live `struct loop_config`.
        unsafe { loop_configure(node.as_raw_fd(), &raw const *config) }?;
        let mut device = Self { node, number, sequence: 0 };
        device.sequence = device.disk_sequence()?;
        Ok(device)
    }

    fn disk_sequence(&self) -> io::Result<u64> {
        let mut sequence = 0;
        // SAFETY: the descriptor is open and `sequence` is a live u64.
        unsafe { block_disk_sequence(self.node.as_fd().as_raw_fd(), &raw mut sequence) }?;
        Ok(sequence)
    }

    /// N of `/dev/loopN`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Is it still on `file`, and has nobody attached another one since?
    ///
    /// # Errors
    /// The kernel's.
    pub fn still_on(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        let mut info = LoopInfo64::default();
        // SAFETY: the descriptor is open and `info` is a live `struct loop_info64`.
        unsafe { loop_status(self.node.as_raw_fd(), &raw mut info) }?;
        let stat = fstat(file)?;
        // lo_device is the kernel's 32-bit device number (new_encode_dev).
        let device = (u64::from(minor(stat.st_dev)) & 0xff)
            | (u64::from(major(stat.st_dev)) << 8)
            | ((u64::from(minor(stat.st_dev)) & !0xff) << 12);
        Ok(info.inode == stat.st_ino && info.device == device && self.disk_sequence()? == self.sequence)
    }
}
