//! The byte streams beside the calls (see [`banger_proto::stream`]): consoles and uploads, and
//! connections to guests, which are handed over.
//!
//! Called by the listener with the connection after its ticket. Each function serves one stream to
//! its end and tells the client what went wrong as a `Failed` frame; what it returns is for the
//! log. A client that goes away ends what it began, and nothing is left of it.

mod client;
mod handover;
mod logs;
mod upload;

pub use handover::hand_over;
pub use logs::logs;
pub use upload::{UploadError, upload};

#[cfg(test)]
mod tests;
