//! Address, link state and routes of an interface by the classic `SIOC*` ioctls (`netdevice(7)`).
//!
//! Enough for one IPv4 address and two routes; no netlink parser in PID 1.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// `AF_INET` in the type of the field, which libc gives another one.
const FAMILY: libc::sa_family_t = 2;

mod ioctls {
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_broadcast, libc::SIOCSIFBRDADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, libc::rtentry);
}

/// A socket for interface ioctls; which kind does not matter to the kernel.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

impl Control {
    pub(crate) fn open() -> Result<Self, Errno> {
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map(Self)
    }

    /// Gives `interface` the address with a 32 bit mask. Before [`Control::up`]: the address alone
    /// has a classful mask for a moment, and only a link that is down gets no route from that.
    pub(crate) fn address(&self, interface: &str, address: Ipv4Addr) -> Result<(), Errno> {
        let mut request = request_for(interface)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        // SAFETY: `request` is a whole ifreq with a terminated name and the address member filled.
        unsafe { ioctls::set_address(self.0.as_raw_fd(), &raw const request) }?;
        request.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::BROADCAST);
        // SAFETY: as above, with the netmask member filled.
        unsafe { ioctls::set_netmask(self.0.as_raw_fd(), &raw const request) }?;
        // The classful broadcast address would stay otherwise, and take an address away from the
        // guest.
        request.ifr_ifru.ifru_broadaddr = socket_address(Ipv4Addr::UNSPECIFIED);
        // SAFETY: as above, with the broadcast member filled.
        unsafe { ioctls::set_broadcast(self.0.as_raw_fd(), &raw const request) }.map(drop)
    }

    pub(crate) fn up(&self, interface: &str) -> Result<(), Errno> {
        let mut request = request_for(interface)?;
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `request` is a whole ifreq with a terminated name and the flags member filled.
        unsafe { ioctls::set_flags(self.0.as_raw_fd(), &raw const request) }.map(drop)
    }

    /// A route to the single address `host` straight out of `interface`.
    pub(crate) fn host_route(&self, interface: &str, host: Ipv4Addr) -> Result<(), Errno> {
        self.route(interface, host, Ipv4Addr::BROADCAST, None, libc::RTF_UP | libc::RTF_HOST)
    }

    /// The default route through `gateway`, which [`Control::host_route`] has made reachable.
    pub(crate) fn default_route(&self, interface: &str, gateway: Ipv4Addr) -> Result<(), Errno> {
        let any = Ipv4Addr::UNSPECIFIED;
        self.route(interface, any, any, Some(gateway), libc::RTF_UP | libc::RTF_GATEWAY)
    }

    fn route(
        &self,
        interface: &str,
        destination: Ipv4Addr,
        mask: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
        flags: libc::c_ushort,
    ) -> Result<(), Errno> {
        let name = CString::new(interface).map_err(|_| Errno::EINVAL)?;
        // SAFETY: rtentry is a plain C structure of integers and pointers; all zero is a valid
        // value.
        let mut entry: libc::rtentry = unsafe { std::mem::zeroed() };
        entry.rt_dst = socket_address(destination);
        entry.rt_genmask = socket_address(mask);
        if let Some(gateway) = gateway {
            entry.rt_gateway = socket_address(gateway);
        }
        entry.rt_flags = flags;
        entry.rt_dev = name.as_ptr().cast_mut();
        // SAFETY: `entry` is filled and `rt_dev` points to `name`, which outlives the call; the
        // kernel only reads the name.
        match unsafe { ioctls::add_route(self.0.as_raw_fd(), &raw const entry) } {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn request_for(interface: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: ifreq is a plain C structure with a union of plain members; all zero is a valid
    // value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name must be terminated.
    if interface.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is a plain C structure; all zero is a valid value.
    let mut general: libc::sockaddr = unsafe { std::mem::zeroed() };
    // The layout of sockaddr_in: family, two bytes of port (zero), four bytes of address.
    general.sa_family = FAMILY;
    for (to, from) in general.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = from.cast_signed();
    }
    general
}
