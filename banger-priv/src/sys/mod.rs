//! The kernel's interfaces that need `unsafe`: ioctls, inherited descriptors, the environment, the
//! call by number of `--self-check-call`. Nothing here
//! decides anything; every function takes numbers and handles that were checked before.
#![expect(unsafe_code, reason = "ioctl and process start-up have no safe form")]

pub mod call;
pub mod dm;
pub mod loopdev;
pub mod start;
pub mod tun;
