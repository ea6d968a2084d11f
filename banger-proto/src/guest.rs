//! What the host and the guest say to each other: the boot configuration in the initramfs and the
//! lines of the control channel.
//!
//! Written by `bangerd` at each start of a VM, read by `banger-guest`. Both sides are JSON, because a
//! guest image may carry an agent older than the daemon: unknown fields are ignored on both sides.
//! Nothing that a guest sends is trusted for more than that VM's own state.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Path of [`GuestConfig`] in the initramfs.
pub const CONFIG_PATH: &str = "/config.json";
/// Folder of the kernel modules in the initramfs: `NN-name.ko`, not compressed, loaded in order of name.
pub const MODULES_DIR: &str = "/modules";
/// The vsock port on which the agent's SSH server listens in every guest.
pub const SSH_PORT: u32 = 22;
/// The longest line on the control channel, bytes, newline included.
pub const MAX_CONTROL_LINE: usize = 512;
/// How often the agent sends [`GuestEvent::Heartbeat`], milliseconds.
pub const HEARTBEAT_MS: u64 = 1000;
/// The SSH subsystem by which the daemon replaces the set of authorised keys: standard input is one
/// public key per line (OpenSSH format). Refused on connections that do not use the daemon's own key.
pub const KEYS_SUBSYSTEM: &str = "banger-authorized-keys";

/// Everything a guest is told at boot.
#[derive(Clone, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Host name, also written to `/etc/hostname` and `/etc/hosts`.
    pub hostname: String,
    /// The guest's address; it is configured as a /32.
    pub address: Ipv4Addr,
    /// The host's side, reached on-link; also the default route.
    pub gateway: Ipv4Addr,
    /// Resolver for `/etc/resolv.conf`.
    pub dns: Ipv4Addr,
    /// The daemon's own public key, OpenSSH format: may use [`KEYS_SUBSYSTEM`].
    pub daemon_key: String,
    /// Further public keys that may log in as root, OpenSSH format.
    pub authorized_keys: Vec<String>,
    /// The SSH host key of this VM, OpenSSH private key format (PEM). Made by the daemon, pinned there.
    pub host_key: String,
    /// The vsock port on the host (CID 2) of the control channel.
    pub control_port: u32,
    /// The root file system's device, `/dev/vda`.
    pub root_device: String,
    /// The work disk's device, mounted on `/root`; `None` when the VM has none.
    pub work_device: Option<String>,
}

impl std::fmt::Debug for GuestConfig {
    /// Leaves the private host key out, so that no log line can carry it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestConfig")
            .field("hostname", &self.hostname)
            .field("address", &self.address)
            .field("control_port", &self.control_port)
            .finish_non_exhaustive()
    }
}

/// How a guest ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownKind {
    /// `poweroff`: the kernel says `reboot: Power down`.
    Poweroff,
    /// `halt`: the kernel says `reboot: System halted`.
    Halt,
    /// `reboot`: the VMM ends.
    Reboot,
}

/// Guest to host, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// The agent answers SSH now; sent first on every connection.
    Ready {
        /// `/proc/sys/kernel/random/boot_id` of the guest.
        boot_id: String,
    },
    /// Sent each [`HEARTBEAT_MS`].
    Heartbeat,
    /// The guest is about to end by itself or because it was asked to.
    Shutdown {
        /// How.
        kind: ShutdownKind,
    },
    /// The boot cannot go on (no root file system, module missing ...): why, one line.
    Failed {
        /// A sentence for the user.
        reason: String,
    },
}

/// Host to guest, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum GuestCommand {
    /// Shut down cleanly: sync, stop services, unmount, power off.
    Shutdown,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn lines_have_the_documented_form() {
        let ready = GuestEvent::Ready { boot_id: "b".into() };
        assert_eq!(serde_json::to_string(&ready).unwrap(), r#"{"event":"ready","boot_id":"b"}"#);
        let end = GuestEvent::Shutdown { kind: ShutdownKind::Poweroff };
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"event":"shutdown","kind":"poweroff"}"#);
        assert_eq!(serde_json::to_string(&GuestCommand::Shutdown).unwrap(), r#"{"command":"shutdown"}"#);
    }
}
