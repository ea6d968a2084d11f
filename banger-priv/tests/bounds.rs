//! What guests may make the host remember: neighbours, flows, fragments. The tables are the whole
//! machine's, so what one user's guests fill would be missing to everybody.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::reach::{Mode, Reach};
use banger_priv::host::Host;
use banger_priv::ops::Machine;
use common::{OWNER, Vmm, Wire, becomes, mac, run, udp, vm};
use net::{GUEST, HOST, LAN, OTHER, addresses, from_lan, with_uplink};
use std::net::Ipv4Addr;

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

/// A datagram of its own flow.
fn flow(to: [u8; 6], from: Ipv4Addr, number: u32) -> Vec<u8> {
    let [_, high, middle, low] = number.to_be_bytes();
    let mut frame = udp(to, from, Ipv4Addr::new(10, 9, 9, 9), 7);
    frame[34..36].copy_from_slice(&[high.wrapping_add(4), middle]);
    frame[36..38].copy_from_slice(&[1, low]);
    frame
}

#[test]
fn one_users_guests_have_so_many_flows_and_no_more() {
    const MOST: u32 = 8192;
    with_uplink(async |mut uplink, _folders, machine| {
        // Or the first have ended before the last is there, on a busy machine.
        run("echo 600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout");
        let (name, mut wire, _vmm) = guest(&machine, 1, OWNER).await;
        let (second_name, mut second, _second) = guest(&machine, 2, OWNER).await;
        let (third_name, mut third, _third) = guest(&machine, 3, OWNER + 1).await;
        let third_address = Ipv4Addr::new(172, 16, 0, 4);
        let left = |uplink: &mut Wire, wire: &mut Wire, frame: &[u8]| {
            drop(uplink.packets());
            wire.send(frame);
            uplink.packets().iter().filter(|packet| addresses(packet).1 == LAN).count()
        };
        assert_eq!(left(&mut uplink, &mut second, &flow(mac(&second_name), OTHER, 1)), 1, "control");
        // Answered, so that it is no new one any more.
        uplink.send(&from_lan(mac("uplink"), 257, 1024));
        let to = mac(&name);
        for number in 0..MOST + 100 {
            wire.send(&flow(to, GUEST, number));
        }
        let count: u32 = run("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse().unwrap();
        assert!((MOST..=MOST + 10).contains(&count), "{count} flows");
        assert_eq!(left(&mut uplink, &mut wire, &flow(mac(&name), GUEST, MOST + 1000)), 0, "one more");
        assert_eq!(
            left(&mut uplink, &mut second, &flow(mac(&second_name), OTHER, 2)),
            0,
            "of another guest of the same user"
        );
        assert_eq!(left(&mut uplink, &mut second, &flow(mac(&second_name), OTHER, 1)), 1, "what had begun goes on");
        assert_eq!(left(&mut uplink, &mut third, &flow(mac(&third_name), third_address, 1)), 1, "another user's");
        // They count as long as they are there.
        machine.set_network(vm(1), Reach::default()).await.unwrap();
        assert_eq!(
            left(&mut uplink, &mut second, &flow(mac(&second_name), OTHER, 2)),
            1,
            "after the first guest's have ended"
        );
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
        let (begun, to_other) = (std::time::Instant::now(), mac(&other_name));
        for number in 0..500 {
            wire.send(&fragment(to, GUEST, number));
            other.send(&fragment(to_other, OTHER, number));
        }
        let (kept, most) = (kept(), 40 + 8 * begun.elapsed().as_secs());
        assert!(kept >= 20 && kept as u64 <= most, "{kept} of a thousand are kept, expected {most} at most");
    });
}
