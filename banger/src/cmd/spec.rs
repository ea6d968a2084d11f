//! From flags to a request: checked before anybody is asked, with the sentences that the daemon
//! would use.

use crate::cli::{Net, Set, Spec, Switch};
use crate::error::explained;
use crate::output;
use anyhow::Context as _;
use banger_policy::limits::{
    DEFAULT_MEMORY_MIB, DEFAULT_ROOT_BYTES, DEFAULT_VCPUS, DEFAULT_WORK_DISK_BYTES, MIN_ROOT_BYTES, ROOT_STEP_BYTES,
};
use banger_policy::network::{NetworkError, NetworkRequest, VmNetwork};
use banger_policy::reach::Mode;
use banger_policy::vm::CheckedSpec;
use banger_policy::{ByteSize, ImageName, KernelName, VmName};
use banger_proto::model::{CreateRequest, SetRequest};
use std::fmt::Display;
use std::str::FromStr;

/// # Errors
/// The first flag that is not possible.
pub(super) fn request(spec: &Spec, no_start: bool) -> anyhow::Result<CreateRequest> {
    let memory_mib = spec.memory.as_deref().map(memory).transpose()?;
    let work_disk = size("--disk-size", spec.disk_size.as_deref())?;
    let root = root_size(spec.root_size.as_deref())?;
    possible(spec.vcpu, memory_mib, root, work_disk)?;
    Ok(CreateRequest {
        name: checked::<VmName>(spec.name.as_deref())?,
        image_name: checked::<ImageName>(spec.image.as_deref())?,
        kernel_name: checked::<KernelName>(spec.kernel.as_deref())?,
        vcpu_count: spec.vcpu,
        memory_mib,
        system_overlay_size_bytes: root,
        work_disk_size_bytes: work_disk,
        restart: spec.restart,
        no_start,
        network: network(&spec.net, spec.nat.then_some(Mode::Nat))?,
        publish: super::publish::request(&spec.publish, spec.public, spec.proxy_protocol)?,
    })
}

/// # Errors
/// The first flag that is not possible for any VM; what this one has is the daemon's to compare.
pub(super) fn change(set: &Set) -> anyhow::Result<SetRequest> {
    let memory_mib = set.memory.as_deref().map(memory).transpose()?;
    let work_disk = size("--disk-size", set.disk_size.as_deref())?;
    let root = root_size(set.root_size.as_deref())?;
    possible(set.vcpu, memory_mib, root, work_disk)?;
    Ok(SetRequest {
        vcpu_count: set.vcpu,
        memory_mib,
        root_size_bytes: root,
        work_disk_size_bytes: work_disk,
        restart: set.restart,
        network: network(&set.net, set.nat.map(|switch| if switch == Switch::On { Mode::Nat } else { Mode::None }))?,
    })
}

/// What the flags say of a network; `nat` is the mode of the short form.
fn network(net: &Net, nat: Option<Mode>) -> anyhow::Result<NetworkRequest> {
    let request = NetworkRequest {
        mode: net.net.or(nat),
        allow: (!net.allow.is_empty()).then(|| net.allow.clone()),
        private: net.network.clone(),
    };
    // A list that the VM has already is the daemon's to know.
    match VmNetwork::default().changed(&request) {
        Ok(_) | Err(NetworkError::NoList) => Ok(request),
        Err(error) => Err(error.into()),
    }
}

/// Numbers that a VM may have. What was not given is possible in any case; the daemon decides on
/// it.
fn possible(vcpu: Option<u32>, mib: Option<u32>, root: Option<u64>, work_disk: Option<u64>) -> anyhow::Result<()> {
    CheckedSpec::new(
        vcpu.unwrap_or(DEFAULT_VCPUS),
        mib.unwrap_or(DEFAULT_MEMORY_MIB),
        root.unwrap_or(DEFAULT_ROOT_BYTES),
        work_disk.unwrap_or(DEFAULT_WORK_DISK_BYTES),
    )?;
    Ok(())
}

/// The text, when it is one of these.
///
/// # Errors
/// The type's own sentence.
pub(super) fn checked<T>(text: Option<&str>) -> anyhow::Result<Option<String>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static> + Display,
{
    Ok(text.map(T::from_str).transpose()?.map(|value| value.to_string()))
}

/// A size in bytes.
///
/// # Errors
/// With the flag's name and the input.
pub(super) fn size(flag: &str, text: Option<&str>) -> anyhow::Result<Option<u64>> {
    let size = text.map(ByteSize::from_str).transpose().with_context(|| flag.to_owned())?;
    Ok(size.map(ByteSize::bytes))
}

/// The size of a root disk, in whole steps; what was rounded is said.
fn root_size(text: Option<&str>) -> anyhow::Result<Option<u64>> {
    let Some(asked) = size("--root-size", text)? else { return Ok(None) };
    let bytes = if asked < MIN_ROOT_BYTES { asked } else { asked.next_multiple_of(ROOT_STEP_BYTES) };
    if bytes != asked {
        let (step, size) = (ByteSize::from_bytes(ROOT_STEP_BYTES)?, ByteSize::from_bytes(bytes)?);
        output::remark(&format!("--root-size: a root disk is a multiple of {step}, so it becomes {size}"));
    }
    Ok(Some(bytes))
}

/// Memory is counted in MiB: what is none of it would be lost without a word.
fn memory(text: &str) -> anyhow::Result<u32> {
    let size: ByteSize = text.parse().context("--memory")?;
    if ByteSize::from_bytes(size.mib() << 20) != Ok(size) {
        return Err(explained(format!("--memory: {text:?} is not a whole number of MiB"), "such as: --memory 512M"));
    }
    u32::try_from(size.mib()).context("--memory")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn memory_is_whole_mebibytes() {
        assert_eq!(memory("2G").unwrap(), 2048);
        assert_eq!(memory("512").unwrap(), 512);
        for bad in ["1000B", "1K", "0", "x"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
