//! Flows that were there before: of a VM that was deleted, stopped, or lost its NAT, and none of
//! them is the next holder's. And what the host's own DNAT would make of a guest's packets. Each is
//! first seen to pass where it must.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::reach::{Mode, Reach};
use banger_priv::host::Host;
use banger_priv::ops::Machine;
use common::{Folders, OWNER, Vmm, Wire, becomes, in_namespace, mac, run, tcp, udp, vm};
use net::{GUEST, HOST, LAN, TCP, UDP, UPLINK, can_run, from_lan, protocol, uplink, with_uplink};
use nix::unistd::{Uid, setfsuid};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const PUSH_ACK: u8 = 0x18;

/// A VM with NAT whose process lives.
struct Guest {
    n: u8,
    tap: String,
    wire: Wire,
    vmm: Vmm,
}

impl Guest {
    async fn start(machine: &Rc<Machine<Host>>, n: u8, owner: u32, index: u16) -> Self {
        let tap = machine.acquire_tap(vm(n), owner, index).await.unwrap().tap_device;
        let wire = Wire::open(&tap).unwrap();
        run(&format!("ip neigh add 172.16.0.{} lladdr 06:00:00:00:00:01 dev {tap}", index + 1));
        let vmm = Vmm::start();
        machine.set_network(vm(n), Reach::of(Mode::Nat)).await.unwrap();
        assert!(machine.bind_process(vm(n), vmm.pid()).await.unwrap());
        Self { n, tap, wire, vmm }
    }

    async fn delete(mut self, machine: &Rc<Machine<Host>>) {
        self.vmm.end();
        drop(self.wire);
        machine.release(vm(self.n)).await.unwrap();
    }
}

/// How many flows connection tracking remembers that have this address anywhere.
fn flows(address: Ipv4Addr) -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    text.lines().filter(|line| line.contains(&format!("={address} "))).count()
}

/// The packets of a protocol that come, by their ports.
fn ports(wire: &mut Wire, of: u8) -> Vec<(u16, u16)> {
    wire.packets().iter().filter(|packet| protocol(packet) == of).map(|packet| net::ports(packet)).collect()
}

/// What a user of the host has: sockets opened with that user's rights.
fn as_user<T>(uid: u32, open: impl FnOnce() -> T) -> T {
    let root = setfsuid(Uid::from_raw(uid));
    let opened = open();
    setfsuid(root);
    opened
}

/// The four kinds of flow, as they live before anything ends.
struct Flows {
    datagrams: UdpSocket,
    connection: TcpStream,
    /// The number of the next byte that the guest sends on it, and of the next that it expects.
    at: (u32, u32),
    /// From which ports of the host its UDP and its TCP have left.
    left_from: (u16, u16),
}

impl Flows {
    /// Opens them, and sees both directions of each.
    fn open(guest: &mut Guest, uplink: &mut Wire) -> Self {
        let gateway = mac(&guest.tap);
        drop(guest.wire.packets());
        let datagrams = as_user(OWNER, || UdpSocket::bind((HOST, 5001)).unwrap());
        datagrams.connect((GUEST, 4000)).unwrap();
        datagrams.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        datagrams.send(b"question").unwrap();
        assert_eq!(ports(&mut guest.wire, UDP), [(5001, 4000)], "control: UDP of the owner");
        guest.wire.send(&udp(gateway, GUEST, HOST, 5001));
        assert!(datagrams.recv(&mut [0; 64]).is_ok(), "control: its answer");

        let connecting = std::thread::spawn(|| {
            as_user(OWNER, || TcpStream::connect_timeout(&SocketAddr::from((GUEST, 4001)), Duration::from_secs(5)))
        });
        let syn = loop {
            let packets = guest.wire.packets();
            if let Some(packet) = packets.into_iter().find(|packet| packet[9] == TCP) {
                break packet;
            }
        };
        let port = u16::from_be_bytes([syn[20], syn[21]]);
        let first = u32::from_be_bytes([syn[24], syn[25], syn[26], syn[27]]);
        guest.wire.send(&tcp(gateway, (GUEST, 4001), (HOST, port), SYN_ACK, 100, first + 1, b""));
        let mut connection = connecting.join().unwrap().unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        guest.wire.send(&tcp(gateway, (GUEST, 4001), (HOST, port), PUSH_ACK, 101, first + 1, b"hello"));
        assert_eq!(connection.read(&mut [0; 64]).unwrap(), 5, "control: TCP of the owner, and its answer");

        drop(uplink.packets());
        guest.wire.send(&udp(gateway, GUEST, LAN, 7));
        let datagram = one(ports(uplink, UDP), 7, "control: UDP through NAT");
        guest.wire.send(&tcp(gateway, (GUEST, 4002), (LAN, 80), SYN, 7, 0, b""));
        let segment = one(ports(uplink, TCP), 80, "control: TCP through NAT");
        drop(guest.wire.packets());
        let opened = Self { datagrams, connection, at: (106, first + 1), left_from: (datagram, segment) };
        opened.answers_from_the_lan(uplink);
        assert_eq!(ports_of_both(guest), [(7, 4000), (80, 4002)], "control: both are answered");
        assert_eq!(flows(GUEST), 4);
        opened
    }

    fn answers_from_the_lan(&self, uplink: &mut Wire) {
        uplink.send(&from_lan(mac("uplink"), 7, self.left_from.0));
        uplink.send(&tcp(mac("uplink"), (LAN, 80), (UPLINK, self.left_from.1), SYN_ACK, 1, 8, b""));
    }

    /// None of them reaches whoever holds that tap now, or hears of it.
    fn are_over(&mut self, guest: &mut Guest, uplink: &mut Wire, why: &str) {
        drop(guest.wire.packets());
        // Refused at once, or dropped.
        drop(self.datagrams.send(b"still there?"));
        drop(self.connection.write(b"still there?"));
        self.answers_from_the_lan(uplink);
        let packets = guest.wire.packets();
        assert!(!packets.iter().any(|packet| packet[9] == UDP || packet[9] == TCP), "{why}: {packets:?}");
        let gateway = mac(&guest.tap);
        let port = self.connection.local_addr().unwrap().port();
        guest.wire.send(&udp(gateway, GUEST, HOST, 5001));
        assert!(self.datagrams.recv(&mut [0; 64]).is_err(), "{why}: an answer arrives");
        guest.wire.send(&tcp(gateway, (GUEST, 4001), (HOST, port), PUSH_ACK, self.at.0, self.at.1, b"evil"));
        assert!(self.connection.read(&mut [0; 64]).is_err(), "{why}: bytes arrive");
    }
}

/// The port that the one packet to `to` has come from.
fn one(ports: Vec<(u16, u16)>, to: u16, what: &str) -> u16 {
    assert!(ports.len() == 1 && ports[0].1 == to, "{what}: {ports:?}");
    ports[0].0
}

fn ports_of_both(guest: &mut Guest) -> Vec<(u16, u16)> {
    guest.wire.packets().iter().map(|packet| net::ports(packet)).collect()
}

#[test]
fn no_flow_outlives_its_vm() {
    with_uplink(async |mut uplink, folders, machine| {
        // Deleted; the next VM at the address is somebody else's.
        let mut guest = Guest::start(&machine, 1, OWNER, 1).await;
        let mut old = Flows::open(&mut guest, &mut uplink);
        guest.delete(&machine).await;
        assert_eq!(flows(GUEST), 0, "after release");
        let mut next = Guest::start(&machine, 2, OWNER + 1, 1).await;
        old.are_over(&mut next, &mut uplink, "deleted");
        next.delete(&machine).await;
        drop(old);

        // Stopped: the tap is still there, and whoever opens it has nothing.
        let mut guest = Guest::start(&machine, 1, OWNER, 1).await;
        let mut old = Flows::open(&mut guest, &mut uplink);
        machine.watch(vm(1));
        guest.vmm.end();
        becomes("no flow after its process's end", || flows(GUEST) == 0).await;
        old.are_over(&mut guest, &mut uplink, "stopped");
        guest.delete(&machine).await;
        drop(old);

        // Without NAT: what came back through it comes no more. The owner's own flows go on.
        let mut guest = Guest::start(&machine, 1, OWNER, 1).await;
        let old = Flows::open(&mut guest, &mut uplink);
        machine.set_network(vm(1), Reach::default()).await.unwrap();
        drop(guest.wire.packets());
        old.answers_from_the_lan(&mut uplink);
        assert_eq!(ports(&mut guest.wire, UDP), [], "NAT off");
        old.datagrams.send(b"still there?").unwrap();
        assert_eq!(ports(&mut guest.wire, UDP), [(5001, 4000)], "the owner's flow");
        machine.set_network(vm(1), Reach::of(Mode::Nat)).await.unwrap();

        // A helper that died after its table let go of an address ends the flows when it comes
        // back.
        assert!(flows(GUEST) > 0);
        drop(machine);
        tokio::task::yield_now().await;
        guest.vmm.end();
        let machine = folders.start().await;
        assert_eq!(flows(GUEST), 0, "after the recovery");
        guest.delete(&machine).await;
    });
}

/// What was begun while nothing forbade it is not carried on: only the side that did not begin is
/// answered.
#[test]
fn a_flow_from_outside_ends_when_the_firewall_stands_again() {
    with_uplink(async |mut uplink, folders, machine| {
        let mut guest = Guest::start(&machine, 1, OWNER, 1).await;
        // Another user of connection tracking, as Docker is: without one it would end with our
        // table.
        run("nft 'table ip tracking { chain c { type filter hook forward priority 9; ct state new accept; }; }'");
        let from_lan = udp(mac("uplink"), LAN, GUEST, 9);
        let stranger = as_user(OWNER + 1, || UdpSocket::bind((HOST, 5002)).unwrap());
        stranger.connect((GUEST, 4000)).unwrap();
        stranger.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        drop(guest.wire.packets());
        uplink.send(&from_lan);
        assert!(stranger.send(b"x").is_err(), "another user");
        assert_eq!(ports(&mut guest.wire, UDP), [], "from the LAN");

        drop(machine);
        tokio::task::yield_now().await;
        run("nft delete table inet banger");
        uplink.send(&from_lan);
        stranger.send(b"x").unwrap();
        let mut open = ports(&mut guest.wire, UDP);
        open.sort_unstable();
        assert_eq!(open, [(4000, 9), (5002, 4000)], "control: without the table both pass");
        let gateway = mac(&guest.tap);
        guest.wire.send(&udp(gateway, GUEST, HOST, 5002));
        assert!(stranger.recv(&mut [0; 64]).is_ok(), "control: and are answered");
        let mut answer = udp(gateway, GUEST, LAN, 4000);
        answer[34..36].copy_from_slice(&9_u16.to_be_bytes());
        guest.wire.send(&answer);
        assert_eq!(flows(GUEST), 2);

        let machine = folders.start().await;
        assert_eq!(flows(GUEST), 2, "a VM that runs keeps its flows");
        drop(guest.wire.packets());
        uplink.send(&from_lan);
        assert!(stranger.send(b"x").is_err(), "another user's old flow");
        assert_eq!(ports(&mut guest.wire, UDP), [], "old flows");
        guest.delete(&machine).await;
    });
}

/// What is left of a connection whose program has closed it has no user any more, and still
/// arrives.
#[test]
fn the_rest_of_a_closed_connection_arrives() {
    with_uplink(async |mut uplink, _folders, machine| {
        let mut guest = Guest::start(&machine, 1, OWNER, 1).await;
        let mut flow = Flows::open(&mut guest, &mut uplink);
        // More than may be under way without an acknowledgement: the rest is sent when nobody has
        // the socket any more.
        let (first, (sent, expected)) = (vec![b'x'; 60_000], flow.at);
        flow.connection.set_nonblocking(true).unwrap();
        let written = flow.connection.write(&first).unwrap();
        let port = flow.connection.local_addr().unwrap().port();
        drop(flow);
        let gateway = mac(&guest.tap);
        let (mut received, mut end) = (0_usize, false);
        for _ in 0..50 {
            for packet in guest.wire.packets().iter().filter(|packet| packet[9] == TCP) {
                let header = 20 + usize::from(packet[32] >> 4) * 4;
                let number = u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]);
                if number == expected + u32::try_from(received).unwrap() {
                    received += packet.len() - header;
                    end |= packet[33] & 1 == 1;
                }
            }
            if end {
                break;
            }
            let acknowledged = expected + u32::try_from(received).unwrap();
            guest.wire.send(&tcp(gateway, (GUEST, 4001), (HOST, port), 0x10, sent, acknowledged, b""));
        }
        assert!(end && received == written, "{received} of {written} bytes, end seen: {end}");
        guest.delete(&machine).await;
    });
}

/// To which ports datagrams have come. From which is the host's choice where a rewritten flow
/// resembles another.
fn arrived(wire: &mut Wire) -> Vec<u16> {
    ports(wire, UDP).into_iter().map(|(_, to)| to).collect()
}

#[test]
fn the_hosts_dnat_leads_no_guest_in() {
    if !can_run() {
        return;
    }
    in_namespace(async {
        let _uplink = uplink();
        // A container, and a link that the firewall does not know: what is dropped from a guest
        // passes from there.
        let mut container = Wire::open("ctr0").unwrap();
        let mut control = Wire::open("ctl0").unwrap();
        run("ip addr add 192.168.77.1/24 dev ctr0; ip link set ctr0 up");
        run("ip neigh add 192.168.77.2 lladdr 02:00:00:00:00:77 dev ctr0");
        run("ip addr add 192.0.2.1/32 dev ctl0; ip link set ctl0 up; ip route add 192.0.2.2/32 dev ctl0");
        run("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/ctl0/rp_filter");
        let folders = Folders::new();
        let machine = folders.start().await;
        let mut guest = Guest::start(&machine, 1, OWNER, 1).await;
        let mut other = Guest::start(&machine, 2, OWNER + 1, 2).await;
        run("nft 'table ip docker { chain pre { type nat hook prerouting priority dstnat;
            fib daddr type local udp dport 8080 dnat to 192.168.77.2:80
            ip daddr { 169.254.169.254, 203.0.113.5 } udp dport 8080 dnat to 192.168.77.2:80
            ip daddr 203.0.113.6 udp dport 8080 dnat to 172.16.0.3:80
            ip daddr 203.0.113.7 udp dport 8080 redirect to :80; }; }'");
        let listener = UdpSocket::bind(("0.0.0.0", 80)).unwrap();
        listener.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let kinds = [
            ("a port published on the LAN address", UPLINK),
            ("a port published on bridge_ip", HOST),
            ("metadata redirected", Ipv4Addr::new(169, 254, 169, 254)),
            ("an address outside that the host redirects", Ipv4Addr::new(203, 0, 113, 5)),
        ];
        let control_source = Ipv4Addr::new(192, 0, 2, 2);
        for (what, to) in kinds {
            drop(container.packets());
            control.send(&udp(mac("ctl0"), control_source, to, 8080));
            assert_eq!(arrived(&mut container), [80], "control: {what}");
            guest.wire.send(&udp(mac(&guest.tap), GUEST, to, 8080));
            assert!(arrived(&mut container).is_empty(), "{what}");
        }
        control.send(&udp(mac("ctl0"), control_source, Ipv4Addr::new(203, 0, 113, 7), 8080));
        assert!(listener.recv(&mut [0; 64]).is_ok(), "control: the host's own service");
        guest.wire.send(&udp(mac(&guest.tap), GUEST, Ipv4Addr::new(203, 0, 113, 7), 8080));
        assert!(listener.recv(&mut [0; 64]).is_err(), "the host's own service");
        drop(other.wire.packets());
        guest.wire.send(&udp(mac(&guest.tap), GUEST, Ipv4Addr::new(203, 0, 113, 6), 8080));
        assert!(arrived(&mut other.wire).is_empty(), "another guest");
        // By its own address the container is a host like others, for whom the administrator's
        // chains speak.
        drop(container.packets());
        guest.wire.send(&udp(mac(&guest.tap), GUEST, Ipv4Addr::new(192, 168, 77, 2), 80));
        assert_eq!(arrived(&mut container), [80], "control: the guest's packets do get there");
        // Broadcast and multicast are not for one host.
        for to in [Ipv4Addr::new(10, 9, 9, 255), Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
            guest.wire.send(&udp(mac(&guest.tap), GUEST, to, 80));
            assert!(listener.recv(&mut [0; 64]).is_err(), "{to}");
        }
        guest.delete(&machine).await;
        other.delete(&machine).await;
    });
}
