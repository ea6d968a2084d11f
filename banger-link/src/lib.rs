//! The daemon's end of a guest: control channel, monitor, connections to its agent.
//!
//! Called by the daemon's VM actors and by its byte streams. All of it comes from a machine that
//! its user controls: every read is bounded, and nothing decides about more than that one VM.
#![forbid(unsafe_code)]

mod clock;
pub mod control;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod keys;
pub mod link;
pub mod monitor;
pub mod token;
