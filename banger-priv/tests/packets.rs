//! The firewall, proved with packets and not with its text: raw frames from a guest's side of its
//! tap, and sockets of several users on the host's.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::reach::{Mode, Reach};
use common::{DAEMON, OWNER, Vmm, Wire, becomes, mac, run, udp, vm};
use net::{GUEST, HOST, LAN, OTHER, UDP, UPLINK, addresses, from_lan, left_from, protocol, with_uplink};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

const LAN_6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 9);

/// A datagram from the host, as `uid`; whether it was let go.
fn from_host(uid: u32, to: Ipv4Addr, wire: &mut Wire) -> bool {
    drop(wire.packets());
    let line = format!("echo x > /dev/udp/{to}/9");
    drop(Command::new("bash").args(["-c", &line]).uid(uid).gid(uid).output().unwrap());
    wire.packets().iter().any(|packet| addresses(packet).1 == to)
}

/// What leaves through `out` after a frame was sent by a guest: source and destination.
fn through(guest: &mut Wire, frame: &[u8], out: &mut Wire) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    drop(out.packets());
    guest.send(frame);
    out.packets().iter().filter(|packet| protocol(packet) == UDP).map(|packet| addresses(packet)).collect()
}

/// A datagram to the LAN's fd09::9. Bytes 12 to 15 of its header, where IPv4 has the source, are
/// [`GUEST`].
fn ipv6(to_mac: [u8; 6]) -> Vec<u8> {
    let source = Ipv6Addr::new(0xfd00, 0, 0xac10, 2, 0, 0, 0, 2);
    let header = [&[0x60, 0, 0, 0, 0, 12, UDP, 64][..], &source.octets(), &LAN_6.octets()].concat();
    assert_eq!(header[12..16], GUEST.octets());
    let datagram = [&[0x0f, 0xa0, 0, 7, 0, 12, 0, 0][..], b"text"].concat();
    [&to_mac[..], &[6, 0, 0, 0, 0, 1], &[0x86, 0xdd], &header, &datagram].concat()
}

/// How many of these have left through the uplink.
fn ipv6_that_left(uplink: &mut Wire) -> usize {
    uplink.packets_of([0x86, 0xdd]).iter().filter(|packet| packet[24..40] == LAN_6.octets()).count()
}

#[test]
fn nothing_passes_but_what_must() {
    with_uplink(async |mut uplink, folders, machine| {
        let mut guests = Vec::new();
        for (n, address) in [(1, GUEST), (2, OTHER)] {
            let tap = machine.acquire_tap(vm(n), OWNER + u32::from(n) - 1, n.into()).await.unwrap();
            let wire = Wire::open(&tap.tap_device).unwrap();
            run(&format!("ip neigh add {address} lladdr 06:00:00:00:00:0{n} dev {}", tap.tap_device));
            guests.push((tap.tap_device, wire));
        }
        let (other_name, mut other) = guests.pop().unwrap();
        let (name, mut guest) = guests.pop().unwrap();
        let gateway = mac(&name);
        let listener = UdpSocket::bind((HOST, 7)).unwrap();
        listener.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let to = |source, destination| udp(gateway, source, destination, 7);

        // Before a process is bound an idle tap carries nothing, whoever holds it.
        machine.set_network(vm(1), Reach::of(Mode::Nat)).await.unwrap();
        assert_eq!(through(&mut guest, &to(GUEST, LAN), &mut uplink), []);
        assert!(!from_host(OWNER, GUEST, &mut guest), "no registration, no way in");

        let (mut vmm, second) = (Vmm::start(), Vmm::start());
        machine.bind_process(vm(1), vmm.pid()).await.unwrap();
        machine.bind_process(vm(2), second.pid()).await.unwrap();
        // The other guest may leave through the uplink, so that nothing but its address tells them
        // apart there.
        machine.set_network(vm(2), Reach::of(Mode::Nat)).await.unwrap();
        let own = udp(mac(&other_name), OTHER, LAN, 8);
        assert_eq!(through(&mut other, &own, &mut uplink), [(UPLINK, LAN)], "control: from its own tap");

        // Out, with the host's address; and only with the guest's own before.
        guest.send(&to(GUEST, LAN));
        let from = left_from(&uplink.packets());
        for spoofed in [OTHER, LAN, HOST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(8, 8, 8, 8)] {
            assert_eq!(through(&mut guest, &to(spoofed, LAN), &mut uplink), [], "spoofed {spoofed}");
        }
        // An answer comes back to the guest, and nothing else does.
        let answer = from_lan(mac("uplink"), 7, from);
        assert_eq!(through(&mut uplink, &answer, &mut guest), [(LAN, GUEST)]);
        let inbound = udp(mac("uplink"), LAN, GUEST, 22);
        assert_eq!(through(&mut uplink, &inbound, &mut guest), [], "a new connection from outside");
        // Metadata services, the other guest, the host itself.
        for service in ["169.254.169.254", "169.254.0.1", "168.63.129.16", "100.100.100.200", "192.0.0.192"] {
            assert_eq!(through(&mut guest, &to(GUEST, service.parse().unwrap()), &mut uplink), [], "{service}");
        }
        assert_eq!(through(&mut guest, &to(GUEST, OTHER), &mut other), [], "guest to guest");
        assert_eq!(through(&mut guest, &to(OTHER, OTHER), &mut other), []);
        for address in [HOST, UPLINK] {
            guest.send(&to(GUEST, address));
            assert!(listener.recv(&mut [0; 64]).is_err(), "guest to host");
        }
        // Who may connect to a guest.
        assert!(from_host(0, GUEST, &mut guest), "root");
        assert!(from_host(DAEMON, GUEST, &mut guest), "the daemon");
        assert!(from_host(OWNER, GUEST, &mut guest), "its owner");
        assert!(!from_host(OWNER + 1, GUEST, &mut guest), "another user");
        assert!(!from_host(OWNER, OTHER, &mut other), "another user's guest");
        assert!(from_host(OWNER + 1, OTHER, &mut other));
        // A guest's answer to the host arrives.
        let asking = UdpSocket::bind((HOST, 5000)).unwrap();
        asking.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        asking.send_to(b"?", (GUEST, 4000)).unwrap();
        guest.send(&udp(gateway, GUEST, HOST, 5000));
        assert!(asking.recv(&mut [0; 64]).is_ok(), "an answer to the host");
        // IPv6 is not carried at all, not even where the guest's own address stands at the place at
        // which an IPv4 packet has its source.
        let mut control = Wire::open("ctl0").unwrap();
        run("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; ip link set ctl0 up");
        run("ip -6 addr add fd09::1/64 dev uplink nodad; ip -6 neigh add fd09::9 lladdr 02:00:00:00:00:09 dev uplink");
        control.send(&ipv6(mac("ctl0")));
        assert_eq!(ipv6_that_left(&mut uplink), 1, "control: IPv6 passes from a link that is no guest's");
        guest.send(&ipv6(gateway));
        assert_eq!(ipv6_that_left(&mut uplink), 0, "IPv6 of a guest");

        // NAT off: no way out, without a restart.
        machine.set_network(vm(1), Reach::default()).await.unwrap();
        assert_eq!(through(&mut guest, &to(GUEST, LAN), &mut uplink), []);
        machine.set_network(vm(1), Reach::of(Mode::Nat)).await.unwrap();
        assert_eq!(through(&mut guest, &to(GUEST, LAN), &mut uplink).len(), 1);

        // Nobody else can open it while the helper lives, and it stays when the helper dies.
        run("nft add table inet somebodys");
        run("nft flush ruleset");
        assert_eq!(
            run("nft list tables | grep -v somebodys"),
            "table inet banger\ntable arp banger\n",
            "the flush has flushed"
        );
        assert_eq!(run("nft list tables | grep -c somebodys || true"), "0\n", "the flush has flushed");
        assert_eq!(through(&mut guest, &to(OTHER, LAN), &mut uplink), []);
        drop(machine);
        tokio::task::yield_now().await;
        assert_eq!(through(&mut guest, &to(OTHER, LAN), &mut uplink), []);
        assert!(!from_host(OWNER + 1, GUEST, &mut guest));
        assert_eq!(through(&mut guest, &to(GUEST, LAN), &mut uplink).len(), 1, "VMs go on");
        let machine = folders.start().await;
        assert_eq!(through(&mut guest, &to(GUEST, LAN), &mut uplink).len(), 1);
        assert!(!from_host(OWNER + 1, GUEST, &mut guest));

        // Withdrawn before the tap goes, even while the tap cannot go yet.
        vmm.end();
        drop(second);
        let release = {
            let machine = std::rc::Rc::clone(&machine);
            tokio::task::spawn_local(async move { machine.release(vm(1)).await })
        };
        becomes("withdrawn", || !run("nft list table inet banger").contains(&name)).await;
        assert!(!release.is_finished(), "the tap is still open");
        assert_eq!(through(&mut guest, &to(GUEST, LAN), &mut uplink), []);
        drop(guest);
        release.await.unwrap().unwrap();
        drop(other);
        machine.release(vm(2)).await.unwrap();
        assert!(!run("ip -o link").contains(&other_name));
    });
}
