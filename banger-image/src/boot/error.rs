//! Why a kernel was not imported.

use super::elf::ElfFault;
use super::{MAX_MODULE_NAME, MAX_MODULES, MAX_MODULES_BYTES};
use crate::{ImageError, PackageError};
use banger_policy::kernel::KernelError;
use std::io;

/// Failure of [`import`](super::kernel::import).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelImportError {
    /// The caller's [`crate::Progress::cancelled`] said so.
    #[error("cancelled")]
    Cancelled,
    /// The tar has no `vmlinuz`.
    #[error("no kernel was sent")]
    NoKernel,
    /// Neither bzImage nor ELF.
    #[error("the file is not a Linux kernel; give a distribution's vmlinuz or a vmlinux")]
    NotAKernel,
    /// Another architecture.
    #[error("the kernel is not for x86-64")]
    NotX86_64,
    /// The file ends early.
    #[error("the kernel is truncated; copy or install it again")]
    Truncated,
    /// A payload that we cannot decompress.
    #[error(
        "the kernel is compressed with {format}, which is not supported; use one compressed with zstd, gzip, xz or lz4"
    )]
    Compression {
        /// The format's name.
        format: &'static str,
    },
    /// A payload that does not decompress.
    #[error("the kernel is damaged; copy or install it again")]
    Corrupt(#[source] io::Error),
    /// No `Linux version` in it.
    #[error("the file has no Linux version string; give a distribution's vmlinuz or a vmlinux")]
    NoVersion,
    /// The module index, or what it says is missing.
    #[error(transparent)]
    Index(#[from] KernelError),
    /// A kernel without a module index that lacks drivers.
    #[error(
        "the kernel has no {} built in, and its modules were not given; \
         give the folder lib/modules/VERSION that belongs to it", .names.join(", ")
    )]
    NotBuiltIn {
        /// Drivers.
        names: Vec<String>,
    },
    /// Module files that the index names and that were not sent.
    #[error("the modules folder has no file for {}; reinstall the kernel's package", .paths.join(", "))]
    ModuleFiles {
        /// Paths relative to the modules folder.
        paths: Vec<String>,
    },
    /// More than a kernel of a distribution has.
    #[error(
        "what a guest needs to boot is spread over more than {MAX_MODULES} modules, or over names of more than \
         {MAX_MODULE_NAME} bytes; use a distribution's kernel"
    )]
    ManyModules,
    /// Each start of a VM copies them.
    #[error(
        "the modules that a guest needs to boot have more than {} MiB together; use a distribution's kernel, or strip \
         them: make modules_install INSTALL_MOD_STRIP=1", MAX_MODULES_BYTES >> 20
    )]
    LargeModules,
    /// A module that is none.
    #[error("{path} is not a kernel module for x86-64: {why}")]
    Module {
        /// Relative to the modules folder.
        path: String,
        /// Why.
        why: String,
    },
    /// A module of another kernel.
    #[error("{path} belongs to kernel {found}, not to {expected}; give the modules of the same kernel")]
    Vermagic {
        /// Relative to the modules folder.
        path: String,
        /// The module's kernel.
        found: String,
        /// The kernel's own.
        expected: String,
    },
    /// Packages of a distribution.
    #[error(transparent)]
    Package(PackageError),
    /// The tar itself.
    #[error("what was sent is not usable")]
    Archive(#[source] ImageError),
    /// Reading the spooled source.
    #[error("the spooled file cannot be read")]
    Read(#[source] io::Error),
    /// Writing to the staging folder; most often a full disk.
    #[error("cannot write to the staging folder")]
    Write(#[source] io::Error),
}

impl KernelImportError {
    pub(super) fn write(source: io::Error) -> Self {
        Self::Write(source)
    }
}

impl From<ImageError> for KernelImportError {
    fn from(error: ImageError) -> Self {
        if matches!(error, ImageError::Cancelled) { Self::Cancelled } else { Self::Archive(error) }
    }
}

impl From<PackageError> for KernelImportError {
    fn from(error: PackageError) -> Self {
        match error {
            PackageError::Inside { source: ImageError::Cancelled, .. } => Self::Cancelled,
            PackageError::Inside { source: ImageError::Read { source }, .. } => Self::Read(source),
            PackageError::Write(source) => Self::Write(source),
            error => Self::Package(error),
        }
    }
}

impl From<ElfFault> for KernelImportError {
    fn from(fault: ElfFault) -> Self {
        match fault {
            ElfFault::NotElf | ElfFault::NoSegments => Self::NotAKernel,
            ElfFault::NotX86_64 => Self::NotX86_64,
            ElfFault::Truncated => Self::Truncated,
        }
    }
}
