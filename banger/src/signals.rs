//! Signals that this process takes, and those that whoever started it has had it ignore.
//!
//! By an ignored signal, nohup(1) and a shell that starts a job in the background (POSIX, 2.11) say
//! that the signal is not for the job. A handler would undo that, so only this file installs one
//! (`clippy.toml`).
#![expect(clippy::disallowed_methods, reason = "this is the one place that installs handlers")]

use anyhow::Context as _;
use std::sync::OnceLock;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The stream of a signal; from now on it does not end the process. `None` for a signal that is
/// ignored, which stays ignored.
///
/// # Errors
/// When the handler cannot be installed.
pub(crate) fn listen(kind: SignalKind) -> anyhow::Result<Option<Signal>> {
    // Asked once: the file has fifty lines, and each command listens for six signals. Nothing here
    // changes which are ignored but `take`.
    static IGNORED: OnceLock<u64> = OnceLock::new();
    let ignored = *IGNORED.get_or_init(|| ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()));
    if has(ignored, kind) { Ok(None) } else { take(kind).map(Some) }
}

/// The same of a signal that is taken even if it is ignored.
///
/// # Errors
/// As [`listen`].
pub(crate) fn take(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// Waits for the next one; without end when the signal is ignored.
pub(crate) async fn next(signals: &mut Option<Signal>) {
    match signals {
        Some(signals) => {
            signals.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The set of ignored signals in the text of `/proc/self/status` (proc_pid_status(5)).
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

/// A set has a bit for each signal; the lowest is that of signal 1.
fn has(set: u64, kind: SignalKind) -> bool {
    let bit = u32::try_from(kind.as_raw_value()).unwrap_or_default().wrapping_sub(1);
    set.checked_shr(bit).unwrap_or_default() & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_signals_are_ignored() {
        let status = "Name:\tbanger\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        for (kind, expected) in [
            (SignalKind::hangup(), true),
            (SignalKind::pipe(), true),
            (SignalKind::interrupt(), false),
            (SignalKind::from_raw(64), false),
        ] {
            assert_eq!(has(ignored(status), kind), expected, "{kind:?}");
        }
        assert!(!has(ignored(""), SignalKind::hangup()));
    }
}
