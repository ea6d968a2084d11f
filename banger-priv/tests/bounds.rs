//! What guests may make the host remember: neighbours, flows, fragments. The tables are the whole
//! machine's, so what one user's guests fill would be missing to everybody.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::Digest;
use banger_policy::limits::{CLOSED_FLOW_SECONDS, FLOWS_OF_USER, FLOWS_TO_ONE, NEW_FLOWS_OF_USER};
use banger_policy::reach::{Mode, Reach};
use banger_priv::host::Host;
use banger_priv::ops::Machine;
use common::{OWNER, Vmm, Wire, becomes, mac, run, tcp, udp, vm};
use net::{GUEST, HOST, LAN, OTHER, UPLINK, addresses, from_lan, left_from, with_uplink};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// A guest whose user's number is `owner`, which may reach whatever the host routes to.
async fn guest(machine: &Machine<Host>, number: u8, owner: u32) -> (String, Wire, Vmm) {
    let tap = machine.acquire_tap(vm(number), owner, number.into()).await.unwrap();
    let wire = Wire::open(&tap.tap_device).unwrap();
    let vmm = Vmm::start();
    machine.bind_process(vm(number), vmm.pid()).await.unwrap();
    machine.set_network(vm(number), Reach::of(Mode::Nat)).await.unwrap();
    (tap.tap_device, wire, vmm)
}

/// "Who has `HOST`?", asked in the name of `sender` (RFC 826).
fn who_has(sender: Ipv4Addr) -> Vec<u8> {
    const HARDWARE: [u8; 6] = [6, 0, 0, 0, 0, 1];
    let question = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &HARDWARE, &sender.octets(), &[0; 6], &HOST.octets()].concat();
    [&[0xff; 6][..], &HARDWARE, &[8, 6], &question].concat()
}

fn answers(wire: &mut Wire, question: &[u8]) -> usize {
    drop(wire.packets_of([8, 6]));
    wire.send(question);
    wire.packets_of([8, 6]).iter().filter(|packet| packet[6..8] == [0, 2]).count()
}

#[test]
fn a_guest_is_one_neighbour_of_the_host() {
    with_uplink(async |_uplink, _folders, machine| {
        run("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done");
        let (name, mut wire, mut vmm) = guest(&machine, 1, OWNER).await;
        // On every tap made from now on, too.
        run(&format!("echo 0 > /proc/sys/net/ipv4/conf/{name}/rp_filter"));
        assert_eq!(answers(&mut wire, &who_has(GUEST)), 1, "control: it is answered in its own name");
        let neighbours = || run(&format!("ip -4 neigh show dev {name}")).lines().count();
        assert_eq!(neighbours(), 1, "control: that made it a neighbour");
        for number in 0..=255 {
            wire.send(&who_has(Ipv4Addr::new(172, 16, 9, number)));
        }
        for sender in [OTHER, LAN, HOST, Ipv4Addr::new(172, 16, 0, 77), Ipv4Addr::UNSPECIFIED] {
            assert_eq!(answers(&mut wire, &who_has(sender)), 0, "in the name of {sender}");
        }
        assert_eq!(neighbours(), 1, "{}", run(&format!("ip -4 neigh show dev {name}")));
        machine.release(vm(1)).await.unwrap_err();
        assert_eq!(answers(&mut wire, &who_has(GUEST)), 1, "what runs is not withdrawn");
        // Whoever holds the tap then, as another VMM may, has no name at all.
        vmm.end();
        let release = {
            let machine = std::rc::Rc::clone(&machine);
            tokio::task::spawn_local(async move { machine.release(vm(1)).await })
        };
        becomes("withdrawn", || !run("nft list table arp banger").contains(&name)).await;
        assert_eq!(answers(&mut wire, &who_has(GUEST)), 0, "in the name of a guest that has ended");
        drop(wire);
        release.await.unwrap().unwrap();
    });
}

/// A datagram of its own flow; the first thousand go to the neighbour, others further on.
fn flow(to: [u8; 6], from: Ipv4Addr, number: u32) -> Vec<u8> {
    let [_, high, middle, low] = number.to_be_bytes();
    let there = if number < 1000 { LAN } else { Ipv4Addr::new(9, 9, high, middle) };
    let mut frame = udp(to, from, there, 7);
    frame[34..36].copy_from_slice(&[high.wrapping_add(4), middle]);
    frame[36..38].copy_from_slice(&[1, low]);
    frame
}

/// What has left of a frame.
fn left(uplink: &mut Wire, wire: &mut Wire, frame: &[u8]) -> Vec<Vec<u8>> {
    drop(uplink.packets());
    wire.send(frame);
    uplink.packets().into_iter().filter(|packet| addresses(packet).0 == UPLINK).collect()
}

/// What connection tracking has, in this namespace.
fn tracked() -> u32 {
    run("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse().unwrap()
}

#[test]
fn one_users_guests_have_so_many_flows_and_no_more() {
    with_uplink(async |mut uplink, _folders, machine| {
        // Or the first have ended before the last is there.
        run("echo 600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout");
        let (name, mut wire, _vmm) = guest(&machine, 1, OWNER).await;
        let (second_name, mut second, _second) = guest(&machine, 2, OWNER).await;
        let (third_name, mut third, _third) = guest(&machine, 3, OWNER + 1).await;
        let third_address = Ipv4Addr::new(172, 16, 0, 4);
        let first = left(&mut uplink, &mut second, &flow(mac(&second_name), OTHER, 1));
        // Answered, so that it is no new one any more.
        uplink.send(&from_lan(mac("uplink"), 257, left_from(&first)));
        let (to, begun) = (mac(&name), Instant::now());
        let mut numbers = 1000..;
        while tracked() < FLOWS_OF_USER && begun.elapsed() < Duration::from_secs(60) {
            for number in numbers.by_ref().take(100) {
                wire.send(&flow(to, GUEST, number));
            }
        }
        // More than may be begun at once by then.
        std::thread::sleep(Duration::from_secs(1));
        for number in numbers.by_ref().take(100) {
            wire.send(&flow(to, GUEST, number));
        }
        let count = tracked();
        assert!((FLOWS_OF_USER..=FLOWS_OF_USER + 10).contains(&count), "{count} flows");
        let more = left(&mut uplink, &mut wire, &flow(to, GUEST, 900_000));
        assert_eq!(more.len(), 0, "one more");
        let other = flow(mac(&second_name), OTHER, 2);
        assert_eq!(left(&mut uplink, &mut second, &other).len(), 0, "of another guest of the same user");
        let known = flow(mac(&second_name), OTHER, 1);
        assert_eq!(left(&mut uplink, &mut second, &known).len(), 1, "what had begun goes on");
        let others = flow(mac(&third_name), third_address, 1);
        assert_eq!(left(&mut uplink, &mut third, &others).len(), 1, "another user's");
        // They count as long as they are there.
        machine.set_network(vm(1), Reach::default()).await.unwrap();
        assert_eq!(left(&mut uplink, &mut second, &other).len(), 1, "after the first guest's have ended");
    });
}

#[test]
fn one_users_guests_have_so_many_flows_to_one_address() {
    with_uplink(async |mut uplink, _folders, machine| {
        run("echo 600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout");
        let (name, mut wire, _vmm) = guest(&machine, 1, OWNER).await;
        let (other_name, mut other, _other) = guest(&machine, 2, OWNER + 1).await;
        let to_one = |to, from, number: u16| {
            let mut frame = udp(to, from, LAN, 7);
            frame[34..36].copy_from_slice(&(1024 + number).to_be_bytes());
            frame
        };
        let to = mac(&name);
        for number in 0..2000 {
            wire.send(&to_one(to, GUEST, number));
        }
        std::thread::sleep(Duration::from_secs(1));
        for number in 2000..2200 {
            wire.send(&to_one(to, GUEST, number));
        }
        assert_eq!(tracked(), FLOWS_TO_ONE);
        assert_eq!(left(&mut uplink, &mut wire, &flow(to, GUEST, 1000)).len(), 1, "to another address");
        let others = to_one(mac(&other_name), OTHER, 1);
        assert_eq!(left(&mut uplink, &mut other, &others).len(), 1, "another user's");
    });
}

/// The kernel's count leaves out what is closed and still in the table.
#[test]
fn flows_that_are_opened_and_closed_do_not_fill_the_hosts_table() {
    const OPENED: u16 = 12_000;
    with_uplink(async |mut uplink, _folders, machine| {
        let (name, mut wire, _vmm) = guest(&machine, 1, OWNER).await;
        let (second_name, mut second, _second) = guest(&machine, 2, OWNER).await;
        let (third_name, mut third, _third) = guest(&machine, 3, OWNER + 1).await;
        // No far end is needed: two guests of one private network.
        let group = Reach { group: Digest::from_bytes([7; 32]).ok(), ..Reach::of(Mode::Nat) };
        for number in [1, 2] {
            machine.set_network(vm(number), group.clone()).await.unwrap();
        }
        let (there, back, begun) = (mac(&name), mac(&second_name), Instant::now());
        for port in 1024..1024 + OPENED {
            let to =
                |flags, number, acknowledged| tcp(there, (GUEST, port), (OTHER, 80), flags, number, acknowledged, b"");
            let from =
                |flags, number, acknowledged| tcp(back, (OTHER, 80), (GUEST, port), flags, number, acknowledged, b"");
            // SYN, SYN ACK, ACK; FIN and ACK of either side, ACK.
            wire.send(&to(2, 1, 0));
            second.send(&from(0x12, 1, 2));
            wire.send(&to(0x10, 2, 2));
            wire.send(&to(0x11, 2, 2));
            second.send(&from(0x11, 2, 3));
            wire.send(&to(0x10, 3, 3));
        }
        let shown = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        let (rate, at_once) = NEW_FLOWS_OF_USER;
        let most = u64::from(at_once) + rate * (begun.elapsed().as_secs() + 1);
        let closed: Vec<u32> = shown
            .lines()
            .filter(|line| line.contains("TIME_WAIT"))
            .filter_map(|line| line.split_whitespace().nth(4)?.parse().ok())
            .collect();
        assert!(closed.len() > 500, "control: they do close\n{}", shown.lines().take(3).collect::<String>());
        assert!(closed.iter().all(|seconds| *seconds <= CLOSED_FLOW_SECONDS), "{:?}", closed.iter().max());
        assert!(u64::from(tracked()) <= most, "{} of {OPENED} are there, expected {most} at most", tracked());
        assert!(begun.elapsed() < Duration::from_secs(20), "this machine is too slow to show it");
        let others = flow(mac(&third_name), Ipv4Addr::new(172, 16, 0, 4), 1);
        assert_eq!(left(&mut uplink, &mut third, &others).len(), 1, "another user's");
        // A stream that nobody answers is one flow, however many packets it has.
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..5000 {
            wire.send(&flow(there, GUEST, 1));
        }
        assert_eq!(left(&mut uplink, &mut wire, &flow(there, GUEST, 2)).len(), 1, "one more after the stream");
    });
}

/// The first fragment of a datagram whose rest never comes.
fn fragment(to: [u8; 6], from: Ipv4Addr, number: u16) -> Vec<u8> {
    let mut frame = udp(to, from, LAN, 7);
    frame[18..20].copy_from_slice(&number.to_be_bytes());
    frame[20] = 0x20;
    sum(&mut frame);
    frame
}

/// The checksum of the IPv4 header, anew (RFC 1071).
fn sum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
    let folded = (words & 0xffff) + (words >> 16);
    let folded = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    frame[24..26].copy_from_slice(&folded.to_be_bytes());
}

/// Datagrams of which the host keeps fragments, in this namespace.
fn kept() -> usize {
    let shown = run("grep ^FRAG: /proc/net/sockstat");
    shown.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn fragments_of_guests_do_not_fill_the_hosts_memory() {
    with_uplink(async |mut uplink, _folders, machine| {
        let (name, mut wire, _vmm) = guest(&machine, 1, OWNER).await;
        let (other_name, mut other, _other) = guest(&machine, 2, OWNER).await;
        for number in 0..50 {
            wire.send(&fragment(mac(&name), OTHER, number));
        }
        assert_eq!(kept(), 0, "of a spoofed sender");
        // Control: both halves of a datagram pass.
        let to = mac(&name);
        let mut whole = udp(to, GUEST, LAN, 7);
        whole.truncate(34);
        let half = |more: u8, at: u8, bytes: &[u8]| {
            let mut frame = [&whole[..], bytes].concat();
            let length = u16::try_from(20 + bytes.len()).unwrap().to_be_bytes();
            frame[16..18].copy_from_slice(&length);
            frame[18..22].copy_from_slice(&[7, 7, more, at]);
            sum(&mut frame);
            frame
        };
        drop(uplink.packets());
        wire.send(&half(0x20, 0, &[0x0f, 0xa0, 0, 7, 0, 16, 0, 0]));
        assert_eq!(kept(), 1);
        wire.send(&half(0, 1, &[1; 8]));
        // It leaves in as many parts as it came.
        assert_eq!(uplink.packets().iter().filter(|packet| addresses(packet).1 == LAN).count(), 2, "control");
        let (begun, to_other) = (Instant::now(), mac(&other_name));
        for number in 0..500 {
            wire.send(&fragment(to, GUEST, number));
            other.send(&fragment(to_other, OTHER, number));
        }
        let (kept, most) = (kept(), 40 + 8 * begun.elapsed().as_secs());
        assert!(kept >= 20 && kept as u64 <= most, "{kept} of a thousand are kept, expected {most} at most");
    });
}
