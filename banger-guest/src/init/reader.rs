//! A guest that only shows a work disk: of a VM that does not run, for its user who wants a file or
//! a log.
//!
//! Called by `init` in place of the image's boot. The initramfs stays the root, with nothing in it
//! but this program, so what is on the disk is read by code of ours alone, in a VM of its own: no
//! program of the image runs, and no process of the host parses what a guest has written.

use std::convert::Infallible;
use std::path::Path;

use banger_proto::guest::GuestConfig;

use super::error::Error;
use super::{mounts, pid1, start_agent};
use crate::init_kind::InitKind;

pub(super) fn run(config: &GuestConfig) -> Result<Infallible, Error> {
    mounts::runtime_file_systems();
    if let Some(device) = &config.work_device {
        mounts::work_disk_to_read(Path::new(device))?;
    }
    pid1::run(|| start_agent(config, InitKind::Own))
}
