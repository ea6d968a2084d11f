//! Sees a guest end by itself.
//!
//! One per running VM, started by its actor when the guest is ready or the VM was adopted, dropped
//! when the actor itself ends the VM. A guest has ended when its VMM has, when its kernel has said
//! its last word on the console and the agent is silent since, or when the agent is silent for
//! [`SILENCE`]. An announced shutdown alone ends nothing: between it and the power off the guest
//! still ends its services and writes its disks, and killing the VMM then would lose what it
//! writes; its agent is gone by then, so it has [`GOODBYE`]. Also keeps the console under its cap.
//!
//! The console is the guest's to write: a nested VM's log or a replayed kernel log has the same
//! words, and a monitor that hears the agent afterwards drops them. A new watch over the same file
//! has not heard that: to it words that stood there before it began prove nothing about an end that
//! is announced now. Where nothing is announced, an agent that is not heard for [`CONFIRM_FOUND`]
//! proves them: a guest may have ended while no daemon ran, and its VMM run on.

use super::control::Control;
use banger_proto::guest::ShutdownKind;
use banger_vmm::console::{LastWord, Scanner};
use banger_vmm::{Vmm, VmmEnd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often console and agent are looked at. Together with [`CONFIRM`] well below the 5 s in which
/// `vm list` has to tell the truth.
const LOOK: Duration = Duration::from_millis(250);
/// After a last word on the console an agent that announced nothing must be silent this long:
/// longer than its heartbeat, so that the same words written by a program in the guest end nothing.
const CONFIRM: Duration = Duration::from_millis(2500);
/// The same for words that were there before the watch began. An agent that lives comes back to a
/// new daemon every half second.
const CONFIRM_FOUND: Duration = Duration::from_secs(4);
/// What the agent said before the kernel's last word may be read after it.
const IN_FLIGHT: Duration = Duration::from_millis(500);
/// An agent that is silent this long is gone: a host under load may starve a guest for seconds, not
/// for this.
const SILENCE: Duration = Duration::from_secs(30);
/// A guest that goes down, and says nothing more, has this long: its init gives services 90 s to
/// end (`DefaultTimeoutStopSec=` in systemd-system.conf(5)), and writes its disks afterwards.
/// Longer than a stop waits, which kills it then and says so.
const GOODBYE: Duration = Duration::from_secs(180);
/// An agent that is silent this long has its VMM looked at.
const DOUBT: Duration = Duration::from_secs(1);
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
    /// Its kernel or its VMM came to an end of its own: whatever it wrote is on its disks.
    pub clean: bool,
}

impl Ended {
    fn new(reason: impl Into<String>, clean: bool) -> Self {
        Self { reason: reason.into(), clean }
    }
}

/// Returns when the guest has ended. Stopped by dropping it.
pub async fn watch(parts: Parts) -> Ended {
    Watch::begin(parts).await.end().await
}

/// A watch that has begun: what the console said until then is known as older.
#[derive(Debug)]
pub struct Watch {
    parts: Parts,
    console: Console,
    agent: Agent,
    /// It was told to shut down, and has so long.
    asked: Option<Duration>,
}

impl Watch {
    /// Reads what stands on the console. Before the guest is told to shut down, so that only what
    /// it says afterwards is about this shutdown.
    pub async fn begin(parts: Parts) -> Self {
        let mut watch = Self { parts, console: Console::default(), agent: Agent::default(), asked: None };
        watch.look().await;
        watch
    }

    /// The guest was told to shut down, and has so long: that its agent says no more is to be
    /// expected, announced or not.
    #[must_use]
    pub fn asked(self, within: Duration) -> Self {
        Self { asked: Some(within), ..self }
    }

    /// Returns when the guest has ended.
    pub async fn end(mut self) -> Ended {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let end = tokio::select! {
                end = self.parts.vmm.ended() => Some(end),
                _ = look.tick() => None,
            };
            if end.is_some() {
                tokio::time::sleep(LAST_WORDS).await;
            }
            let ending = self.look().await;
            let ended = match end {
                // The host's kernel knows better than anything that a guest has said before.
                Some(end) => Some(match self.parts.vmm.cgroup().out_of_memory() {
                    Some(why) => Ended::new(why.to_string(), false),
                    None => by_end(end, self.agent.said(), ending),
                }),
                None => {
                    // One that was not heard since the daemon began may be on its way down since
                    // before.
                    let goes_down = self.asked.is_some() || ending.is_some() || self.agent.heard.is_none();
                    let goodbye = goes_down.then(|| self.asked.map_or(GOODBYE, |within| within.max(GOODBYE)));
                    by_silence(self.agent.silent, self.agent.said(), ending, goodbye)
                }
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Looks at console and agent, and says which end is announced.
    async fn look(&mut self) -> Option<ShutdownKind> {
        let (said, console) = scan(std::mem::take(&mut self.console), self.parts.console.clone()).await;
        self.console = console;
        let view = self.parts.control.view();
        // One thread of Firecracker is disks and vsock: while the host's disk makes it wait, no
        // word of the agent comes through.
        let stuck = self.agent.silent >= DOUBT && self.parts.vmm.waits_for_the_host();
        self.agent.look(view.heard, said, Instant::now(), stuck);
        view.ending
    }
}

/// The console as far as it was read.
#[derive(Debug, Default)]
struct Console {
    scanner: Scanner,
    /// It was read once, with success: what comes is new.
    read: bool,
}

/// A kernel's last word, or something that looks like one.
#[derive(Debug)]
struct Said {
    word: LastWord,
    /// It came after the watch had begun.
    fresh: bool,
}

/// Reads the console on a thread for blocking work.
async fn scan(mut console: Console, path: PathBuf) -> (Option<Said>, Console) {
    let work = tokio::task::spawn_blocking(move || {
        let said = match console.scanner.scan(&path) {
            Ok(word) => {
                let fresh = std::mem::replace(&mut console.read, true);
                word.map(|word| Said { word, fresh })
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read a console");
                None
            }
        };
        (said, console)
    });
    work.await.unwrap_or_else(|_| (None, Console::default()))
}

/// What kernel and agent said last. Silence is counted by this process' own looks: time in which
/// the daemon itself was stopped or starved, or the VMM stuck, is not the guest's.
#[derive(Debug, Default)]
struct Agent {
    heard: Option<Instant>,
    looked: Option<Instant>,
    silent: Duration,
    said: Option<(Said, Instant)>,
}

impl Agent {
    fn look(&mut self, heard: Option<Instant>, said: Option<Said>, now: Instant, stuck: bool) {
        let passed = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.looked = Some(now);
        if heard != self.heard {
            self.heard = heard;
            self.silent = Duration::ZERO;
        } else if !stuck {
            self.silent += passed.min(4 * LOOK);
        }
        if let Some(said) = said {
            self.said = Some((said, now));
        }
        // An agent that is heard afterwards: these were not the kernel's words.
        if let (Some((_, at)), Some(heard)) = (&self.said, heard)
            && heard > *at + IN_FLIGHT
        {
            self.said = None;
        }
    }

    fn said(&self) -> Option<&Said> {
        self.said.as_ref().map(|(said, _)| said)
    }
}

/// A kernel panics when its PID 1 ends. A script in that place ends when it is told to, and its
/// agent has all writes done before.
const INIT_ENDED: &str = "Attempted to kill init!";

fn by_word(word: &LastWord, ending: Option<ShutdownKind>) -> Ended {
    match word {
        LastWord::Panic(why) if why.starts_with(INIT_ENDED) && ending == Some(ShutdownKind::Poweroff) => {
            by_kind(ShutdownKind::Poweroff)
        }
        LastWord::PowerDown => by_kind(ShutdownKind::Poweroff),
        LastWord::Halted => by_kind(ShutdownKind::Halt),
        LastWord::Restarting => by_kind(ShutdownKind::Reboot),
        LastWord::Panic(why) => Ended::new(format!("guest kernel panicked: {why}"), false),
    }
}

fn by_kind(kind: ShutdownKind) -> Ended {
    let reason = match kind {
        ShutdownKind::Poweroff => "guest powered off",
        ShutdownKind::Halt => "guest halted",
        ShutdownKind::Reboot => "guest rebooted (banger VMs do not reboot by themselves: start it again)",
    };
    Ended::new(reason, true)
}

/// Its status goes to its parent (wait(2)), which an earlier run of the daemon may have been.
const UNKNOWN: &str = "firecracker ended (how is not known)";

fn by_end(end: VmmEnd, said: Option<&Said>, ending: Option<ShutdownKind>) -> Ended {
    match (said, end, ending) {
        (Some(said), ..) => by_word(&said.word, ending),
        // A guest has no way to have its VMM killed: what it announced does not explain that.
        (None, VmmEnd::Killed(signal), _) => Ended::new(format!("firecracker was killed (signal {signal})"), false),
        (None, VmmEnd::Exited(0) | VmmEnd::Unknown, Some(kind)) => by_kind(kind),
        (None, VmmEnd::Exited(status), _) => Ended::new(format!("firecracker exited (status {status})"), status == 0),
        (None, VmmEnd::Unknown, None) => Ended::new(UNKNOWN, false),
    }
}

/// `goodbye`: the guest goes down, and has so long without a word.
fn by_silence(
    silent: Duration,
    said: Option<&Said>,
    ending: Option<ShutdownKind>,
    goodbye: Option<Duration>,
) -> Option<Ended> {
    match (said, goodbye) {
        // Kernel and agent agree, or the agent says nothing against it.
        (Some(said), _) if said.fresh && (ending.is_some() || silent >= CONFIRM) => Some(by_word(&said.word, ending)),
        // An announcement to this daemon is newer than a word that it found.
        (Some(said), _) if ending.is_none() && silent >= CONFIRM_FOUND => Some(by_word(&said.word, ending)),
        (_, Some(goodbye)) => (silent >= goodbye).then(|| {
            let how = if ending.is_some() { "guest began to shut down, and gave" } else { "guest gave" };
            Ended::new(format!("{how} no sign of life for {} s", goodbye.as_secs()), false)
        }),
        (_, None) => (silent >= SILENCE)
            .then(|| Ended::new(format!("no sign of life from the guest for {} s", SILENCE.as_secs()), false)),
    }
}

#[cfg(test)]
mod tests;
