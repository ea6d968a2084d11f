//! The byte streams beside the calls (see [`banger_proto::stream`]): commands, raw SSH, consoles, uploads.
//!
//! Called by the listener with the connection after its ticket. Each function serves one stream to its end
//! and tells the client what went wrong as a `Failed` frame; what it returns is for the log. A client that
//! goes away ends what it began, and nothing is left of it.

mod client;
mod exec;
mod logs;
mod proxy;
mod upload;

pub use exec::{exec, requests};
pub use logs::logs;
pub use proxy::ssh_proxy;
pub use upload::{UploadError, upload};

#[cfg(test)]
mod tests;
