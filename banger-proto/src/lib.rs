//! The wire of banger: the model that both services share, the transport under tarpc, and the two
//! services. Types only carry what was said; the checks are `banger-policy`'s.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "commands")]
pub mod command;
#[cfg(feature = "commands")]
mod frame;
pub mod guest;
#[cfg(feature = "commands")]
pub mod inside;
#[cfg(feature = "commands")]
pub mod session;
pub mod signal;

#[cfg(feature = "rpc")]
pub mod daemon;
#[cfg(feature = "rpc")]
mod held;
#[cfg(feature = "rpc")]
pub mod helper;
#[cfg(feature = "rpc")]
pub mod metrics;
#[cfg(feature = "rpc")]
pub mod model;
#[cfg(feature = "rpc")]
pub mod stream;
#[cfg(feature = "rpc")]
pub mod time;
#[cfg(feature = "rpc")]
pub mod transport;
#[cfg(feature = "commands")]
pub mod wire;
