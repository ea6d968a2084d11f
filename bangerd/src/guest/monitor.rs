//! Sees a guest end by itself.
//!
//! One per running VM, started by its actor when the guest is ready or the VM was adopted, dropped when the
//! actor itself ends the VM. A guest has ended when its VMM has, when its kernel has said its last word on
//! the console and the agent is silent since, or when the agent is silent for [`SILENCE`]. An announced
//! shutdown alone ends nothing: between it and the power off the guest still writes its disks, and killing
//! the VMM then would lose what it writes. Also keeps the console under its cap.

use super::console::{LastWord, Scanner};
use super::control::Control;
use crate::firecracker::{Vmm, VmmEnd};
use banger_proto::guest::ShutdownKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often console and agent are looked at. Together with [`CONFIRM`] well below the 5 s in which `vm list` has
/// to tell the truth.
const LOOK: Duration = Duration::from_millis(250);
/// After a last word on the console an agent that announced nothing must be silent this long: longer than its heartbeat, so that
/// the same words written by a program in the guest end nothing.
const CONFIRM: Duration = Duration::from_millis(2500);
/// What the agent said before the kernel's last word may be read after it.
const IN_FLIGHT: Duration = Duration::from_millis(500);
/// An agent that is silent this long is gone: a host under load may starve a guest for seconds, not for this.
const SILENCE: Duration = Duration::from_secs(30);
/// The VMM that ends after a restart or panic wrote its last words just before.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What is watched.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The VMM.
    pub vmm: Arc<Vmm>,
    /// The agent's channel.
    pub control: Arc<Control>,
    /// The console file.
    pub console: PathBuf,
}

/// The end of a guest. Its VMM may still run and has to be killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why, one sentence for the user.
    pub reason: String,
}

/// Returns when the guest has ended. Stopped by dropping it.
pub async fn watch(parts: Parts) -> Ended {
    let mut scanner = Scanner::default();
    let mut agent = Agent::default();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let end = tokio::select! {
            end = parts.vmm.ended() => Some(end),
            _ = look.tick() => None,
        };
        if end.is_some() {
            tokio::time::sleep(LAST_WORDS).await;
        }
        let (word, back) = scan(scanner, parts.console.clone()).await;
        scanner = back;
        let view = parts.control.view();
        let ending = view.ending;
        agent.look(view.heard, word, Instant::now());
        let reason = match end {
            Some(end) => Some(reason_of_end(end, agent.word(), ending)),
            None => reason_of_silence(agent.silent, agent.word(), ending),
        };
        if let Some(reason) = reason {
            return Ended { reason };
        }
    }
}

/// Reads the console on a thread for blocking work.
async fn scan(mut scanner: Scanner, path: PathBuf) -> (Option<LastWord>, Scanner) {
    let work = tokio::task::spawn_blocking(move || {
        let word = scanner.scan(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read a console");
            None
        });
        (word, scanner)
    });
    work.await.unwrap_or_else(|_| (None, Scanner::default()))
}

/// What kernel and agent said last. Silence is counted by this process' own looks: time in which the daemon
/// itself was stopped or starved is not the guest's.
#[derive(Debug, Default)]
struct Agent {
    heard: Option<Instant>,
    looked: Option<Instant>,
    silent: Duration,
    word: Option<(LastWord, Instant)>,
}

impl Agent {
    fn look(&mut self, heard: Option<Instant>, word: Option<LastWord>, now: Instant) {
        let passed = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.looked = Some(now);
        if heard == self.heard {
            self.silent += passed.min(4 * LOOK);
        } else {
            self.heard = heard;
            self.silent = Duration::ZERO;
        }
        if let Some(word) = word {
            self.word = Some((word, now));
        }
        // An agent that is heard afterwards: these were not the kernel's words.
        if let (Some((_, said)), Some(heard)) = (&self.word, heard)
            && heard > *said + IN_FLIGHT
        {
            self.word = None;
        }
    }

    fn word(&self) -> Option<&LastWord> {
        self.word.as_ref().map(|(word, _)| word)
    }
}

fn by_word(word: &LastWord) -> String {
    match word {
        LastWord::PowerDown => by_kind(ShutdownKind::Poweroff),
        LastWord::Halted => by_kind(ShutdownKind::Halt),
        LastWord::Restarting => by_kind(ShutdownKind::Reboot),
        LastWord::Panic(why) => format!("guest kernel panicked: {why}"),
    }
}

fn by_kind(kind: ShutdownKind) -> String {
    match kind {
        ShutdownKind::Poweroff => "guest powered off",
        ShutdownKind::Halt => "guest halted",
        ShutdownKind::Reboot => "guest rebooted (banger VMs do not reboot by themselves: start it again)",
    }
    .to_owned()
}

fn reason_of_end(end: VmmEnd, word: Option<&LastWord>, ending: Option<ShutdownKind>) -> String {
    match (word, end, ending) {
        (Some(word), ..) => by_word(word),
        // A guest has no way to have its VMM killed: what it announced does not explain that.
        (None, VmmEnd::Killed(signal), _) => format!("firecracker was killed (signal {signal})"),
        (None, _, Some(kind)) => by_kind(kind),
        (None, VmmEnd::Exited(status), None) => format!("firecracker exited (status {status})"),
        (None, VmmEnd::Unknown, None) => "firecracker was killed (signal unknown)".to_owned(),
    }
}

fn reason_of_silence(silent: Duration, word: Option<&LastWord>, ending: Option<ShutdownKind>) -> Option<String> {
    match word {
        // Kernel and agent agree, or the agent says nothing against it.
        Some(word) if ending.is_some() || silent >= CONFIRM => Some(by_word(word)),
        _ if silent < SILENCE => None,
        _ => {
            Some(ending.map_or_else(|| format!("no sign of life from the guest for {} s", SILENCE.as_secs()), by_kind))
        }
    }
}

#[cfg(test)]
mod tests;
