//! What the network modes of VMs that run have refused, for their owners: kept in memory as long as
//! the VM runs and this daemon lives, and no more than a small number of destinations of each.
//!
//! The kernel tells it over a socket that systemd has made (bangerd-refused.socket): to become a
//! member of the kernel's group of traces takes CAP_NET_ADMIN. The socket is only read. What is
//! in a message is checked in `policy::refused`; whose it is, here: the firewall lets a guest's
//! address come out of its tap alone, and a message counts for a VM only when address and tap are
//! both those that the VM has now.

use banger_policy::VmId;
use banger_policy::refused::{self, Refusal};
use banger_proto::model::{Refused, RefusedList};
use banger_proto::time::Timestamp;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Destinations that are kept of a VM. The one that was asked for least lately goes.
const KEPT: usize = 128;
/// More than the longest message, bytes: the kernel cuts what it quotes of a packet to 80 bytes.
const DATAGRAM: usize = 8 << 10;
/// After an error that nobody expects, so that it cannot be had without end.
const PAUSE: Duration = Duration::from_secs(1);

/// What was refused, by VM.
#[derive(Debug)]
pub(crate) struct Refusals {
    recorded: AtomicBool,
    /// The number of a link of the host.
    number_of: fn(&str) -> Option<u32>,
    /// Each list in the order of the last time.
    by_vm: Mutex<HashMap<VmId, Vec<Refused>>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::with(number_of_link)
    }
}

impl Refusals {
    pub(crate) fn with(number_of: fn(&str) -> Option<u32>) -> Self {
        Self { recorded: AtomicBool::new(false), number_of, by_vm: Mutex::default() }
    }

    /// What is known of a VM, the last one first.
    pub(crate) fn of(&self, vm: &VmId) -> RefusedList {
        let mut destinations = self.lock().get(vm).cloned().unwrap_or_default();
        destinations.reverse();
        RefusedList { recorded: self.is_recorded(), destinations }
    }

    /// To how many destinations; `None`: nobody listens.
    pub(crate) fn count(&self, vm: &VmId) -> Option<u32> {
        let count = self.lock().get(vm).map_or(0, Vec::len);
        self.is_recorded().then(|| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// The VM no longer runs. To be called when its handles are gone: what is told of it from then
    /// on finds nobody.
    pub(crate) fn forget(&self, vm: &VmId) {
        self.lock().remove(vm);
    }

    /// Notes what was received at once.
    pub(crate) fn note(&self, datagram: &[u8], whose: &dyn Fn(Ipv4Addr) -> Option<(VmId, String)>, now: Timestamp) {
        for refusal in refused::read(datagram) {
            let mut by_vm = self.lock();
            // Under the lock: a VM that ends meanwhile is forgotten after this.
            let Some((vm, tap)) = whose(refusal.source) else { continue };
            if (self.number_of)(&tap) == Some(refusal.link) {
                keep(by_vm.entry(vm).or_default(), &refusal, now);
            }
        }
    }

    pub(crate) fn set_recorded(&self) {
        self.recorded.store(true, Ordering::Relaxed);
    }

    fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Vec<Refused>>> {
        // Each change leaves a list that can be shown.
        self.by_vm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep(list: &mut Vec<Refused>, refusal: &Refusal, now: Timestamp) {
    let protocol = refused::protocol_name(refusal.protocol);
    let same =
        |one: &Refused| (one.address, one.port) == (refusal.destination, refusal.port) && one.protocol == protocol;
    let known = list.iter().position(same).map(|at| list.remove(at));
    let mut one = known.unwrap_or(Refused {
        address: refusal.destination,
        protocol,
        port: refusal.port,
        times: 0,
        first_at: now,
        last_at: now,
    });
    one.times = one.times.saturating_add(1);
    one.last_at = now;
    if list.len() >= KEPT {
        list.remove(0);
    }
    list.push(one);
}

/// sysfs(5); `None` when there is no such link any more.
fn number_of_link(name: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

/// Records from now on, until the daemon ends, on a thread of its own: it waits for the kernel and
/// for nothing else. `whose` says which VM runs with an address, and its tap.
///
/// # Errors
/// A socket that cannot be waited for, or no thread.
pub(crate) fn listen(
    socket: OwnedFd,
    refusals: &Arc<Refusals>,
    whose: impl Fn(Ipv4Addr) -> Option<(VmId, String)> + Send + 'static,
) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&socket, false)?;
    let told = Arc::clone(refusals);
    let thread = std::thread::Builder::new().name("refused".to_owned());
    thread.spawn(move || receive(&socket, |said| told.note(said, &whose, Timestamp::now())))?;
    refusals.set_recorded();
    Ok(())
}

fn receive(socket: &OwnedFd, note: impl Fn(&[u8])) {
    let mut datagram = vec![0; DATAGRAM];
    loop {
        match recv(socket.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
            // The other end is gone, which the kernel never is.
            Ok(0) => return,
            Ok(length) => note(datagram.get(..length).unwrap_or_default()),
            // More than the socket holds came at once. What is lost was to be counted, no more.
            Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!("cannot receive what was refused: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::cell::RefCell;

    const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

    fn vm(byte: u8) -> Option<VmId> {
        VmId::from_bytes([byte; 32]).ok()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    /// Two taps of this host.
    fn refusals() -> Refusals {
        Refusals::with(|tap| {
            [("bgr-one", 1), ("bgr-two", 2)].into_iter().find(|(name, _)| *name == tap).map(|two| two.1)
        })
    }

    /// The destinations of a VM, the last first, with how often.
    fn of(refusals: &Refusals, vm: &VmId) -> Vec<(Ipv4Addr, u64)> {
        refusals.of(vm).destinations.iter().map(|one| (one.address, one.times)).collect()
    }

    /// What the kernel says of a refused datagram (UDP), as far as it is read.
    pub(crate) fn told(link: u32, source: Ipv4Addr, to: [u8; 4], port: u16) -> Vec<u8> {
        let attr = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).unwrap();
            let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let header = [&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0][..], &source.octets(), &to].concat();
        let transport = [&9_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 4]].concat();
        let body = [
            vec![1, 0, 0, 0],
            attr(4, &3_u32.to_be_bytes()),
            attr(2, b"refuse\0"),
            attr(1, b"banger\0"),
            attr(10, &link.to_be_bytes()),
            attr(8, &header),
            attr(9, &transport),
        ]
        .concat();
        let length = u32::try_from(16 + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &((10_u16 << 8) | 17).to_ne_bytes(), &[0; 10], &body].concat()
    }

    fn message(link: u32, to: [u8; 4], port: u16) -> Vec<u8> {
        told(link, GUEST, to, port)
    }

    #[test]
    fn what_is_told_counts_for_who_has_address_and_tap_now() {
        let (refusals, one, two) = (refusals(), vm(1).unwrap(), vm(2).unwrap());
        let runs = RefCell::new(Some((one, "bgr-one".to_owned())));
        let note = |link, to, port, now| refusals.note(&message(link, to, port), &|_| runs.borrow().clone(), at(now));
        note(1, [192, 0, 2, 1], 80, 10);
        note(1, [192, 0, 2, 2], 53, 11);
        note(1, [192, 0, 2, 1], 80, 12);
        note(1, [192, 0, 2, 1], 81, 13);
        let list = refusals.of(&one).destinations;
        let said: Vec<_> = list.iter().map(|one| (one.port, one.times, one.first_at, one.last_at)).collect();
        assert_eq!(said, [(Some(81), 1, at(13), at(13)), (Some(80), 2, at(10), at(12)), (Some(53), 1, at(11), at(11))]);
        assert!(list.iter().all(|one| one.protocol == "udp"));
        // Another tap: what was sent by who had the address before.
        note(2, [192, 0, 2, 9], 80, 14);
        note(3, [192, 0, 2, 9], 80, 14);
        assert_eq!(of(&refusals, &one).len(), 3);
        // The address is another VM's now.
        *runs.borrow_mut() = Some((two, "bgr-two".to_owned()));
        note(1, [192, 0, 2, 9], 80, 15);
        assert_eq!((of(&refusals, &one).len(), of(&refusals, &two).len()), (3, 0));
        note(2, [192, 0, 2, 9], 80, 15);
        assert_eq!(of(&refusals, &two), [(Ipv4Addr::new(192, 0, 2, 9), 1)]);
        // Nobody's, or of somebody whose tap is gone.
        *runs.borrow_mut() = None;
        note(1, [192, 0, 2, 9], 80, 16);
        *runs.borrow_mut() = Some((one, "bgr-gone".to_owned()));
        note(1, [192, 0, 2, 9], 80, 16);
        assert_eq!(of(&refusals, &one).len(), 3);
        refusals.forget(&one);
        assert_eq!((of(&refusals, &one).len(), of(&refusals, &two).len()), (0, 1));
    }

    #[test]
    fn a_list_is_bounded_and_the_one_asked_for_least_lately_goes() {
        let (refusals, one) = (refusals(), vm(1).unwrap());
        let note = |to| refusals.note(&message(1, to, 80), &|_| Some((one, "bgr-one".to_owned())), at(1));
        note([10, 0, 0, 1]);
        note([10, 0, 0, 2]);
        for n in 0..126 {
            note([10, 0, 1, n]);
        }
        assert_eq!(of(&refusals, &one).len(), KEPT);
        note([10, 0, 0, 1]);
        for n in 0..=255 {
            note([10, 0, 2, n]);
            note([10, 0, 0, 1]);
        }
        let list = of(&refusals, &one);
        assert_eq!(list.len(), KEPT);
        assert_eq!(list.first(), Some(&(Ipv4Addr::new(10, 0, 0, 1), 258)));
        assert!(list.iter().all(|(to, _)| *to == Ipv4Addr::new(10, 0, 0, 1) || to.octets()[2] == 2), "{list:?}");
    }

    #[test]
    fn nobody_listens_until_somebody_does() {
        let (refusals, one) = (refusals(), vm(1).unwrap());
        assert_eq!((refusals.count(&one), refusals.of(&one).recorded), (None, false));
        refusals.set_recorded();
        assert_eq!((refusals.count(&one), refusals.of(&one).recorded), (Some(0), true));
        refusals.note(&message(1, [10, 0, 0, 1], 80), &|_| Some((one, "bgr-one".to_owned())), at(1));
        assert_eq!(refusals.count(&one), Some(1));
    }

    /// As it arrives: in a socket that also has what is no message, and one that does not wait yet.
    #[test]
    fn messages_are_read_from_the_socket_as_they_come() {
        use std::os::unix::net::UnixDatagram;
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (refusals, one) = (Arc::new(refusals()), vm(1).unwrap());
        listen(ours.into(), &refusals, move |address| (address == GUEST).then(|| (one, "bgr-one".to_owned()))).unwrap();
        for n in 0..200 {
            kernel.send(&message(1, [10, 0, 0, n % 100], 80)).unwrap();
            kernel.send(&[0xff; 40]).unwrap();
        }
        let sum = || refusals.of(&one).destinations.iter().map(|one| one.times).sum::<u64>();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while sum() < 200 && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((sum(), refusals.count(&one)), (200, Some(100)));
    }
}
