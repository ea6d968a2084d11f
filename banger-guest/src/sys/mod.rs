//! Everything that needs `unsafe` or a raw kernel interface, and nothing else.
//!
//! Called by `init` and `agent`. Every function here has a safe signature; each block names the
//! invariant that makes it sound.
#![expect(unsafe_code, reason = "the one place of this crate for system calls without a safe wrapper")]

pub(crate) mod ext4;
pub(crate) mod ifconf;
pub(crate) mod module;
pub(crate) mod pass;
pub(crate) mod pty;
pub(crate) mod random;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod stream;
pub(crate) mod unread;
pub(crate) mod vsock;
