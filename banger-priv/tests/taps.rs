//! Taps on the real kernel: what is made, and what is left alone.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/net.rs"]
mod net;

use banger_policy::reach::{Mode, Reach};
use banger_priv::kernel::Kernel;
use banger_proto::helper::{HelperError, TapIdentity};
use common::{Folders, OWNER, Vmm, Wire, in_namespace, is_root, run, skipped, vm, works};
use net::can_run;
use std::time::Duration;

fn code<T: std::fmt::Debug>(result: banger_priv::ops::Answer<T>) -> HelperError {
    result.unwrap_err().code
}

#[test]
fn a_tap_is_made_whole_and_goes_whole() {
    if !is_root() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        let machine = folders.start().await;
        let before = run("ip -o link; ip -4 route show table all; ip addr");
        let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
        assert_eq!(tap.tap_device, vm(1).tap_name());
        assert_eq!(machine.acquire_tap(vm(1), OWNER, 1).await.unwrap(), tap, "the stored answer");
        let name = &tap.tap_device;
        let link = run(&format!("ip -d link show dev {name}"));
        for part in [
            "tun type tap",
            "vnet_hdr on",
            "persist on",
            "user nobody",
            "addrgenmode none",
            &vm(1).tap_alias(tap.generation),
        ] {
            assert!(link.contains(part), "{part} is missing in {link}");
        }
        assert!(run(&format!("ip addr show dev {name}")).contains("inet 172.16.0.1/32"));
        assert!(run("ip route get 172.16.0.2").contains(name));
        assert!(!run(&format!("ip addr show dev {name}")).contains("inet6"));
        assert_eq!(code(machine.acquire_tap(vm(1), OWNER + 1, 1).await), HelperError::NotYours);
        assert_eq!(code(machine.acquire_tap(vm(1), OWNER, 2).await), HelperError::BadState);
        assert_eq!(code(machine.acquire_tap(vm(2), OWNER, 1).await), HelperError::Busy, "the address is taken");
        assert_eq!(code(machine.acquire_tap(vm(2), OWNER, 0).await), HelperError::BadArgument);
        assert_eq!(code(machine.acquire_tap(vm(2), OWNER, 254).await), HelperError::BadArgument);
        for wrong in [
            TapIdentity { generation: tap.generation ^ 1, ..tap.clone() },
            TapIdentity { tap_device: vm(2).tap_name(), ..tap.clone() },
        ] {
            assert_eq!(code(machine.release_tap(vm(1), &wrong).await), HelperError::NotYours);
        }
        assert_eq!(code(machine.release_tap(vm(2), &tap).await), HelperError::NotYours);
        machine.release_tap(vm(1), &tap).await.unwrap();
        machine.release_tap(vm(1), &tap).await.unwrap();
        assert_eq!(run("ip -o link; ip -4 route show table all; ip addr"), before);
        let again = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
        assert_ne!(again.generation, tap.generation, "another boot");
        assert_eq!(code(machine.release_tap(vm(1), &tap).await), HelperError::NotYours, "the old boot's claim");
        machine.release(vm(1)).await.unwrap();
        machine.release(vm(1)).await.unwrap();
        assert_eq!(run("ip -o link; ip -4 route show table all; ip addr"), before);
        assert_eq!(std::fs::read_dir(folders.path("run")).unwrap().count(), 1, "only the lock");
    });
}

#[test]
fn an_open_tap_is_waited_for_and_a_running_process_is_not_torn_down() {
    if !is_root() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        let machine = folders.start().await;
        let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
        let mut vmm = Vmm::start();
        assert_eq!(code(machine.bind_process(vm(1), 1).await), HelperError::NotYours, "root's process");
        assert_eq!(code(machine.bind_process(vm(2), vmm.pid()).await), HelperError::NotYours, "another VM");
        assert!(machine.bind_process(vm(1), vmm.pid()).await.unwrap(), "to be watched");
        assert!(!machine.bind_process(vm(1), vmm.pid()).await.unwrap(), "watched already");
        let second = Vmm::start();
        assert_eq!(code(machine.bind_process(vm(1), second.pid()).await), HelperError::BadState, "once per boot");
        assert_eq!(machine.process_running(vm(1), vmm.pid()).unwrap(), banger_proto::helper::ProcessState::Running);
        assert_eq!(machine.process_running(vm(1), second.pid()).unwrap(), banger_proto::helper::ProcessState::NotYours);
        assert_eq!(code(machine.release_tap(vm(1), &tap).await), HelperError::StillRunning);
        assert_eq!(code(machine.release(vm(1)).await), HelperError::StillRunning);
        vmm.end();
        assert_eq!(machine.process_running(vm(1), vmm.pid()).unwrap(), banger_proto::helper::ProcessState::Gone);
        let wire = Wire::open(&tap.tap_device).unwrap();
        let release = {
            let (machine, tap) = (std::rc::Rc::clone(&machine), tap.clone());
            tokio::task::spawn_local(async move { machine.release_tap(vm(1), &tap).await })
        };
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!release.is_finished(), "it is still open");
        // Meanwhile others are served.
        machine.acquire_tap(vm(2), OWNER, 2).await.unwrap();
        drop(wire);
        release.await.unwrap().unwrap();
        machine.release(vm(2)).await.unwrap();
    });
}

#[test]
fn what_somebody_else_has_touched_is_quarantined_and_left() {
    if !is_root() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        let machine = folders.start().await;
        for (spoil, mend) in [
            ("ip link set dev TAP alias elsewhere", "ip link set dev TAP alias ALIAS"),
            ("ip link set dev TAP down; ip link set dev TAP name renamed", "ip link set dev renamed name TAP"),
        ] {
            let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
            let line =
                |text: &str| text.replace("TAP", &tap.tap_device).replace("ALIAS", &vm(1).tap_alias(tap.generation));
            run(&line(spoil));
            let links = run("ip -o link");
            assert_eq!(code(machine.release_tap(vm(1), &tap).await), HelperError::Quarantined, "{spoil}");
            assert!(machine.identity(vm(1)).unwrap().quarantined);
            assert_eq!(code(machine.acquire_tap(vm(1), OWNER, 1).await), HelperError::Quarantined);
            assert_eq!(code(machine.release(vm(1)).await), HelperError::Quarantined);
            assert_eq!(run("ip -o link"), links, "left alone");
            run(&line(mend));
            machine.release(vm(1)).await.unwrap();
        }
        // Our tap is gone, and somebody made another one of that name: gone is success, theirs
        // stays.
        let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
        run(&format!("ip link delete {0}; ip tuntap add dev {0} mode tap", tap.tap_device));
        machine.release_tap(vm(1), &tap).await.unwrap();
        assert!(works(&format!("ip link show dev {}", tap.tap_device)));
        assert_eq!(code(machine.acquire_tap(vm(1), OWNER, 1).await), HelperError::Busy, "a foreign link of our name");
        assert!(works(&format!("ip link show dev {}", tap.tap_device)));
    });
}

#[test]
fn a_restart_keeps_what_is_held_and_sweeps_what_nobody_speaks_of() {
    if !can_run() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        let machine = folders.start().await;
        let kept = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
        let orphan = machine.acquire_tap(vm(2), OWNER, 2).await.unwrap();
        let vmm = Vmm::start();
        machine.bind_process(vm(1), vmm.pid()).await.unwrap();
        machine.set_network(vm(1), Reach::of(Mode::Nat)).await.unwrap();
        let rules = run("nft list table inet banger | grep -v progname");
        drop(machine);
        std::fs::remove_file(folders.path("run").join(vm(2).to_string())).unwrap();
        // Not ours, although they look a little like it.
        run(
            "ip tuntap add dev bgr-foreign mode tap; ip tuntap add dev tap7 mode tap; ip link set dev tap7 alias banger:1:x",
        );
        tokio::task::yield_now().await;
        let machine = folders.start().await;
        assert!(machine.kernel().link_by_name(&orphan.tap_device).await.unwrap().is_none(), "swept");
        assert!(works("ip link show dev bgr-foreign && ip link show dev tap7"));
        assert_eq!(machine.identity(vm(1)).unwrap().tap, Some(kept.clone()));
        assert_eq!(machine.acquire_tap(vm(1), OWNER, 1).await.unwrap(), kept);
        assert_eq!(run("nft list table inet banger | grep -v progname"), rules, "the firewall is the same");
        let all = run("ip -o link; ip route");
        drop(machine);
        tokio::task::yield_now().await;
        let machine = folders.start().await;
        assert_eq!(run("ip -o link; ip route"), all, "the second recovery changes nothing");
        drop(vmm);
        machine.release(vm(1)).await.unwrap();
    });
}

#[test]
fn the_link_of_an_earlier_name_goes_and_nobody_elses() {
    if !is_root() {
        return;
    }
    in_namespace(async {
        if !works("ip link add mine type dummy && ip addr add 192.0.2.1/24 dev mine") {
            return skipped("this kernel has no dummy links");
        }
        let folders = Folders::new();
        let machine = folders.start().await;
        machine.kernel().make_bridge("br-a").await.unwrap();
        assert!(works("ip link show dev br-a"), "control");
        machine.kernel().make_bridge("br-b").await.unwrap();
        assert!(!works("ip link show dev br-a"));
        assert!(works("ip link show dev br-b && ip link show dev mine"));
    });
}

#[test]
fn the_address_of_an_earlier_network_goes_from_the_link_and_a_running_guest_keeps_its_way() {
    if !is_root() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        let machine = folders.start().await;
        let guest = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap().tap_device;
        let link = machine.acquire_tap(vm(2), OWNER, 2).await.unwrap().tap_device;
        // In the place of the dummy link, which not every kernel has.
        run(&format!(
            "ip addr flush dev {link}; ip addr add 172.16.0.1/24 dev {link}; ip addr add 10.9.0.1/24 dev {link}"
        ));
        let links = banger_priv::links::Links::open().unwrap();
        let ifindex = links.by_name(&link).await.unwrap().unwrap().ifindex;
        links.keep_only(ifindex, [10, 9, 0, 1].into(), 24).await.unwrap();
        let left = run(&format!("ip -4 -oneline addr show dev {link}"));
        assert!(left.contains("10.9.0.1/24") && left.lines().count() == 1, "{left}");
        assert!(run("ip route get 172.16.0.2").contains(&guest), "the guest of the earlier network");
        links.keep_only(ifindex, [10, 9, 0, 1].into(), 24).await.unwrap();
    });
}
