//! The life that a VM has for the helper.

use std::fs;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result, bail, ensure};
use banger_policy::reach::{Mode, Reach};
use banger_policy::{Digest, VmId};
use banger_proto::helper::{DiskIdentity, HelperRequest, HelperResponse, TapIdentity};

use super::wait_for;
use crate::suite::peer::helper::{Helper, Told, word};
use crate::suite::peer::place::Who;
use crate::suite::peer::vm;

const OWNER: u32 = 1001;
/// Outside of what the daemon gives out in these suites.
const ADDRESS: u16 = 200;
const ROOT_BYTES: u64 = banger_policy::limits::MIN_ROOT_BYTES;

/// One thing that happens in a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    CreateDisk,
    GrowDisk,
    AttachDisk,
    AcquireTap,
    EnableNat,
    BindProcess,
    /// The VM's process ends.
    Death,
    DisableNat,
    DetachDisk,
    ReleaseTap,
    Release,
    DiscardDisk,
}

use Event::{
    AcquireTap, AttachDisk, BindProcess, CreateDisk, Death, DetachDisk, DisableNat, DiscardDisk, EnableNat, GrowDisk,
    Release, ReleaseTap,
};

pub(super) const STEP_BY_STEP: &[Event] = &[
    CreateDisk,
    GrowDisk,
    AttachDisk,
    AcquireTap,
    EnableNat,
    BindProcess,
    Death,
    DisableNat,
    DetachDisk,
    ReleaseTap,
    Release,
    DiscardDisk,
];
pub(super) const BY_RELEASE: &[Event] =
    &[CreateDisk, AttachDisk, AcquireTap, EnableNat, BindProcess, Death, Release, DiscardDisk];

/// One VM's life for the helper, and what it was told in it.
pub(super) struct Life {
    client: Helper,
    vm: VmId,
    image: Digest,
    process: Option<Child>,
    tap: Option<TapIdentity>,
    disk: Option<DiskIdentity>,
}

impl Life {
    pub(super) fn new(image: Digest) -> Result<Self> {
        Ok(Self { client: Helper::open()?, vm: vm(0xc1)?, image, process: None, tap: None, disk: None })
    }

    pub(super) fn happen(&mut self, event: Event) -> Result<Told> {
        let vm = self.vm;
        let request = match event {
            CreateDisk => HelperRequest::CreateDisk { vm, owner: OWNER, image: self.image, root_bytes: ROOT_BYTES },
            GrowDisk => HelperRequest::GrowDisk { vm, owner: OWNER, root_bytes: 2 * ROOT_BYTES },
            AttachDisk => HelperRequest::AttachDisk { vm, owner: OWNER },
            AcquireTap => HelperRequest::AcquireTap { vm, owner: OWNER, address_index: ADDRESS },
            EnableNat => HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) },
            BindProcess => {
                let process = Who::of_vm(OWNER, vm).start("sleep 600")?;
                let pid = process.id();
                self.process = Some(process);
                // It is in the VM's cgroup when its name has changed to what it runs.
                wait_for(|| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n"))?;
                HelperRequest::BindProcess { vm, pid }
            }
            Death => {
                if let Some(mut process) = self.process.take() {
                    process.kill().context("end the VM's process")?;
                    process.wait().context("end the VM's process")?;
                }
                return Ok(Told::Reply(Ok(HelperResponse::Release(Ok(())))));
            }
            DisableNat => HelperRequest::SetNetwork { vm, reach: Reach::default() },
            DetachDisk => {
                let disk = self.disk.clone().context("no disk was attached")?;
                HelperRequest::DetachDisk { vm, disk }
            }
            ReleaseTap => HelperRequest::ReleaseTap { vm, tap: self.tap.clone().context("no tap was acquired")? },
            Release => HelperRequest::Release { vm },
            DiscardDisk => HelperRequest::DiscardDisk { vm },
        };
        let told = self.client.told(&request)?;
        match &told {
            Told::Reply(Ok(HelperResponse::AcquireTap(Ok(tap)))) => self.tap = Some(tap.clone()),
            Told::Reply(Ok(HelperResponse::AttachDisk(Ok(disk)))) => self.disk = Some(disk.clone()),
            _ => {}
        }
        Ok(told)
    }

    /// A kill in the middle of a growth leaves a disk that can be attached.
    pub(super) fn attach_what_there_is(&mut self) -> Result<()> {
        let told = match self.happen(AttachDisk)? {
            Told::Closed(_) => self.happen(AttachDisk)?,
            told => told,
        };
        let attached = matches!(&told, Told::Reply(Ok(HelperResponse::AttachDisk(Ok(_)))));
        ensure!(attached, "after a growth that was killed, attach was answered with {told:?}");
        Ok(())
    }

    /// What the daemon does with a VM of which nothing is known: release, discard; and then nothing
    /// is held.
    pub(super) fn end(&mut self) -> Result<()> {
        for request in [HelperRequest::Release { vm: self.vm }, HelperRequest::DiscardDisk { vm: self.vm }] {
            // The connection of the helper that was killed is found closed first.
            let told = match self.client.told(&request)? {
                Told::Closed(_) => self.client.told(&request)?,
                told => told,
            };
            let Told::Reply(Ok(response)) = told else { bail!("{request:?} was answered with {told:?}") };
            ensure!(word(&response)? == "Ok", "{request:?} was answered with {response:?}");
        }
        let held = self.client.all()?;
        ensure!(held.is_empty(), "still held: {held:?}");
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        let cgroup = Who::of_vm(OWNER, self.vm).cgroup;
        let _ = wait_for(|| fs::remove_dir(&cgroup).is_ok() || !Path::new(&cgroup).exists());
        let _ = Path::new(&cgroup).parent().map(fs::remove_dir);
    }
}
