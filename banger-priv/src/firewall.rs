//! The netlink socket that owns the VMs' firewall table, and over which guests' flows are ended.
//! What stands in the table, and what is asked, is `banger_policy::helper::firewall`'s.

use banger_policy::helper::firewall::{Answers, Batch, Change, encode, end_flows, whole};
use banger_policy::helper::holding::Registration;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// The largest batch is the whole table with every VM in it and the longest list for each, 3.5 MiB
/// (without lists 60 KiB), and one acknowledgement of every message comes back at once.
const BUFFER: usize = 4 << 20;
/// Enough for any datagram of acknowledgements.
const DATAGRAM: usize = 16 * 1024;

/// The firewall; the table is owned as long as this lives.
#[derive(Debug)]
pub struct Firewall {
    socket: OwnedFd,
    sequence: Cell<u32>,
    daemon_uid: u32,
}

impl Firewall {
    /// Opens the socket; nothing is changed yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(daemon_uid: u32) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Best effort: the defaults do for a hundred VMs. (SNDBUF is capped by wmem_max without
        // FORCE.)
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        Ok(Self { socket, sequence: Cell::new(1), daemon_uid })
    }

    /// Makes the whole table anew, or takes over the one that an earlier helper left, in one
    /// transaction.
    ///
    /// # Errors
    /// EPERM when another process owns the table, EOPNOTSUPP when it was not made by a helper.
    pub fn rebuild(&self, registrations: &[Registration]) -> nix::Result<()> {
        self.send(|batch| whole(batch, self.daemon_uid, registrations))
    }

    /// Changes one VM's elements, in one transaction.
    ///
    /// # Errors
    /// The kernel's; nothing has changed then.
    pub fn change(&self, change: &Change) -> nix::Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        self.send(|batch| encode(change, batch))
    }

    /// Makes connection tracking forget every flow that has this address on either side. The kernel
    /// looks through its table once for each of the four places and is done when this returns; the
    /// table's size is the bound.
    ///
    /// # Errors
    /// EINVAL when nf_conntrack_netlink is not there, EOPNOTSUPP before Linux 6.11; else the
    /// kernel's.
    pub fn end_flows(&self, address: Ipv4Addr) -> nix::Result<()> {
        let (bytes, expected, next) = end_flows(address, self.sequence.get());
        self.sequence.set(next);
        self.exchange(&bytes, expected)
    }

    fn send(&self, fill: impl FnOnce(&mut Batch)) -> nix::Result<()> {
        let first = self.sequence.get();
        let mut batch = Batch::new(first);
        fill(&mut batch);
        let (bytes, expected, next) = batch.finish(first);
        self.sequence.set(next);
        self.exchange(&bytes, expected)
    }

    fn exchange(&self, bytes: &[u8], expected: u32) -> nix::Result<()> {
        let sent = send(self.socket.as_raw_fd(), bytes, MsgFlags::empty())?;
        if sent != bytes.len() {
            return Err(Errno::EMSGSIZE);
        }
        // The kernel works off what it is sent inside send(2), so every answer is already there.
        let mut answers = Answers::default();
        let mut datagram = vec![0; DATAGRAM];
        loop {
            match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => answers.read(datagram.get(..length).unwrap_or_default()),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        match answers.error {
            Some(code) => Err(Errno::from_raw(code)),
            None if answers.acknowledged == expected => Ok(()),
            None => Err(Errno::EPROTO),
        }
    }
}
