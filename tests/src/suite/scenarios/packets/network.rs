//! Three network namespaces around the host: guests behind their taps, the host itself, and the
//! world outside of it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_policy::VmId;
use banger_policy::reach::{Mode, Reach};
use banger_proto::helper::HelperRequest;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use nix::unistd::Uid;

use super::frames::{self, PORT, udp};
use super::guest::Guest;
use crate::suite::peer::helper::Helper;
use crate::suite::peer::place::{Who, daemon_uid};
use crate::suite::peer::vm;
use crate::suite::scene::Scene;

/// The host's address on each tap, and the first guest's.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// The host's and the world's address on the wire between them (RFC 5737).
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Where clouds hand out credentials; here the world outside has it.
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// An address of the public internet (RFC 7535), here on that wire as well.
pub(super) const WORLD: Ipv4Addr = Ipv4Addr::new(192, 31, 196, 1);
/// Private networks behind it: RFC 1918, RFC 6598, RFC 2544.
pub(super) const PRIVATE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 77, 0, 1),
    Ipv4Addr::new(192, 168, 77, 1),
    Ipv4Addr::new(100, 64, 77, 1),
    Ipv4Addr::new(198, 18, 77, 1),
];
/// A container of the host's: behind the tap of which the firewall knows nothing.
pub(super) const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
/// The VM that gets the address of one that was deleted.
const NEXT: u8 = 5;
/// The guest behind the tap that the firewall does not know.
const CONTROL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub(super) const ALICE: u32 = 1001;
const BOB: u32 = 1002;

/// What the world looks like from inside it, and its wire.
const OUTSIDE_SETUP: &str = "ip link add out0 type veth peer name up0 netns 1 && ip link set lo up && \
    ip addr add 198.51.100.2/24 dev out0 && ip addr add 169.254.169.254/32 dev out0 && \
    ip addr add fd00:51::2/64 dev out0 nodad && ip link set out0 up && \
    for a in 192.31.196.1 10.77.0.1 192.168.77.1 100.64.77.1 198.18.77.1; do ip addr add $a/32 dev out0; done && ip route add default via 198.51.100.1";

/// The host's side of that wire; and a tap of the bench, of which the firewall knows nothing: what
/// is dropped from a guest must get through from there, or it would have been lost for another
/// reason.
const HOST_SETUP: &str = "ip addr add 198.51.100.1/24 dev up0 && ip addr add fd00:51::1/64 dev up0 nodad && ip link set up0 up && \
    ip route add 169.254.169.254/32 dev up0 && ip tuntap add ctl0 mode tap && ip addr add 192.0.2.1/32 dev ctl0 && \
    ip addr add fe80::1/64 dev ctl0 nodad && ip link set ctl0 up && ip route add 192.0.2.2/32 dev ctl0 && \
    for a in 192.31.196.1 10.77.0.1 192.168.77.1 100.64.77.1 198.18.77.1; do ip route add $a/32 dev up0; done && \
    ip route add 172.17.0.2/32 dev ctl0 && ip neigh add 172.17.0.2 lladdr 06:00:00:00:00:c0 dev ctl0 && ip tuntap add ctl1 mode tap && \
    sysctl -q -w net.ipv4.conf.ctl0.rp_filter=0 net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.all.forwarding=1";
const HOST_UNDO: &str =
    "ip link del ctl0; ip link del ctl1; ip link del up0; sysctl -q -w net.ipv6.conf.all.forwarding=0";

/// A network namespace that lives as long as its sockets: one that sees everything on its wire, one
/// that answers.
#[derive(Debug)]
pub(super) struct Outside {
    sniffer: OwnedFd,
    pub(super) udp: UdpSocket,
}

impl Outside {
    fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            let output = Command::new("sh").args(["-ec", OUTSIDE_SETUP]).output().context("set up the namespace")?;
            ensure!(output.status.success(), "set up the namespace: {}", String::from_utf8_lossy(&output.stderr));
            let all = SockProtocol::EthAll;
            let sniffer = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, all)?;
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen outside")?;
            udp.set_nonblocking(true)?;
            Ok(Self { sniffer, udp })
        });
        made.join().ok().context("the namespace's thread panicked")?
    }

    /// Every frame that was on the wire since.
    pub(super) fn seen(&self) -> Vec<Vec<u8>> {
        let (mut frames, mut buffer) = (Vec::new(), [0; 2048]);
        while let Ok(length) = recv(self.sniffer.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            frames.push(buffer.get(..length).unwrap_or_default().to_vec());
        }
        frames
    }

    fn forget(&self) {
        drop(self.seen());
        drop(datagrams(&self.udp));
    }
}

/// What waits at a socket: text and sender.
pub(super) fn datagrams(socket: &UdpSocket) -> Vec<(String, SocketAddr)> {
    let (mut texts, mut buffer) = (Vec::new(), [0; 2048]);
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                texts.push((String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned(), from));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return texts,
            // A refused datagram of before is reported here.
            Err(_) => {}
        }
    }
}

/// Where packets with a text have come out.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) outside: usize,
    pub(super) host: usize,
    pub(super) guest: usize,
    /// Frames that the sender got back.
    pub(super) answers: usize,
}

impl Arrived {
    pub(super) fn total(self) -> usize {
        self.outside + self.host + self.guest + self.answers
    }
}

/// Everything.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) helper: Helper,
    pub(super) outside: Outside,
    host: [UdpSocket; 2],
    /// Alice's, with NAT.
    pub(super) alice: Guest,
    /// Bob's, with NAT.
    pub(super) bob: Guest,
    /// Alice's, without NAT.
    pub(super) inward: Guest,
    /// Alice's, whose process was never bound.
    pub(super) unbound: Guest,
    /// Behind a tap that is not of banger.
    pub(super) control: Guest,
    vms: Vec<VmId>,
    processes: Vec<Child>,
    count: usize,
}

impl Net {
    /// Sets everything up; [`with_net`] takes it down again, even after a failure.
    pub(super) fn new(scene: &Scene) -> Result<Self> {
        let outside = Outside::new()?;
        scene.root(HOST_SETUP)?;
        let host4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen on the host")?;
        let host6 = UdpSocket::bind("[fd00:51::1]:7777").context("listen on the host, IPv6")?;
        for socket in [&host4, &host6] {
            socket.set_nonblocking(true)?;
        }
        let mut helper = Helper::open()?;
        let (mut vms, mut processes) = (Vec::new(), Vec::new());
        let mut guest = |number: u8, owner: u32, bound: bool, nat: bool| -> Result<Guest> {
            let vm = vm(number)?;
            vms.push(vm);
            let tap = helper.tap(vm, owner, number.into())?.tap_device;
            // Packets of a tap that nobody has opened are not even counted; and an address of its
            // own makes IPv6 as good as it gets.
            scene.root(&format!("ip -6 addr add fe80::1/64 dev {tap} nodad"))?;
            if bound {
                processes.push(bind(scene, &mut helper, vm, owner)?);
            }
            if nat {
                helper.ok(&HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) })?;
            }
            open_guest(&tap, number)
        };
        let alice = guest(1, ALICE, true, true)?;
        let bob = guest(2, BOB, true, true)?;
        let inward = guest(3, ALICE, true, false)?;
        let unbound = guest(4, ALICE, false, true)?;
        let control = Guest::open(Uid::from_raw(0), "ctl0", CONTROL, [6, 0, 0, 0, 0, 0xc0])?;
        let host = [host4, host6];
        Ok(Self { helper, outside, host, alice, bob, inward, unbound, control, vms, processes, count: 0 })
    }

    /// Forgets what has arrived anywhere.
    pub(super) fn forget(&self) {
        self.outside.forget();
        for socket in &self.host {
            drop(datagrams(socket));
        }
        for guest in [&self.alice, &self.bob, &self.inward, &self.unbound, &self.control] {
            guest.forget();
        }
    }

    /// Where packets with this text have come out, sent by `from`; and forgets it.
    pub(super) fn arrived(&self, from: &Guest, text: &str) -> Arrived {
        let carries = |frame: &Vec<u8>| frames::carries(frame, text);
        let at_guest = |guest: &Guest| {
            let frames = guest.take();
            if guest.tap == from.tap { 0 } else { frames.iter().filter(|frame| carries(frame)).count() }
        };
        // To its own hardware address: what the host says to all by itself is no answer.
        let answers = from.take().iter().filter(|frame| !frames::is_arp(frame) && frame.starts_with(&from.mac)).count();
        let told = |socket| datagrams(socket).iter().filter(|(told, _)| told.contains(text)).count();
        Arrived {
            outside: self.outside.seen().iter().filter(|frame| carries(frame)).count(),
            host: self.host.iter().map(told).sum(),
            guest: [&self.alice, &self.bob, &self.inward, &self.unbound, &self.control].map(at_guest).iter().sum(),
            answers,
        }
    }

    /// One datagram of a guest to the world, and the answer: the address from which the world has
    /// seen it, or what did not come within the time.
    pub(super) fn reaches_out(
        &mut self,
        guest: fn(&Self) -> &Guest,
        within: Duration,
    ) -> Result<Result<Ipv4Addr, &str>> {
        self.count += 1;
        let (there, back) = (format!("there-{}-", self.count), format!("back-{}-", self.count));
        drop(datagrams(&self.outside.udp));
        guest(self).send(&udp(guest(self).address, OUTSIDE, &there))?;
        let started = Instant::now();
        let mut seen_from = None;
        while started.elapsed() < within {
            for (text, from) in datagrams(&self.outside.udp) {
                if text.contains(&there) {
                    seen_from = Some(from);
                    self.outside.udp.send_to(back.as_bytes(), from).context("answer from outside")?;
                }
            }
            if guest(self).heard(&back) > 0 {
                let SocketAddr::V4(from) = seen_from.context("an answer before the question")? else {
                    anyhow::bail!("IPv6 outside")
                };
                return Ok(Ok(*from.ip()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Err(if seen_from.is_some() { "the answer" } else { "the question" }))
    }

    /// It must reach out, with the host's address.
    pub(super) fn must_reach_out(&mut self, guest: fn(&Self) -> &Guest, within: Duration) -> Result<()> {
        let seen = self.reaches_out(guest, within)?;
        ensure!(seen == Ok(HOST), "a guest with NAT: {seen:?}, expected an exchange with {HOST}");
        Ok(())
    }
}

impl Net {
    /// The process that is bound for bob's guest ends. His tap stays, and whoever has opened it.
    pub(super) fn end_bobs_process(&mut self) -> Result<()> {
        let process = self.processes.get_mut(1).context("no process of bob's guest")?;
        process.kill().context("end the process of bob's guest")?;
        process.wait().map(drop).context("wait for the process of bob's guest")
    }

    /// Alice's first VM is deleted, and bob's next one has its address: the guest that `alice` is
    /// from now on.
    pub(super) fn hand_alices_address_to_bob(&mut self, scene: &Scene) -> Result<()> {
        let first = self.processes.first_mut().context("no process of alice's guest")?;
        first.kill().context("end the process of alice's guest")?;
        first.wait().context("wait for the process of alice's guest")?;
        // Nobody has the tap open any more when the control's stands in its place.
        let idle = Guest::open(Uid::from_raw(0), "ctl1", CONTROL, [6, 0, 0, 0, 0, 0xc1])?;
        drop(std::mem::replace(&mut self.alice, idle));
        let old = *self.vms.first().context("no VM of alice")?;
        self.helper.ok(&HelperRequest::Release { vm: old })?;
        let next = vm(NEXT)?;
        self.vms.push(next);
        let tap = self.helper.tap(next, BOB, 1)?.tap_device;
        self.processes.push(bind(scene, &mut self.helper, next, BOB)?);
        self.helper.ok(&HelperRequest::SetNetwork { vm: next, reach: Reach::of(Mode::Nat) })?;
        self.alice = open_guest(&tap, 1)?;
        Ok(())
    }

    /// Switches NAT of bob's guest.
    pub(super) fn bobs_nat(&mut self, on: bool) -> Result<()> {
        self.let_reach(1, if on { Reach::of(Mode::Nat) } else { Reach::default() })
    }

    /// Lets the guest that was made as the `nth` reach that far, counted from 0.
    pub(super) fn let_reach(&mut self, nth: usize, reach: Reach) -> Result<()> {
        let vm = *self.vms.get(nth).context("no such VM")?;
        self.helper.ok(&HelperRequest::SetNetwork { vm, reach })
    }

    /// Ends processes and releases what the helper holds.
    fn close(mut self) -> Result<()> {
        for process in &mut self.processes {
            process.kill().context("end a VM's process")?;
            process.wait().context("wait for a VM's process")?;
        }
        drop((self.alice, self.bob, self.inward, self.unbound, self.control));
        for vm in self.vms {
            self.helper.ok(&HelperRequest::Release { vm })?;
        }
        Ok(())
    }
}

/// Starts a process in the VM's cgroup, as its VMM would be, and binds it.
fn bind(scene: &Scene, helper: &mut Helper, vm: VmId, owner: u32) -> Result<Child> {
    let process = Who::of_vm(owner, vm).start("sleep infinity")?;
    let pid = process.id();
    scene.wait_until("the VM's process is there", Duration::from_secs(5), || {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok((name.trim() != "sleep").then_some(name))
    })?;
    helper.ok(&HelperRequest::BindProcess { vm, pid })?;
    Ok(process)
}

/// The guest of an address index.
fn open_guest(tap: &str, index: u8) -> Result<Guest> {
    let address = Ipv4Addr::from_bits(GATEWAY.to_bits() + u32::from(index));
    Guest::open(daemon_uid()?, tap, address, [6, 0, 0, 0, 0, index])
}

/// Runs `work` in the network and takes it down again, whatever comes of it.
pub(super) fn with_net(scene: &mut Scene, work: impl FnOnce(&mut Scene, &mut Net) -> Result<()>) -> Result<()> {
    let rp_filter = scene.root("sysctl -n net.ipv4.conf.all.rp_filter")?;
    let result = match Net::new(scene) {
        Ok(mut net) => {
            let result = work(scene, &mut net);
            result.and(net.close())
        }
        Err(error) => release_all(scene).and(Err(error)),
    };
    let undone = scene.root_any(&format!("{HOST_UNDO}; sysctl -q -w net.ipv4.conf.all.rp_filter={}", rp_filter.trim()));
    result?;
    undone?.ok().map(drop)
}

/// After a network that was set up half.
fn release_all(scene: &Scene) -> Result<()> {
    scene.root_any("for p in /sys/fs/cgroup/system.slice/bangerd.service/vms/*/*/cgroup.kill; do echo 1 > $p; done")?;
    let mut helper = Helper::open()?;
    for holding in helper.all()? {
        helper.ok(&HelperRequest::Release { vm: holding.vm })?;
    }
    Ok(())
}
