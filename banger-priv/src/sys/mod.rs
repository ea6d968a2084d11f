//! The kernel's interfaces that need `unsafe`: ioctls, inherited descriptors, the environment. Nothing here
//! decides anything; every function takes numbers and handles that were checked before.
#![expect(unsafe_code, reason = "ioctl and process start-up have no safe form")]

pub mod dm;
pub mod loopdev;
pub mod start;
pub mod tun;
