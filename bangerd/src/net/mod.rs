//! What the daemon itself decides about the network; links, routes and rules are the helper's.

pub(crate) mod ask;
pub(crate) mod caller;
pub(crate) mod lease;
pub(crate) mod names;
pub(crate) mod subnet;
