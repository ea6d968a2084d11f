//! Feeding the kernel's random generator (`random(4)`, `drivers/char/random.c`).

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Most bytes at once.
const ROOM: usize = 64;

/// `struct rand_pool_info` with room for the bytes.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ROOM],
}

mod ioctls {
    // The kernel's number has the size of the structure without its buffer: two ints.
    nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 3, 8), super::Pool);
}

/// Adds `bytes`, which hold `entropy_bits` of randomness. `EINVAL` for more than 64 bytes.
pub(crate) fn add(bytes: &[u8], entropy_bits: u16) -> Result<(), Errno> {
    let device = File::options()
        .write(true)
        .open("/dev/urandom")
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let mut pool = Pool { entropy_bits: entropy_bits.into(), bytes: 0, buffer: [0; ROOM] };
    pool.buffer.get_mut(..bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
    pool.bytes = libc::c_int::try_from(bytes.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: RNDADDENTROPY reads the two integers and then `bytes` bytes behind them, which are
    // inside `pool`.
    unsafe { ioctls::add_entropy(device.as_raw_fd(), &raw const pool) }.map(drop)
}
