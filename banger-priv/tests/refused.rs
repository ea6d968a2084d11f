//! What is refused is told, by the kernel to who listens for its traces: of which guest, of each
//! way to be refused, and not without end. What is told is read as the daemon reads it.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::reach::{Mode, Reach};
use banger_policy::refused::{GROUP, read};
use common::{OWNER, Vmm, Wire, mac, run, tcp, udp, vm};
use net::{GUEST, HOST, LAN, OTHER, ping, with_protocol, with_uplink};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

const WORLD: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// As systemd makes it of the unit.
fn listens() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).unwrap();
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP)).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
    socket
}

type Told = (Ipv4Addr, Ipv4Addr, u8, Option<u16>);

/// What was told since the last time: guest, destination, protocol and port; and the link's number.
fn told(socket: &OwnedFd) -> (Vec<Told>, Vec<u32>) {
    std::thread::sleep(Duration::from_millis(50));
    let (mut all, mut links, mut datagram) = (Vec::new(), Vec::new(), vec![0; 16 << 10]);
    while let Ok(length) = recv(socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
        for one in read(&datagram[..length]) {
            all.push((one.source, one.destination, one.protocol, one.port));
            links.push(one.link);
        }
    }
    (all, links)
}

#[test]
fn each_way_to_be_refused_is_told_and_what_passes_is_not() {
    with_uplink(async |_uplink, _folders, machine| {
        let mut guests = Vec::new();
        for (n, address) in [(1, GUEST), (2, OTHER)] {
            let tap = machine.acquire_tap(vm(n), OWNER + u32::from(n), n.into()).await.unwrap().tap_device;
            run(&format!("ip neigh add {address} lladdr 06:00:00:00:00:0{n} dev {tap}"));
            let vmm = Vmm::start();
            machine.bind_process(vm(n), vmm.pid()).await.unwrap();
            let index = nix::net::if_::if_nametoindex(tap.as_str()).unwrap();
            guests.push((Wire::open(&tap).unwrap(), mac(&tap), index, vmm));
        }
        let (mut other, other_mac, other_index, _other_vmm) = guests.pop().unwrap();
        let (mut guest, gateway, index, _vmm) = guests.pop().unwrap();
        let socket = listens();
        let to = |destination, port| udp(gateway, GUEST, destination, port);
        let pause = || std::thread::sleep(Duration::from_millis(1200));

        // Mode none: everything, by whatever protocol.
        guest.send(&to(LAN, 53));
        guest.send(&tcp(gateway, (GUEST, 4000), (WORLD, 443), 2, 1, 0, b""));
        guest.send(&ping(to(WORLD, 9)));
        guest.send(&with_protocol(to(WORLD, 9), 253));
        guest.send(&to(HOST, 22));
        guest.send(&to(METADATA, 80));
        guest.send(&to(OTHER, 7));
        // What goes to many at once is dropped without a word: systems send that by themselves.
        guest.send(&to(Ipv4Addr::BROADCAST, 67));
        guest.send(&to(Ipv4Addr::new(224, 0, 0, 251), 5353));
        let (all, links) = told(&socket);
        let expected = [
            (GUEST, LAN, 17, Some(53)),
            (GUEST, WORLD, 6, Some(443)),
            (GUEST, WORLD, 1, None),
            (GUEST, WORLD, 253, None),
            (GUEST, HOST, 17, Some(22)),
            (GUEST, METADATA, 17, Some(80)),
            (GUEST, OTHER, 17, Some(7)),
        ];
        assert_eq!(all, expected);
        assert!(links.iter().all(|link| *link == index), "{links:?}, not {index}");

        // The other modes tell what they refuse, and nothing of what they let pass.
        pause();
        machine.set_network(vm(1), Reach::of(Mode::Public)).await.unwrap();
        guest.send(&to(WORLD, 1));
        guest.send(&to(LAN, 2));
        assert_eq!(told(&socket).0, [(GUEST, LAN, 17, Some(2))]);
        machine.set_network(vm(1), Reach::of(Mode::Nat)).await.unwrap();
        guest.send(&to(LAN, 3));
        guest.send(&to(METADATA, 4));
        // By a chain behind routing: another guest, and a protocol that could be the host's own.
        guest.send(&to(OTHER, 5));
        guest.send(&with_protocol(to(LAN, 6), 253));
        let expected = [(GUEST, METADATA, 17, Some(4)), (GUEST, OTHER, 17, Some(5)), (GUEST, LAN, 253, None)];
        assert_eq!(told(&socket).0, expected);
        let target = "10.9.9.9/32:7/udp".to_owned().try_into().unwrap();
        machine.set_network(vm(1), Reach { mode: Mode::Allow, targets: vec![target], group: None }).await.unwrap();
        guest.send(&to(LAN, 7));
        guest.send(&to(LAN, 8));
        assert_eq!(told(&socket).0, [(GUEST, LAN, 17, Some(8))]);

        // What is spoofed is not told: it would be told of the other.
        guest.send(&udp(gateway, OTHER, LAN, 9));
        assert_eq!(told(&socket), (vec![], vec![]));

        // A flood is told in part, and hides nothing of another guest.
        pause();
        for port in 1000..1200 {
            guest.send(&to(WORLD, port));
        }
        other.send(&udp(other_mac, OTHER, LAN, 11));
        let (all, links) = told(&socket);
        let of_flood = all.iter().filter(|one| one.0 == GUEST).count();
        assert!((1..=40).contains(&of_flood), "{of_flood}");
        assert!(all.contains(&(OTHER, LAN, 17, Some(11))), "{all:?}");
        assert_eq!(links.last(), Some(&other_index));

        let listed = run("nft list table inet banger");
        for part in [
            "size 65535",
            "flags dynamic,timeout",
            "limit rate 5/second burst 20 packets } meta nftrace set 1",
            "goto refuse",
        ] {
            assert!(listed.contains(part), "{part} is not in\n{listed}");
        }
    });
}
