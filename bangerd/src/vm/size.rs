//! How large a new VM is: flag, else configuration, else from the host, else built in.

use super::error::VmError;
use crate::config::VmDefaults;
use banger_policy::limits::{
    DEFAULT_MEMORY_MIB, DEFAULT_ROOT_BYTES, DEFAULT_VCPUS, DEFAULT_WORK_DISK_BYTES, MIN_MEMORY_MIB,
};
use banger_policy::vm::{CheckedSpec, SpecError};
use banger_proto::model::{CreateRequest, ImageRecord};

/// What the host has, as far as it could be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostSize {
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_mib: Option<u32>,
}

impl HostSize {
    pub(crate) fn of_this_host() -> Self {
        let cpus = std::thread::available_parallelism().ok().and_then(|cpus| u32::try_from(cpus.get()).ok());
        let info = rustix::system::sysinfo();
        let bytes = u64::from(info.mem_unit).saturating_mul(info.totalram);
        Self { cpus, memory_mib: u32::try_from(bytes >> 20).ok() }
    }

    /// A quarter of the CPUs, at most 4.
    fn vcpus(self) -> Option<u32> {
        self.cpus.map(|cpus| (cpus / 4).min(4)).filter(|cpus| *cpus > 0)
    }

    /// An eighth of the memory, at most 8 GiB.
    fn vm_memory_mib(self) -> Option<u32> {
        self.memory_mib.map(|mib| (mib / 8).min(8192)).filter(|mib| *mib >= MIN_MEMORY_MIB)
    }
}

/// `image` is the size of the image's file system, bytes: a root disk that nobody asked for is at
/// least as large.
///
/// # Errors
/// [`SpecError`] when what was asked for, or configured, is out of bounds.
pub(crate) fn resolve(
    request: &CreateRequest,
    config: &VmDefaults,
    host: HostSize,
    image: u64,
) -> Result<CheckedSpec, SpecError> {
    let root = config.system_overlay_size.unwrap_or(DEFAULT_ROOT_BYTES).max(image);
    CheckedSpec::new(
        request.vcpu_count.or(config.vcpu).or(host.vcpus()).unwrap_or(DEFAULT_VCPUS),
        request.memory_mib.or(config.memory_mib).or(host.vm_memory_mib()).unwrap_or(DEFAULT_MEMORY_MIB),
        request.system_overlay_size_bytes.unwrap_or(root),
        request.work_disk_size_bytes.or(config.disk_size).unwrap_or(DEFAULT_WORK_DISK_BYTES),
    )
}

/// # Errors
/// When the root disk is smaller than the image's file system, which cannot be mounted then.
pub(crate) fn fits(image: &ImageRecord, spec: CheckedSpec) -> Result<(), VmError> {
    if spec.root_bytes() >= image.build_size {
        return Ok(());
    }
    Err(VmError::RootTooSmall { image: image.name.to_string(), root: spec.root_bytes(), least: image.build_size })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn flag_then_configuration_then_host_then_built_in() {
        let host = HostSize { cpus: Some(12), memory_mib: Some(32 * 1024) };
        let config = VmDefaults { vcpu: Some(1), memory_mib: Some(512), ..VmDefaults::default() };
        let flag = CreateRequest { vcpu_count: Some(7), ..CreateRequest::default() };
        let none = CreateRequest::default();
        let of = |request, config: &VmDefaults, host| {
            let spec = resolve(request, config, host, 1 << 30).unwrap();
            (spec.vcpus(), spec.memory_mib())
        };
        assert_eq!(of(&flag, &config, host), (7, 512));
        assert_eq!(of(&none, &config, host), (1, 512));
        assert_eq!(of(&none, &VmDefaults::default(), host), (3, 4096));
        assert_eq!(of(&none, &VmDefaults::default(), HostSize::default()), (2, 2048));
        let huge = HostSize { cpus: Some(256), memory_mib: Some(1 << 20) };
        assert_eq!(of(&none, &VmDefaults::default(), huge), (4, 8192));
        let root = |config: &VmDefaults, image| resolve(&none, config, host, image).unwrap().root_bytes();
        assert_eq!(root(&VmDefaults::default(), 1 << 30), DEFAULT_ROOT_BYTES);
        assert_eq!(root(&VmDefaults::default(), 9 << 30), 9 << 30, "the image is larger than the default");
        assert_eq!(root(&VmDefaults { system_overlay_size: Some(2 << 30), ..config }, 1 << 30), 2 << 30);
        let small = HostSize { cpus: Some(2), memory_mib: Some(900) };
        assert_eq!(of(&none, &VmDefaults::default(), small), (2, 2048));
    }
}
