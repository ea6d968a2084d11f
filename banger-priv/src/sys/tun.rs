//! Tap devices through `/dev/net/tun` (linux/if_tun.h). Netlink cannot make them.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `struct ifreq` (linux/if.h) as TUNSETIFF reads it.
#[repr(C)]
#[derive(Debug)]
pub struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

pub(crate) const TUNSETIFF: u32 = 0x4004_54ca;
pub(crate) const TUNSETPERSIST: u32 = 0x4004_54cb;
pub(crate) const TUNSETOWNER: u32 = 0x4004_54cc;
/// Fail if there is such a link: without it TUNSETIFF would attach to somebody else's.
const IFF_TUN_EXCL: u16 = 0x8000;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

nix::ioctl_write_ptr_bad!(tun_set_iff, TUNSETIFF, IfReq);
nix::ioctl_write_int_bad!(tun_set_persist, TUNSETPERSIST);
nix::ioctl_write_int_bad!(tun_set_owner, TUNSETOWNER);

/// A tap that vanishes with this value unless [`Tap::persist`] was called.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Makes the link `name` from an open `/dev/net/tun`.
    ///
    /// # Errors
    /// EBUSY when a link of that name exists, EINVAL for a name that does not fit, else the
    /// kernel's.
    pub fn create(tun: OwnedFd, name: &str) -> nix::Result<Self> {
        let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
        // Room for the final zero: a longer name would be cut short after it was checked.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(Errno::EINVAL);
        }
        for (to, from) in request.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        request.flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL).cast_signed();
        // SAFETY: the descriptor is open for the length of the call and `request` is a live `struct
        // ifreq`.
        unsafe { tun_set_iff(tun.as_fd().as_raw_fd(), &raw const request) }?;
        Ok(Self(tun))
    }

    /// Lets processes of `uid` attach to it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_owner(&self, uid: u32) -> nix::Result<()> {
        // SAFETY: the descriptor is open; the argument is a number.
        unsafe { tun_set_owner(self.0.as_raw_fd(), uid.cast_signed()) }.map(drop)
    }

    /// From now on the link outlives its descriptors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn persist(&self) -> nix::Result<()> {
        // SAFETY: the descriptor is open; the argument is a number.
        unsafe { tun_set_persist(self.0.as_raw_fd(), 1) }.map(drop)
    }
}
