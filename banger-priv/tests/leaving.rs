//! What leaves for a guest: from which ports of the host, and by which protocols. Behind the host's
//! address, only they tell what is for a guest from what is for the host.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::reach::{Mode, Reach};
use banger_priv::host::Host;
use banger_priv::ops::Machine;
use common::{Folders, OWNER, Vmm, Wire, checksum, in_namespace, mac, run, tcp, udp, vm};
use net::{
    GUEST, LAN, TCP, UDP, UPLINK, addresses, can_run, from_lan, left_from, ping, ports, protocol, uplink,
    with_protocol, with_uplink,
};
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

/// A guest that reaches whatever the host routes to; its tap's MAC address.
async fn guest(machine: &Machine<Host>) -> (Wire, [u8; 6], Vmm) {
    let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap().tap_device;
    run(&format!("ip neigh add {GUEST} lladdr 06:00:00:00:00:01 dev {tap}"));
    let (wire, vmm) = (Wire::open(&tap).unwrap(), Vmm::start());
    machine.bind_process(vm(1), vmm.pid()).await.unwrap();
    machine.set_network(vm(1), Reach::of(Mode::Nat)).await.unwrap();
    (wire, mac(&tap), vmm)
}

/// What has come of TCP and UDP.
fn arrived(wire: &mut Wire) -> Vec<(u8, (u16, u16))> {
    let packets = wire.packets().into_iter().filter(|packet| matches!(protocol(packet), TCP | UDP));
    packets.map(|packet| (protocol(&packet), ports(&packet))).collect()
}

/// Port shadowing (CVE-2021-3773): a guest sends from the number of a service's port to where the
/// service's client will come from.
#[test]
fn what_comes_to_a_service_of_the_host_is_no_guests() {
    if !can_run() {
        return;
    }
    in_namespace(async {
        let mut uplink = uplink();
        // A host that has masqueraded everything since before the helper came.
        run("nft 'table ip mine { chain c { type nat hook postrouting priority srcnat; masquerade; }; }'");
        let folders = Folders::new();
        let machine = folders.start().await;
        let (mut guest, gateway, _vmm) = guest(&machine).await;
        for (service, client) in [(20_500, 40_000), (5353, 40_000), (5353, 5353), (51_820, 51_820)] {
            let socket = UdpSocket::bind((UPLINK, service)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut shadow = udp(gateway, GUEST, LAN, client);
            shadow[34..36].copy_from_slice(&service.to_be_bytes());
            drop(uplink.packets());
            guest.send(&shadow);
            let from = left_from(&uplink.packets());
            drop(arrived(&mut guest));
            uplink.send(&from_lan(mac("uplink"), client, service));
            let had = arrived(&mut guest);
            assert!(socket.recv(&mut [0; 64]).is_ok(), "UDP {service} <- {client}: the service got nothing");
            assert_eq!(had, [], "UDP {service} <- {client}");
            uplink.send(&from_lan(mac("uplink"), client, from));
            assert_eq!(arrived(&mut guest), [(UDP, (client, service))], "control: its own answer");
        }
        for (service, client) in [(20_500, 40_000), (22, 40_000)] {
            let _listener = TcpListener::bind((UPLINK, service)).unwrap();
            drop(uplink.packets());
            guest.send(&tcp(gateway, (GUEST, service), (LAN, client), SYN, 1, 0, b""));
            let from = left_from(&uplink.packets());
            drop(arrived(&mut guest));
            uplink.send(&tcp(mac("uplink"), (LAN, client), (UPLINK, service), SYN, 9, 0, b""));
            assert_eq!(arrived(&mut guest), [], "TCP {service} <- {client}");
            let said = uplink.packets().into_iter().find(|packet| ports(packet) == (service, client));
            assert_eq!(said.map(|packet| packet[33]), Some(SYN_ACK), "TCP {service} <- {client}: the service");
            uplink.send(&tcp(mac("uplink"), (LAN, client), (UPLINK, from), SYN_ACK, 9, 2, b""));
            assert_eq!(arrived(&mut guest), [(TCP, (client, service))], "control: its own answer");
        }
    });
}

/// What it makes no flow of is counted in none, and leaves from no port of the host's.
#[test]
fn what_connection_tracking_makes_nothing_of_does_not_leave() {
    with_uplink(async |mut uplink, _folders, machine| {
        let (mut guest, gateway, _vmm) = guest(&machine).await;
        let mut leaves = |frame: &[u8]| {
            drop(uplink.packets());
            guest.send(frame);
            uplink.packets().iter().any(|packet| addresses(packet).1 == LAN)
        };
        let datagram = udp(gateway, GUEST, LAN, 7);
        let echo = ping(datagram.clone());
        // An answer to nothing, and types that nobody knows.
        for kind in [0, 3, 11, 14, 16, 42] {
            let mut icmp = echo.clone();
            icmp[34] = kind;
            icmp[36..38].fill(0);
            let sum = checksum(&icmp[34..]);
            icmp[36..38].copy_from_slice(&sum.to_be_bytes());
            assert!(!leaves(&icmp), "ICMP of type {kind}");
        }
        for flags in [SYN | 1, SYN | 4, 0, 0x3f] {
            assert!(!leaves(&tcp(gateway, (GUEST, 4000), (LAN, 80), flags, 1, 0, b"")), "TCP with flags {flags:x}");
        }
        let mut damaged = datagram.clone();
        damaged[40..42].copy_from_slice(&[0xde, 0xad]);
        assert!(!leaves(&damaged), "UDP with another checksum");
        assert!(leaves(&datagram) && leaves(&echo), "control");
        assert!(leaves(&tcp(gateway, (GUEST, 4001), (LAN, 80), SYN, 1, 0, b"")), "control: TCP");
    });
}

#[test]
fn a_protocol_without_ports_does_not_leave() {
    with_uplink(async |mut uplink, _folders, machine| {
        let (mut guest, gateway, _vmm) = guest(&machine).await;
        let mut sent = |frame: &[u8]| {
            drop(uplink.packets());
            guest.send(frame);
            let left = uplink.packets();
            left.into_iter().find(|packet| addresses(packet) == (UPLINK, LAN))
        };
        let datagram = udp(gateway, GUEST, LAN, 7);
        // IP in IP, IPv6 in IP, GRE, ESP, AH, and one that nobody knows.
        for number in [4, 41, 47, 50, 51, 253] {
            assert_eq!(sent(&with_protocol(datagram.clone(), number)), None, "protocol {number}");
        }
        assert!(sent(&datagram).is_some(), "control: UDP");
        let mut answer = sent(&ping(datagram)).unwrap();
        let (from, to) = addresses(&answer);
        answer[12..16].copy_from_slice(&to.octets());
        answer[16..20].copy_from_slice(&from.octets());
        answer[20..24].fill(0);
        let sum = checksum(&answer[20..]);
        answer[22..24].copy_from_slice(&sum.to_be_bytes());
        drop(guest.packets());
        uplink.send(&[&mac("uplink")[..], &[2, 0, 0, 0, 0, 9, 8, 0], &answer].concat());
        // Its own number is that of `ping`.
        let came: Vec<_> = guest.packets().into_iter().filter(|packet| protocol(packet) == 1).collect();
        assert!(came.len() == 1 && came[0][20..26] == [0, 0, came[0][22], came[0][23], 0, 1], "{came:?}");
    });
}
