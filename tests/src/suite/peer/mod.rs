//! The helper's peer, played by the bench: programs of this crate that run as any user in any
//! cgroup and speak the helper's protocol, honestly or not.
//!
//! Used by the suites that are about the helper alone. They stop the daemon and take its [`place`];
//! [`roles`] is what the started program then does.

pub(super) mod connection;
pub(super) mod helper;
pub(super) mod place;
pub(super) mod roles;

use banger_policy::VmId;

/// What a role prints, and its caller reads.
pub(super) type Json = serde_json::Value;

/// A VM that exists for the helper alone.
pub(super) fn vm(number: u8) -> anyhow::Result<VmId> {
    let mut bytes = [0xb7; 32];
    // The first bytes make the names of tap and disk.
    bytes[0] = number;
    Ok(VmId::from_bytes(bytes)?)
}
