//! The daemon's side of everything that a guest says: control channel, console, SSH.
//!
//! Called by the VM's actor and by [`crate::stream`]. All of it comes from a machine that its user controls:
//! every read is bounded, and nothing decides about more than that one VM.

pub mod console;
pub mod control;
pub mod keys;
pub mod monitor;
pub mod quote;
pub mod ssh;
pub mod token;
