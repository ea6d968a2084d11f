//! Kernel objects and files that somebody else has made, changed or taken away: refused with a
//! code, never touched, and released once they are put right.

mod bases;
mod disks;
mod taps;

pub(super) use taps::quota;

use anyhow::{Context, Result, ensure};
use banger_policy::{Digest, VmId};
use banger_proto::helper::HelperRequest;

use crate::suite::list::{Outcome, Scenario};
use crate::suite::peer::helper::Helper;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

/// Who the VMs are said to be of.
pub(super) const OWNER: u32 = 1001;
/// The smallest COW file.
pub(super) const MIN_ROOT: u64 = banger_policy::limits::MIN_ROOT_BYTES;
const IMAGES: &str = "/var/lib/banger/images";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("taps-changed", taps::changed),
        Scenario::new("bases", bases::bases),
        Scenario::new("disks-changed", disks::changed),
    ]
}

/// A base image that no VM boots from.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) digest: Digest,
    folder: String,
    path: String,
}

impl Image {
    /// As the daemon would publish it.
    pub(super) fn new(scene: &Scene) -> Result<Self> {
        let image = Self::named(0x1e)?;
        image.make(scene, "truncate -s 1G $F; chown bangerd:root $F; chmod 0440 $F")?;
        Ok(image)
    }

    /// Not made yet.
    fn named(byte: u8) -> Result<Self> {
        let digest = Digest::from_bytes([byte; 32])?;
        let folder = format!("{IMAGES}/{digest}");
        Ok(Self { digest, path: format!("{folder}/rootfs.ext4"), folder })
    }

    /// Its folder, and in it what `line` makes as `$F`.
    fn make(&self, scene: &Scene, line: &str) -> Result<()> {
        let (folder, line) = (&self.folder, line.replace("$F", &self.path).replace("$D", &self.folder));
        scene.root(&format!("install -d -o bangerd -g root -m 2710 {folder}; {line}")).map(drop)
    }

    pub(super) fn remove(&self, scene: &Scene) -> Result<()> {
        scene.root(&format!("rm -rf {}", self.folder)).map(drop)
    }
}

/// Runs with a client in the daemon's place; afterwards nothing may be held.
pub(super) fn with_helper(
    scene: &mut Scene,
    work: impl FnOnce(&mut Scene, &mut Helper) -> Result<()>,
) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        let mut helper = Helper::open()?;
        let result = work(scene, &mut helper);
        let left = release_all(&mut helper);
        result.and(left)
    })
}

fn release_all(helper: &mut Helper) -> Result<()> {
    for holding in helper.all()? {
        for request in [HelperRequest::Release { vm: holding.vm }, HelperRequest::DiscardDisk { vm: holding.vm }] {
            helper.ok(&request).context("give everything back")?;
        }
    }
    Ok(())
}

/// A shell line that must print the same before and after `work`: the object of somebody else.
fn untouched(scene: &mut Scene, look: &str, work: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    // udev gives a new link another address, in its own time.
    scene.root("udevadm settle")?;
    let before = scene.root(look)?;
    work(scene)?;
    let after = scene.root(look)?;
    ensure!(before == after, "`{look}` said\n{before}\nand says\n{after}");
    Ok(())
}

/// Released, and a new one can be had: whatever was wrong has not stayed.
fn whole_again(helper: &mut Helper, vm: VmId, index: u16) -> Result<()> {
    helper.ok(&HelperRequest::Release { vm })?;
    helper.tap(vm, OWNER, index)?;
    helper.ok(&HelperRequest::Release { vm })
}
