//! How far a guest reaches in each mode, and who reaches whom in a private network: proved with
//! packets. What must not pass in one mode is seen to pass in another.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::Digest;
use banger_policy::reach::{Mode, Reach};
use common::{Folders, OWNER, Vmm, Wire, in_namespace, mac, run, udp, vm};
use net::{
    GUEST, HOST, LAN, OTHER, UDP, UPLINK, addresses, can_run, from_lan, left_from, protocol, uplink, with_uplink,
};
use std::net::Ipv4Addr;

const THIRD: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 4);
const WORLD: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
/// Behind a bridge of the host's, as a container is.
const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const PRIVATE: [Ipv4Addr; 5] = [
    LAN,
    Ipv4Addr::new(192, 168, 1, 1),
    Ipv4Addr::new(100, 64, 0, 1),
    Ipv4Addr::new(198, 18, 0, 1),
    Ipv4Addr::new(203, 0, 113, 1),
];
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(168, 63, 129, 16)];

fn allow(texts: &[&str]) -> Reach {
    let targets = texts.iter().map(|text| (*text).to_owned().try_into().unwrap()).collect();
    Reach { mode: Mode::Allow, targets, group: None }
}

/// What leaves through `out` after a frame was sent: source and destination.
fn through(guest: &mut Wire, frame: &[u8], out: &mut Wire) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    drop(out.packets());
    guest.send(frame);
    out.packets().iter().filter(|packet| protocol(packet) == UDP).map(|packet| addresses(packet)).collect()
}

#[test]
fn each_mode_lets_pass_what_it_says() {
    if !can_run() {
        return;
    }
    in_namespace(async {
        let mut uplink = uplink();
        let mut containers = Wire::open("docker0").unwrap();
        run("ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up");
        run("ip neigh add 172.17.0.2 lladdr 02:00:00:00:00:02 dev docker0");
        let folders = Folders::new();
        let machine = folders.start().await;
        let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap().tap_device;
        let mut guest = Wire::open(&tap).unwrap();
        run(&format!("ip neigh add {GUEST} lladdr 06:00:00:00:00:01 dev {tap}"));
        let vmm = Vmm::start();
        machine.bind_process(vm(1), vmm.pid()).await.unwrap();
        let gateway = mac(&tap);
        let to = |destination, port| udp(gateway, GUEST, destination, port);
        let set = async |reach: Reach| machine.set_network(vm(1), reach).await.unwrap();

        // Of all these the first three modes let pass: nothing, the world, everything.
        for (mode, world, private) in [
            (Mode::None, false, false),
            (Mode::Public, true, false),
            (Mode::Nat, true, true),
            (Mode::Public, true, false),
            (Mode::None, false, false),
        ] {
            set(Reach::of(mode)).await;
            let passes = |seen: &[(Ipv4Addr, Ipv4Addr)], to| seen.contains(&(UPLINK, to));
            assert_eq!(passes(&through(&mut guest, &to(WORLD, 7), &mut uplink), WORLD), world, "{mode}");
            for address in PRIVATE {
                assert_eq!(
                    passes(&through(&mut guest, &to(address, 7), &mut uplink), address),
                    private,
                    "{mode} {address}"
                );
            }
            let seen = through(&mut guest, &to(CONTAINER, 7), &mut containers);
            assert_eq!(!seen.is_empty(), private, "{mode}: a container");
            for address in METADATA {
                assert_eq!(through(&mut guest, &to(address, 7), &mut uplink), [], "{mode} {address}");
            }
        }

        // A list, and nothing else.
        set(allow(&["10.9.9.0/24", "9.9.9.9/32:7/udp", "9.9.9.9/32:8/tcp"])).await;
        for (address, port, passes) in [
            (LAN, 7, true),
            (LAN, 80, true),
            (WORLD, 7, true),
            (WORLD, 8, false),
            (Ipv4Addr::new(10, 9, 8, 255), 7, false),
            (Ipv4Addr::new(10, 9, 10, 0), 7, false),
            (Ipv4Addr::new(9, 9, 9, 10), 7, false),
        ] {
            let seen = through(&mut guest, &to(address, port), &mut uplink);
            assert_eq!(seen.len(), usize::from(passes), "{address}:{port} {seen:?}");
        }
        assert_eq!(through(&mut guest, &to(CONTAINER, 7), &mut containers), []);
        // Ranges within ranges, and one after another in one step.
        set(allow(&["9.0.0.0/8", "9.9.0.0/16", "9.9.9.9/32"])).await;
        assert_eq!(through(&mut guest, &to(WORLD, 9), &mut uplink).len(), 1);
        assert_eq!(through(&mut guest, &to(LAN, 9), &mut uplink), []);
        set(allow(&["9.9.0.0/16"])).await;
        assert_eq!(through(&mut guest, &to(WORLD, 9), &mut uplink).len(), 1);
        assert_eq!(through(&mut guest, &to(Ipv4Addr::new(9, 8, 0, 1), 9), &mut uplink), []);
        // Everything is still neither the host nor a metadata service.
        set(allow(&["0.0.0.0/0"])).await;
        assert_eq!(through(&mut guest, &to(WORLD, 9), &mut uplink).len(), 1);
        assert_eq!(through(&mut guest, &to(METADATA[0], 9), &mut uplink), []);
        assert_eq!(through(&mut guest, &to(METADATA[1], 9), &mut uplink), []);

        // What is taken off the list ends: also the answers to what was asked in time.
        set(allow(&["10.9.9.9/32", "9.9.9.9/32"])).await;
        drop(uplink.packets());
        guest.send(&to(LAN, 7));
        let answer = from_lan(mac("uplink"), 7, left_from(&uplink.packets()));
        assert_eq!(through(&mut uplink, &answer, &mut guest), [(LAN, GUEST)], "control: an answer");
        set(allow(&["9.9.9.9/32"])).await;
        assert_eq!(through(&mut uplink, &answer, &mut guest), [], "an answer to what is allowed no more");
        assert_eq!(through(&mut guest, &to(LAN, 7), &mut uplink), []);

        // The host's own DNAT leads nowhere that the guest may not go to.
        run("nft 'table ip docker { chain pre { type nat hook prerouting priority dstnat;
             ip daddr 9.9.9.9 udp dport 7 dnat to 172.17.0.2; }; }'");
        assert_eq!(through(&mut guest, &to(WORLD, 7), &mut containers), [], "DNAT to a container");
        run("nft delete table ip docker");

        // After a new start of the helper it is as before.
        drop(machine);
        tokio::task::yield_now().await;
        let machine = folders.start().await;
        assert_eq!(through(&mut guest, &to(WORLD, 7), &mut uplink).len(), 1);
        assert_eq!(through(&mut guest, &to(LAN, 7), &mut uplink), []);
        // The longest list, and what nft makes of it.
        let long: Vec<String> = (0..256).map(|n| format!("9.{n}.0.0/16:{}/udp", n + 1)).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        machine.set_network(vm(1), allow(&long)).await.unwrap();
        assert_eq!(through(&mut guest, &to(WORLD, 10), &mut uplink).len(), 1);
        assert_eq!(through(&mut guest, &to(WORLD, 11), &mut uplink), []);
        let listed = run("nft list table inet banger");
        for part in ["172.16.0.2 . 9.255.0.0/16 . udp . 256", "10.0.0.0/8", "meta l4proto . th dport @ports"] {
            assert!(listed.contains(part), "{part} is not in\n{listed}");
        }
        drop((vmm, guest));
        machine.release(vm(1)).await.unwrap();
        // How much was told of a guest that was refused is forgotten by itself.
        let left = run("nft list table inet banger | sed '/set asked/,/}$/d'");
        assert!(!left.contains("172.16.0.2"), "{left}");
    });
}

#[test]
fn a_private_network_is_one_users() {
    with_uplink(async |mut uplink, folders, machine| {
        let mut guests = Vec::new();
        for (n, address, owner) in [(1, GUEST, OWNER), (2, OTHER, OWNER), (3, THIRD, OWNER + 1)] {
            let tap = machine.acquire_tap(vm(n), owner, n.into()).await.unwrap().tap_device;
            run(&format!("ip neigh add {address} lladdr 06:00:00:00:00:0{n} dev {tap}"));
            let vmm = Vmm::start();
            machine.bind_process(vm(n), vmm.pid()).await.unwrap();
            guests.push((Wire::open(&tap).unwrap(), mac(&tap), vmm));
        }
        let (mut third, third_mac, third_vmm) = guests.pop().unwrap();
        let (mut other, other_mac, other_vmm) = guests.pop().unwrap();
        let (mut guest, guest_mac, vmm) = guests.pop().unwrap();
        let group = |byte| Reach { group: Digest::from_bytes([byte; 32]).ok(), ..Reach::default() };
        let there = udp(guest_mac, GUEST, OTHER, 7);
        let back = udp(other_mac, OTHER, GUEST, 4000);

        assert_eq!(through(&mut guest, &there, &mut other), [], "of one user, in no network");
        machine.set_network(vm(1), group(7)).await.unwrap();
        assert_eq!(through(&mut guest, &there, &mut other), [], "one of the two");
        machine.set_network(vm(2), group(8)).await.unwrap();
        assert_eq!(through(&mut guest, &there, &mut other), [], "in two networks");
        machine.set_network(vm(2), group(7)).await.unwrap();
        assert_eq!(through(&mut guest, &there, &mut other), [(GUEST, OTHER)], "in one network");
        assert_eq!(through(&mut other, &back, &mut guest), [(OTHER, GUEST)]);
        // Whatever id another user's daemon tells.
        machine.set_network(vm(3), group(7)).await.unwrap();
        assert_eq!(through(&mut third, &udp(third_mac, THIRD, GUEST, 7), &mut guest), [], "another user's");
        assert_eq!(through(&mut guest, &udp(guest_mac, GUEST, THIRD, 7), &mut third), [], "to another user's");
        // The network opens nothing else, and spoofs nothing.
        assert_eq!(through(&mut guest, &udp(guest_mac, GUEST, LAN, 7), &mut uplink), []);
        assert_eq!(through(&mut guest, &udp(guest_mac, THIRD, OTHER, 7), &mut other), [], "spoofed");
        let listener = std::net::UdpSocket::bind((HOST, 7)).unwrap();
        listener.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        guest.send(&udp(guest_mac, GUEST, HOST, 7));
        assert!(listener.recv(&mut [0; 64]).is_err(), "the host");
        // After a new start of the helper it is as before.
        drop(machine);
        tokio::task::yield_now().await;
        let machine = folders.start().await;
        assert_eq!(through(&mut guest, &there, &mut other), [(GUEST, OTHER)]);
        assert_eq!(through(&mut third, &udp(third_mac, THIRD, GUEST, 7), &mut guest), []);
        // Who leaves is out at once, in both directions and with what was begun.
        machine.set_network(vm(1), Reach::default()).await.unwrap();
        assert_eq!(through(&mut guest, &there, &mut other), []);
        assert_eq!(through(&mut other, &back, &mut guest), []);
        drop((vmm, other_vmm, third_vmm, guest, other, third));
        for n in 1..4 {
            machine.release(vm(n)).await.unwrap();
        }
    });
}
