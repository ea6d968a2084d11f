//! What a VM holds in the kernel during one boot, as the daemon knows it: one shape for the cache,
//! the file and the VM's row. The helper has its own word for each part ([`TapIdentity`],
//! [`DiskIdentity`]).

use banger_proto::helper::{DiskIdentity, TapIdentity};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The handles of one boot. Empty fields are left out of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handles {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tap_device: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base_loop: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cow_loop: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dm_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dm_dev: Option<String>,
    /// The helper's number of this boot; without it no claim is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    /// The guest's address. The configuration may say another network by the time of the next look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_ip: Option<Ipv4Addr>,
}

impl Handles {
    /// Nothing is held.
    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn hold_tap(&mut self, tap: &TapIdentity, guest_ip: Ipv4Addr) {
        let TapIdentity { tap_device, generation } = tap.clone();
        self.guest_ip = Some(guest_ip);
        self.tap_device = Some(tap_device);
        self.generation = Some(generation);
    }

    pub(crate) fn hold_disk(&mut self, disk: &DiskIdentity) {
        let DiskIdentity { dm_name, dm_dev, base_loop, cow_loop, generation } = disk.clone();
        self.dm_name = Some(dm_name);
        self.dm_dev = Some(dm_dev);
        self.base_loop = Some(base_loop);
        self.cow_loop = Some(cow_loop);
        self.generation = Some(generation);
    }

    /// The claim to a tap, when everything of it is known.
    pub(crate) fn tap(&self) -> Option<TapIdentity> {
        Some(TapIdentity { tap_device: self.tap_device.clone()?, generation: self.generation? })
    }

    /// The claim to a disk, when everything of it is known.
    pub(crate) fn disk(&self) -> Option<DiskIdentity> {
        Some(DiskIdentity {
            dm_name: self.dm_name.clone()?,
            dm_dev: self.dm_dev.clone()?,
            base_loop: self.base_loop.clone()?,
            cow_loop: self.cow_loop.clone()?,
            generation: self.generation?,
        })
    }

    /// What the VM's row keeps of them: all but the pid, which means nothing without the process.
    pub(crate) fn mirror(&self) -> Self {
        Self { pid: None, ..self.clone() }
    }

    /// Fills what is missing from a later source, but only when both speak of the same boot.
    pub(crate) fn or(self, later: Self) -> Self {
        if self.is_zero() {
            return later;
        }
        if self.generation.is_some() && later.generation.is_some() && self.generation != later.generation {
            return self;
        }
        let Self { pid, tap_device, base_loop, cow_loop, dm_name, dm_dev, generation, guest_ip } = later;
        Self {
            pid: self.pid.or(pid),
            tap_device: self.tap_device.or(tap_device),
            base_loop: self.base_loop.or(base_loop),
            cow_loop: self.cow_loop.or(cow_loop),
            dm_name: self.dm_name.or(dm_name),
            dm_dev: self.dm_dev.or(dm_dev),
            generation: self.generation.or(generation),
            guest_ip: self.guest_ip.or(guest_ip),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn held() -> Handles {
        Handles {
            pid: Some(7),
            tap_device: Some("bgr-a".into()),
            base_loop: Some("/dev/loop0".into()),
            cow_loop: Some("/dev/loop1".into()),
            dm_name: Some("bgr-x".into()),
            dm_dev: Some("/dev/dm-0".into()),
            generation: Some(u64::MAX),
            guest_ip: Some(Ipv4Addr::new(172, 16, 0, 2)),
        }
    }

    #[test]
    fn empty_fields_are_left_out() {
        assert_eq!(serde_json::to_string(&Handles::default()).unwrap(), "{}");
        let pid = Handles { pid: Some(3), ..Handles::default() };
        assert_eq!(serde_json::to_string(&pid).unwrap(), r#"{"pid":3}"#);
        assert!(!pid.is_zero() && serde_json::from_str::<Handles>("{}").unwrap().is_zero());
    }

    #[test]
    fn a_later_source_fills_gaps_of_the_same_boot_only() {
        let gaps = Handles { tap_device: None, dm_dev: None, ..held() };
        assert_eq!(gaps.clone().or(held()), held());
        let other_boot = Handles { generation: Some(1), ..held() };
        assert_eq!(gaps.clone().or(other_boot), gaps);
        assert_eq!(Handles::default().or(held()), held());
    }
}
