//! A guest without a machine: this program holds its tap and reads and writes the frames itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Uid;

use super::frames::{self, Mac, Packet};

/// How often the reader looks whether it shall end, milliseconds.
const LOOK: u8 = 50;

/// What a guest has received.
type Received = Arc<Mutex<Vec<Vec<u8>>>>;

/// A guest that answers ARP for its address and remembers everything else.
#[derive(Debug)]
pub(in crate::suite) struct Guest {
    pub(super) tap: String,
    pub(super) address: Ipv4Addr,
    pub(super) mac: Mac,
    host_mac: Mac,
    wire: Arc<File>,
    received: Received,
    ends: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Guest {
    /// Opens the tap as `uid`, as its VMM would.
    pub(in crate::suite) fn open(uid: Uid, tap: &str, address: Ipv4Addr, mac: [u8; 6]) -> Result<Self> {
        let host_mac = mac_of(tap)?;
        let name = tap.to_owned();
        // A thread of its own, because the uid is changed for it alone.
        let opened = std::thread::spawn(move || become_user(uid).and_then(|()| open(&name))).join();
        let wire = opened.ok().context("opening a tap panicked")?;
        let wire = Arc::new(wire.with_context(|| format!("open {tap} as {uid}"))?);
        let (received, ends) = (Received::default(), Arc::new(AtomicBool::new(false)));
        let reader = {
            let (wire, received, ends) = (Arc::clone(&wire), Arc::clone(&received), Arc::clone(&ends));
            std::thread::spawn(move || read(&wire, mac, address, &received, &ends))
        };
        Ok(Self { tap: tap.to_owned(), address, mac, host_mac, wire, received, ends, reader: Some(reader) })
    }

    /// Sends a packet to the host's side of the tap.
    pub(super) fn send(&self, packet: &Packet) -> Result<()> {
        self.send_frame(&frames::ethernet(self.host_mac, self.mac, packet.ether_type, &packet.bytes))
    }

    /// Sends a frame as it is.
    pub(super) fn send_frame(&self, frame: &[u8]) -> Result<()> {
        let sent = (&*self.wire).write(frame).with_context(|| format!("send on {}", self.tap))?;
        ensure!(sent == frame.len(), "{} took {sent} of {} bytes", self.tap, frame.len());
        Ok(())
    }

    /// Forgets what it has received.
    pub(super) fn forget(&self) {
        drop(self.take());
    }

    /// What it has received since, and forgets it.
    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        self.received.lock().map(|mut frames| std::mem::take(&mut *frames)).unwrap_or_default()
    }

    /// How many frames that it has received carry this text.
    pub(super) fn heard(&self, text: &str) -> usize {
        let carries = |frame: &&Vec<u8>| frames::carries(frame, text);
        self.received.lock().map(|frames| frames.iter().filter(carries).count()).unwrap_or_default()
    }
}

impl Guest {
    /// Lets the link go with its last holder.
    pub(in crate::suite) fn forget_after_close(&self) -> Result<()> {
        self.set(libc::TUNSETPERSIST, 0)
    }

    /// Makes another user its owner.
    pub(in crate::suite) fn give_to(&self, uid: u32) -> Result<()> {
        self.set(libc::TUNSETOWNER, uid.into())
    }

    fn set(&self, request: libc::Ioctl, value: libc::c_ulong) -> Result<()> {
        // SAFETY: the tap is open; these two requests take a number and no memory.
        let ended = unsafe { libc::ioctl(self.wire.as_raw_fd(), request, value) };
        ensure!(ended == 0, "{}: {}", self.tap, io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn read(wire: &File, mac: Mac, address: Ipv4Addr, received: &Received, ends: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !ends.load(Ordering::Relaxed) {
        match (&*wire).read(&mut buffer) {
            Ok(length) => {
                let frame = buffer.get(..length).unwrap_or_default();
                if let Some(answer) = frames::arp_answer(frame, mac, address) {
                    let _ = (&*wire).write(&answer);
                } else if let Ok(mut frames) = received.lock() {
                    frames.push(frame.to_vec());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(wire.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK));
            }
            // The link is gone.
            Err(_) => return,
        }
    }
}

/// The address of a link.
pub(super) fn mac_of(link: &str) -> Result<Mac> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{link}/address"))
        .with_context(|| format!("read the address of {link}"))?;
    let bytes: Vec<u8> = text.trim().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("{link} has the address {text:?}"))
}

/// Gives up root for the calling thread alone; with it go its capabilities, so that the tap's owner
/// is what counts.
fn become_user(uid: Uid) -> io::Result<()> {
    if uid.is_root() {
        return Ok(());
    }
    let uid = uid.as_raw();
    // SAFETY: setresuid(2) takes three numbers and no memory; without the C library's wrapper it is
    // this thread's alone.
    if unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Attaches to a tap that is there already.
fn open(name: &str) -> io::Result<File> {
    // SAFETY: all-zero bytes are a valid `ifreq`, a C struct of integers and unions of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(io::Error::other)?;
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: `tun` is open, and TUNSETIFF reads and writes one `ifreq`, which lives until the call
    // returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}
