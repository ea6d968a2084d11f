//! dm devices, loops and COW files.

use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use banger_policy::VmId;
use banger_proto::helper::{DiskIdentity, HelperRequest};

use super::{Image, MIN_ROOT, OWNER, untouched, with_helper};
use crate::suite::list::Outcome;
use crate::suite::peer::helper::Helper;
use crate::suite::peer::vm;
use crate::suite::scene::Scene;

/// A VM with a COW file, for one case.
struct Case {
    vm: VmId,
    attach: HelperRequest,
}

impl Case {
    fn new(helper: &mut Helper, image: &Image, number: u8) -> Result<Self> {
        let vm = vm(number)?;
        helper.ok(&HelperRequest::CreateDisk { vm, owner: OWNER, image: image.digest, root_bytes: MIN_ROOT })?;
        Ok(Self { vm, attach: HelperRequest::AttachDisk { vm, owner: OWNER } })
    }

    fn attached(&self, helper: &mut Helper) -> Result<DiskIdentity> {
        helper.disk(self.vm, OWNER)
    }

    /// Both ways to give it back are answered so.
    fn refused(&self, helper: &mut Helper, disk: &DiskIdentity, expected: &str) -> Result<()> {
        helper.expect(&HelperRequest::DetachDisk { vm: self.vm, disk: disk.clone() }, &[expected])?;
        helper.expect(&HelperRequest::Release { vm: self.vm }, &[expected]).map(drop)
    }

    fn cow(&self) -> String {
        format!("/var/lib/banger-priv/cow/{}", self.vm)
    }

    /// Nothing is wrong any more: it can be had, if it was not, and given back whole.
    fn whole_again(&self, helper: &mut Helper) -> Result<()> {
        helper.ok(&self.attach)?;
        self.given_back(helper)
    }

    fn given_back(&self, helper: &mut Helper) -> Result<()> {
        helper.ok(&HelperRequest::Release { vm: self.vm })?;
        helper.ok(&HelperRequest::DiscardDisk { vm: self.vm })
    }
}

pub(super) fn changed(scene: &mut Scene) -> Result<Outcome> {
    with_helper(scene, |scene, helper| {
        let image = Image::new(scene)?;
        let result = (|| {
            scene.step("a foreign dm device has the name that we would give", |scene| {
                foreign_name(scene, helper, &image)
            })?;
            scene.step("a foreign dm device has our UUID", |scene| foreign_uuid(scene, helper, &image))?;
            scene.step("dm device renamed", |scene| renamed(scene, helper, &image))?;
            scene.step("dm device with another table", |scene| other_table(scene, helper, &image))?;
            scene.step("a loop device taken over", |scene| loop_taken(scene, helper, &image))?;
            scene.step("device open", |scene| open(scene, helper, &image))?;
            scene.step("dmsetup remove_all", |scene| remove_all(scene, helper, &image))?;
            scene.step("COW file cut, exchanged, linked, gone", |scene| cow_changed(scene, helper, &image))?;
            scene.step("COW file with a forged header", |scene| forged(scene, helper, &image))?;
            scene.step("no loop device is left", |scene| {
                let loops = scene.root("losetup --list --noheadings --output BACK-FILE")?;
                ensure!(!loops.contains("banger"), "left:\n{loops}");
                Ok(())
            })
        })();
        image.remove(scene)?;
        result
    })
}

fn foreign_name(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 70)?;
    let name = case.vm.dm_name();
    scene.root(&format!("dmsetup create {name} --table '0 8 error'"))?;
    untouched(scene, &format!("dmsetup info {name}; dmsetup table {name}"), |_| {
        helper.expect(&case.attach, &["Busy"])?;
        helper.ok(&HelperRequest::Release { vm: case.vm })
    })?;
    scene.root(&format!("dmsetup remove {name}"))?;
    case.whole_again(helper)
}

/// Possible only when the generation is known, which it is once a tap is there.
fn foreign_uuid(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 71)?;
    let tap = helper.tap(case.vm, OWNER, 71)?;
    let uuid = case.vm.dm_uuid(tap.generation);
    scene.root(&format!("dmsetup create foreign0 --uuid {uuid} --table '0 8 error'"))?;
    untouched(scene, "dmsetup info foreign0; dmsetup table foreign0", |_| {
        helper.expect(&case.attach, &["Busy", "Quarantined"]).map(drop)
    })?;
    scene.root("dmsetup remove foreign0")?;
    helper.ok(&HelperRequest::Release { vm: case.vm })?;
    case.whole_again(helper)
}

fn renamed(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 72)?;
    let disk = case.attached(helper)?;
    scene.root(&format!("dmsetup rename {} foreign0", disk.dm_name))?;
    untouched(scene, "dmsetup info foreign0; dmsetup table foreign0", |_| {
        case.refused(helper, &disk, "Quarantined")?;
        helper.expect(&HelperRequest::DiscardDisk { vm: case.vm }, &["Quarantined"]).map(drop)
    })?;
    scene.root(&format!("dmsetup rename foreign0 {}", disk.dm_name))?;
    case.given_back(helper)
}

fn other_table(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 73)?;
    let disk = case.attached(helper)?;
    let name = &disk.dm_name;
    scene
        .root(&format!("echo '0 16384 linear {} 0' | dmsetup load {name} && dmsetup resume {name}", disk.base_loop))?;
    untouched(scene, &format!("dmsetup info {name}; dmsetup table {name}"), |_| {
        case.refused(helper, &disk, "Quarantined")
    })?;
    scene.root(&format!("dmsetup remove {name}"))?;
    case.given_back(helper)
}

/// Removed behind our back, and its loop numbers used by somebody else: their loops are not ours to
/// detach.
fn loop_taken(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 74)?;
    let disk = case.attached(helper)?;
    scene.root(&format!(
        "dmsetup remove {}; udevadm settle; truncate -s 1M /srv/bench/foreign.img; \
         losetup {} /srv/bench/foreign.img; losetup {} /srv/bench/foreign.img",
        disk.dm_name, disk.base_loop, disk.cow_loop
    ))?;
    untouched(scene, "losetup --list", |_| case.refused(helper, &disk, "Ok"))?;
    scene.root(&format!("losetup -d {} {}; rm /srv/bench/foreign.img", disk.base_loop, disk.cow_loop))?;
    case.given_back(helper)
}

/// Holds a device open until it is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 75)?;
    let disk = case.attached(helper)?;
    let file = std::fs::File::open(&disk.dm_dev).with_context(|| format!("open {}", disk.dm_dev))?;
    let holder = Holder(Command::new("sleep").arg("infinity").stdin(file).spawn().context("hold the device open")?);
    untouched(scene, &format!("dmsetup table {}", disk.dm_name), |_| {
        helper.expect(&HelperRequest::DetachDisk { vm: case.vm, disk: disk.clone() }, &["Busy"]).map(drop)
    })?;
    drop(holder);
    case.given_back(helper)
}

fn remove_all(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 76)?;
    let disk = case.attached(helper)?;
    scene.root("dmsetup remove_all; udevadm settle")?;
    ensure!(!scene.root("dmsetup ls")?.contains(&disk.dm_name), "the device is still there");
    untouched(scene, &format!("stat -c '%s %i' {}", case.cow()), |_| case.refused(helper, &disk, "Ok"))?;
    case.given_back(helper)
}

fn cow_changed(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 77)?;
    for (change, undo) in [
        ("truncate -s -4096 $C", "truncate -s +4096 $C"),
        ("truncate -s +4096 $C", "truncate -s -4096 $C"),
        ("chmod 0640 $C", "chmod 0600 $C"),
        ("chown alice $C", "chown root $C"),
        ("ln $C $C.linked", "rm $C.linked"),
        ("mv $C $C.kept; ln -s $C.kept $C", "rm $C; mv $C.kept $C"),
        ("mv $C $C.kept; mkfifo -m 0600 $C", "rm $C; mv $C.kept $C"),
        ("mv $C $C.kept", "mv $C.kept $C"),
    ] {
        let filled = |line: &str| line.replace("$C", &case.cow());
        scene.root(&filled(change))?;
        untouched(scene, &filled("ls -l --time-style=full-iso $C* 2>&1; true"), |_| {
            helper.expect(&case.attach, &["Quarantined"]).context(change.to_owned()).map(drop)
        })?;
        scene.root(&filled(undo))?;
    }
    case.whole_again(helper)
}

/// The header that the kernel reads: magic, valid, version, chunk size
/// (drivers/md/dm-snap-persistent.c). Only root can write it here; even so it is refused or
/// overridden, and nothing is left of the attempt.
fn forged(scene: &mut Scene, helper: &mut Helper, image: &Image) -> Result<()> {
    let case = Case::new(helper, image, 78)?;
    let mut answers = Vec::new();
    for chunk in [0_u32, 7, 1 << 31] {
        let escaped: String = chunk.to_le_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
        scene.root(&format!(
            "printf 'SnAp\\001\\000\\000\\000\\001\\000\\000\\000{escaped}' | dd of={} conv=notrunc status=none",
            case.cow()
        ))?;
        let said = helper.word(&case.attach)?;
        ensure!(said != "Ok", "a header with chunks of {chunk} sectors was taken");
        answers.push(format!("{chunk}: {said}"));
        ensure!(!scene.root("dmsetup ls")?.contains(&case.vm.dm_name()), "a device is left");
    }
    scene.measured("answers to forged chunk sizes", answers.join(", "));
    scene.root(&format!("dd if=/dev/zero of={} bs=4096 count=1 conv=notrunc status=none", case.cow()))?;
    case.whole_again(helper)
}
