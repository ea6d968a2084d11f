//! What banger decides, without doing it: names, ids, sizes, limits, who may do what, and the VM
//! life cycle. Pure: no I/O, no clock, no randomness. Every other crate turns its raw input into
//! these types once, at its edge; none of them can be built from an invalid value.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod access;
pub mod command;
pub mod decision;
pub mod distribution;
pub mod dns;
pub mod file_sync;
pub mod helper;
pub mod id;
pub mod image;
pub mod json;
pub mod kernel;
pub mod lifecycle;
pub mod limits;
pub mod name;
pub mod net;
pub mod network;
pub mod platform;
pub mod process;
pub mod publish;
pub mod quota;
pub mod rate;
pub mod reach;
pub mod refused;
pub mod room;
pub mod rootfs;
pub mod shares;
pub mod size;
pub mod snapshot;
pub mod store;
pub mod vm;
pub mod vmm;

pub use access::{Decision, Peer};
pub use id::{Digest, VmId};
pub use image::ImageConfig;
pub use name::{ImageName, KernelName, VmName};
pub use size::ByteSize;
