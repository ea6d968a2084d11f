//! What the host and the guest say to each other: the boot configuration in the initramfs and the
//! lines of the control channel.
//!
//! Written by `bangerd` at each start of a VM, read by `banger-guest`. Both sides are JSON, because
//! a guest image may carry an agent older than the daemon: unknown fields are ignored on both
//! sides. Nothing that a guest sends is trusted for more than that VM's own state.

use banger_policy::ImageConfig;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

/// Path of [`GuestConfig`] in the initramfs.
pub const CONFIG_PATH: &str = "/config.json";
/// Folder of the kernel modules in the initramfs: `NN-name.ko`, not compressed, loaded in order of
/// name.
pub const MODULES_DIR: &str = "/modules";
/// The vsock port on which the agent's SSH server listens in every guest.
pub const SSH_PORT: u32 = 22;
/// The longest line on the control channel, bytes, newline included.
pub const MAX_CONTROL_LINE: usize = 512;
/// How often the agent sends [`GuestEvent::Heartbeat`] unasked, milliseconds. Each wakes guest and
/// daemon.
pub const HEARTBEAT_MS: u64 = 10_000;
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
    /// Public keys that may log in as root, OpenSSH format.
    pub authorized_keys: Vec<String>,
    /// The SSH host key of this VM, OpenSSH private key format (PEM). Made by the daemon, pinned
    /// there.
    pub host_key: String,
    /// The vsock port on the host (CID 2) of the control channel.
    pub control_port: u32,
    /// What proves on the control channel that init or agent speaks. New at each boot.
    pub token: BootToken,
    /// The root file system's device, `/dev/vda`.
    pub root_device: String,
    /// The work disk's device, mounted on `/root`; `None` when the VM has none.
    pub work_device: Option<String>,
    /// The device with all modules of the kernel, mounted on `/lib/modules/RELEASE`; `None` when
    /// there is none.
    #[serde(default)]
    pub modules_device: Option<String>,
    /// This guest is there to read the work disk of a VM that does not run: it has no other disk,
    /// no network and no image, and changes nothing.
    #[serde(default)]
    pub reads: bool,
    /// What the image says about commands. It is the VM's: the image may have another name or be
    /// gone meanwhile.
    #[serde(default)]
    pub image: ImageConfig,
}

/// A secret of one boot. Any process in a guest may connect to the control port; init and agent
/// alone know this.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootToken(String);

impl BootToken {
    /// Characters of a token.
    pub const LEN: usize = 64;

    /// Of 32 random bytes.
    #[must_use]
    pub fn new(random: [u8; 32]) -> Self {
        Self(random.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// As it was written down; `None` when that is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (digits && text.len() == Self::LEN).then(|| Self(text.to_owned()))
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether both are the same. Takes equally long for every other of this length, so that time
    /// tells nothing about where it differs.
    #[must_use]
    pub fn proves(&self, expected: &Self) -> bool {
        let (ours, theirs) = (expected.0.as_bytes(), self.0.as_bytes());
        let differing = ours.iter().zip(theirs).fold(0, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
        ours.len() == Self::LEN && theirs.len() == Self::LEN && differing == 0
    }
}

impl fmt::Debug for BootToken {
    /// Nothing of it, so that no log line can carry it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootToken")
    }
}

impl fmt::Debug for GuestConfig {
    /// Leaves the private host key out, so that no log line can carry it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// The first line of every connection on the control channel, one JSON object. Whoever does not
/// know the token is not listened to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`GuestConfig::token`].
    pub token: BootToken,
}

/// Guest to host, one JSON object a line, after [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// The agent serves commands and SSH now; the agent's first event on every connection.
    Ready {
        /// `/proc/sys/kernel/random/boot_id` of the guest.
        boot_id: String,
    },
    /// Sent each [`HEARTBEAT_MS`], and as the answer to [`GuestCommand::Speak`].
    Heartbeat,
    /// So many commands of `vm exec` and `vm ssh`, and sessions, run, sent with a heartbeat when it
    /// is another number than before, none at first. The VM is in use, also when a daemon that has
    /// begun since does not know of them. Unknown to earlier daemons.
    InUse {
        /// How many.
        commands: u32,
    },
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
    Shutdown {
        /// After so many seconds the host ends the guest, whatever it does. `None` from daemons
        /// that always waited 90 seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        within: Option<u32>,
    },
    /// The host's time, sent when the agent connects and when the host's clock has jumped: a
    /// guest's clock stands still while the host is suspended.
    Time {
        /// Milliseconds since 1970, UTC.
        unix_ms: u64,
    },
    /// The announcement of the end has arrived. Firecracker's vsock has no half-close by which an
    /// agent could find that out, and drops what is on its way when a guest closes.
    Noted,
    /// The agent is to send a [`GuestEvent::Heartbeat`] at once: the host wonders whether the guest
    /// lives. Unknown to agents whose heartbeat comes each second.
    Speak,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn lines_have_the_documented_form() {
        let ready = GuestEvent::Ready { boot_id: "b".into() };
        assert_eq!(serde_json::to_string(&ready).unwrap(), r#"{"event":"ready","boot_id":"b"}"#);
        let used = GuestEvent::InUse { commands: 3 };
        assert_eq!(serde_json::to_string(&used).unwrap(), r#"{"event":"in_use","commands":3}"#);
        let end = GuestEvent::Shutdown { kind: ShutdownKind::Poweroff };
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"event":"shutdown","kind":"poweroff"}"#);
        let shutdown = GuestCommand::Shutdown { within: Some(90) };
        assert_eq!(serde_json::to_string(&shutdown).unwrap(), r#"{"command":"shutdown","within":90}"#);
        let old: GuestCommand = serde_json::from_str(r#"{"command":"shutdown"}"#).unwrap();
        assert_eq!(old, GuestCommand::Shutdown { within: None });
        assert_eq!(serde_json::to_string(&GuestCommand::Noted).unwrap(), r#"{"command":"noted"}"#);
        assert_eq!(serde_json::to_string(&GuestCommand::Speak).unwrap(), r#"{"command":"speak"}"#);
        let time = GuestCommand::Time { unix_ms: 1_764_398_000_123 };
        assert_eq!(serde_json::to_string(&time).unwrap(), r#"{"command":"time","unix_ms":1764398000123}"#);
        let token = BootToken::new([0xa5; 32]);
        let hello = format!(r#"{{"token":"{}"}}"#, "a5".repeat(32));
        assert_eq!(serde_json::to_string(&Hello { token }).unwrap(), hello);
    }

    #[test]
    fn a_token_proves_itself_only_and_is_in_no_log() {
        let token = BootToken::new([7; 32]);
        assert!(token.proves(&BootToken::parse(token.reveal()).unwrap()));
        assert_eq!(format!("{:?}", Hello { token: token.clone() }), "Hello { token: BootToken }");
        let mut near = [7; 32];
        near[31] = 6;
        assert!(!BootToken::new(near).proves(&token));
        // What a guest sends is not parsed: any length comes in.
        for other in [String::new(), "07".repeat(31), "07".repeat(33), token.reveal().to_uppercase() + "x"] {
            let said: Hello = serde_json::from_value(serde_json::json!({ "token": other })).unwrap();
            assert!(!said.token.proves(&token) && !token.proves(&said.token), "{other}");
            assert!(BootToken::parse(&other).is_none(), "{other}");
        }
        let empty: BootToken = serde_json::from_str("\"\"").unwrap();
        assert!(!empty.proves(&empty), "no token is no proof");
    }
}
