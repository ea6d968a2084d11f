//! Taps.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use banger_policy::VmId;
use banger_policy::limits::MAX_VMS;
use banger_policy::reach::{Mode, Reach};
use banger_proto::helper::{HelperRequest, TapIdentity};

use super::{OWNER, release_all, untouched, whole_again, with_helper};
use crate::inventory::{Allow, Kind};
use crate::suite::list::Outcome;
use crate::suite::peer::helper::Helper;
use crate::suite::peer::place::{daemon_uid, instead_of_the_daemon};
use crate::suite::peer::vm;
use crate::suite::scenarios::packets::Guest;
use crate::suite::scene::Scene;

/// A VM with a tap, for one case.
struct Case {
    vm: VmId,
    index: u16,
    tap: TapIdentity,
    /// What release and the release of the tap are asked with.
    requests: [HelperRequest; 2],
}

impl Case {
    fn new(helper: &mut Helper, number: u8) -> Result<Self> {
        let (vm, index) = (vm(number)?, u16::from(number));
        let tap = helper.tap(vm, OWNER, index)?;
        let requests = [HelperRequest::ReleaseTap { vm, tap: tap.clone() }, HelperRequest::Release { vm }];
        Ok(Self { vm, index, tap, requests })
    }

    /// Both releases are answered so.
    fn refused(&self, helper: &mut Helper, expected: &str) -> Result<()> {
        self.requests.iter().try_for_each(|request| helper.expect(request, &[expected]).map(drop))
    }
}

pub(super) fn changed(scene: &mut Scene) -> Result<Outcome> {
    with_helper(scene, |scene, helper| {
        scene.step("a foreign link has the name that we would give", |scene| foreign_name(scene, helper))?;
        scene.step("the daemon's user clears PERSIST and root makes one of that name", |scene| {
            replaced(scene, helper)
        })?;
        scene.step("a foreign link has name and number", |scene| same_number(scene, helper))?;
        scene.step("alias edited", |scene| {
            altered(scene, helper, 44, "ip link set dev $T alias mine", "ip link set dev $T alias $M", "$T")
        })?;
        scene.step("alias of another generation", |scene| {
            let other = "ip link set dev $T alias $(echo $M | tr 0-9a-f 1-9a-f0)";
            altered(scene, helper, 45, other, "ip link set dev $T alias $M", "$T")
        })?;
        scene.step("alias taken away", |scene| {
            altered(scene, helper, 46, "ip link set dev $T alias ''", "ip link set dev $T alias $M", "$T")
        })?;
        scene.step("renamed", |scene| {
            let there = "ip link set dev $T down; ip link set dev $T name renamed0";
            altered(scene, helper, 47, there, "ip link set dev renamed0 name $T", "renamed0")
        })?;
        scene.step("renamed, and another link under its name", |scene| {
            let there = "ip link set dev $T down; ip link set dev $T name renamed0; ip link add $T type dummy";
            altered(scene, helper, 48, there, "ip link del $T; ip link set dev renamed0 name $T", "renamed0")
        })?;
        scene.step("moved to another namespace", |scene| moved(scene, helper))?;
        scene.step("the owner is another one", |scene| other_owner(scene, helper))?;
        scene.step("in use", |scene| in_use(scene, helper))
    })
}

fn foreign_name(scene: &mut Scene, helper: &mut Helper) -> Result<()> {
    let (vm, index) = (vm(41)?, 41);
    let name = vm.tap_name();
    for (make, remove) in [
        ("ip link add $T type dummy", "ip link del $T"),
        ("ip tuntap add dev $T mode tap user bangerd", "ip tuntap del dev $T mode tap"),
    ] {
        scene.root(&make.replace("$T", &name))?;
        untouched(scene, &format!("ip -d link show dev {name}"), |_| {
            helper.expect(&HelperRequest::AcquireTap { vm, owner: OWNER, address_index: index }, &["Busy"])?;
            helper.ok(&HelperRequest::Release { vm })
        })?;
        scene.root(&remove.replace("$T", &name))?;
    }
    whole_again(helper, vm, index)
}

fn replaced(scene: &mut Scene, helper: &mut Helper) -> Result<()> {
    let case = Case::new(helper, 42)?;
    let name = &case.tap.tap_device;
    // As the daemon's user, by which the tap may be unmade: it is its owner.
    let guest = Guest::open(daemon_uid()?, name, Ipv4Addr::LOCALHOST, [6; 6])?;
    guest.forget_after_close()?;
    drop(guest);
    scene.root(&format!("! ip link show dev {name} 2>/dev/null; ip tuntap add dev {name} mode tap user alice"))?;
    untouched(scene, &format!("ip -d link show dev {name}"), |_| {
        // What we made is gone, which is success; what is there now is somebody else's.
        case.refused(helper, "Ok")?;
        helper.expect(&HelperRequest::AcquireTap { vm: case.vm, owner: OWNER, address_index: 42 }, &["Busy"]).map(drop)
    })?;
    scene.root(&format!("ip tuntap del dev {name} mode tap"))?;
    whole_again(helper, case.vm, case.index)
}

fn same_number(scene: &mut Scene, helper: &mut Helper) -> Result<()> {
    let case = Case::new(helper, 43)?;
    let (name, mark) = (&case.tap.tap_device, case.vm.tap_alias(case.tap.generation));
    let number = scene.root(&format!("cat /sys/class/net/{name}/ifindex"))?;
    let number = number.trim();
    scene.root(&format!(
        "ip link del {name}; ip link add {name} index {number} type dummy; ip link set dev {name} alias {mark}"
    ))?;
    untouched(scene, &format!("ip -d link show dev {name}"), |_| case.refused(helper, "Quarantined"))?;
    scene.root(&format!("ip link del {name}"))?;
    whole_again(helper, case.vm, case.index)
}

/// `$T` the tap, `$M` its mark; `is` is the name under which it survives.
fn altered(scene: &mut Scene, helper: &mut Helper, number: u8, change: &str, undo: &str, is: &str) -> Result<()> {
    let case = Case::new(helper, number)?;
    let mark = case.vm.tap_alias(case.tap.generation);
    let filled = |line: &str| line.replace("$T", &case.tap.tap_device).replace("$M", &mark);
    scene.root(&filled(change))?;
    untouched(scene, &filled(&format!("ip -d link show dev {is}; ip -d link")), |_| {
        case.refused(helper, "Quarantined")?;
        // And every other operation on that VM.
        for request in [
            HelperRequest::AcquireTap { vm: case.vm, owner: OWNER, address_index: case.index },
            HelperRequest::SetNetwork { vm: case.vm, reach: Reach::of(Mode::Nat) },
            HelperRequest::SetNetwork { vm: case.vm, reach: Reach::default() },
            HelperRequest::DiscardDisk { vm: case.vm },
        ] {
            helper.expect(&request, &["Quarantined"])?;
        }
        Ok(())
    })?;
    scene.root(&filled(undo))?;
    whole_again(helper, case.vm, case.index)
}

fn moved(scene: &mut Scene, helper: &mut Helper) -> Result<()> {
    let case = Case::new(helper, 49)?;
    let name = &case.tap.tap_device;
    let mut other =
        std::process::Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().context("unshare")?;
    let result = (|| {
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let its = format!("/proc/{}/ns/net", other.id());
        scene.wait_until("it has a network of its own", std::time::Duration::from_secs(10), || {
            Ok((std::fs::read_link(&its)? == own).then(|| "the host's".to_owned()))
        })?;
        let there = format!("nsenter -t {} -n ip -d link show", other.id());
        scene.root(&format!("ip link set dev {name} netns {}", other.id()))?;
        ensure!(scene.root(&there)?.contains(name), "the tap was not moved");
        untouched(scene, &there, |_| case.refused(helper, "Ok"))
    })();
    other.kill().context("end the namespace's process")?;
    other.wait().context("wait for the namespace's process")?;
    result?;
    whole_again(helper, case.vm, case.index)
}

/// An owner is no mark: the link is still the one that we made, so it is taken away, with
/// everybody's right to it.
fn other_owner(scene: &mut Scene, helper: &mut Helper) -> Result<()> {
    let case = Case::new(helper, 50)?;
    let guest = Guest::open(daemon_uid()?, &case.tap.tap_device, Ipv4Addr::LOCALHOST, [6; 6])?;
    guest.give_to(OWNER)?;
    drop(guest);
    scene.root(&format!("ip tuntap show | grep {} | grep -w -e alice -e {OWNER}", case.tap.tap_device))?;
    case.refused(helper, "Ok")?;
    scene.root(&format!("! ip link show dev {} 2>/dev/null", case.tap.tap_device))?;
    whole_again(helper, case.vm, case.index)
}

fn in_use(scene: &mut Scene, helper: &mut Helper) -> Result<()> {
    let case = Case::new(helper, 51)?;
    let name = &case.tap.tap_device;
    let guest = Guest::open(daemon_uid()?, name, Ipv4Addr::LOCALHOST, [6; 6])?;
    untouched(scene, &format!("ip -d link show dev {name}"), |_| {
        helper.expect(&HelperRequest::ReleaseTap { vm: case.vm, tap: case.tap.clone() }, &["Busy"]).map(drop)
    })?;
    drop(guest);
    whole_again(helper, case.vm, case.index)
}

/// In a network large enough for it, the helper holds as many VMs as its limit says and not one
/// more.
pub(in super::super) fn quota(scene: &mut Scene) -> Result<Outcome> {
    scene.allow(Allow::altered(Kind::Link, "br-fc", "made again for another network and back, so with another number"));
    instead_of_the_daemon(scene, true, |scene| {
        scene.root("cp -a /etc/banger/banger.toml /srv/bench/kept.toml; sed -i '/^cidr/d; 1i cidr = 16' /etc/banger/banger.toml")?;
        let result = fill(scene);
        scene.root("cp -a /srv/bench/kept.toml /etc/banger/banger.toml; rm /srv/bench/kept.toml; ip link del br-fc; systemctl restart banger-priv.service")?;
        result
    })
}

fn fill(scene: &mut Scene) -> Result<()> {
    scene.root("ip link del br-fc; systemctl restart banger-priv.service")?;
    let mut helper = Helper::open()?;
    let filled = (|| {
        for number in 0..MAX_VMS {
            helper.tap(numbered(number)?, OWNER, u16::try_from(number)? + 1)?;
        }
        let one_more = numbered(MAX_VMS)?;
        let acquire = HelperRequest::AcquireTap { vm: one_more, owner: OWNER, address_index: 1000 };
        helper.expect(&acquire, &["Quota"])?;
        helper.expect(&HelperRequest::Identity { vm: one_more }, &["NotYours"])?;
        // Those who are in may go on; and who leaves makes room.
        helper.tap(numbered(0)?, OWNER, 1)?;
        helper.ok(&HelperRequest::Release { vm: numbered(0)? })?;
        helper.ok(&acquire)?;
        ensure!(helper.all()?.len() == usize::try_from(MAX_VMS)?, "not {MAX_VMS} are listed");
        Ok(())
    })();
    let left = release_all(&mut helper);
    scene.measured("VMs at the limit", MAX_VMS);
    filled.and(left)
}

fn numbered(number: u32) -> Result<VmId> {
    let mut bytes = [0xb7; 32];
    for (to, from) in bytes.iter_mut().zip(number.to_be_bytes().iter().rev()) {
        *to = *from;
    }
    Ok(VmId::from_bytes(bytes)?)
}
