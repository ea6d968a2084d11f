//! Sees a guest end by itself.
//!
//! One per running VM, started by its actor when the guest is ready or the VM was adopted, dropped
//! when the actor itself ends the VM. A guest has ended when its VMM has, when its kernel has said
//! its last word on the console and the agent is silent since, or when the agent is silent for
//! [`SILENCE`]. An announced shutdown alone ends nothing: between it and the power off the guest
//! still ends its services and writes its disks, and killing the VMM then would lose what it
//! writes; its agent is gone by then, so it has [`GOODBYE`]. Also keeps the console under its cap.
//!
//! Nothing is looked at while nothing happens: the kernel tells when the console is written to, and
//! an agent that has been heard is not looked for before [`CALM`] is over. Only a guest in doubt is
//! looked at again and again, and its agent asked to speak.
//!
//! The console is the guest's to write: a nested VM's log or a replayed kernel log has the same
//! words, and a monitor that hears the agent afterwards drops them. A new watch over the same file
//! has not heard that: to it words that stood there before it began prove nothing about an end that
//! is announced now. Where nothing is announced, an agent that is not heard for [`CONFIRM_FOUND`]
//! proves them: a guest may have ended while no daemon ran, and its VMM run on.

use super::control::{Control, NotReady, ReadyInfo};
use banger_proto::guest::{HEARTBEAT_MS, ShutdownKind};
use banger_vmm::console::{LastWord, Scanner};
use banger_vmm::written::Written;
use banger_vmm::{Vmm, VmmEnd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// How often a guest that seems to end is looked at, and a console at most. Together with
/// [`CONFIRM`] well below the 5 s in which `vm list` has to tell the truth.
const LOOK: Duration = Duration::from_millis(250);
/// An agent that was heard is expected to be heard again within this: its heartbeat and a little.
const CALM: Duration = Duration::from_millis(HEARTBEAT_MS + 2000);
/// How often an agent is looked for that was not.
const DOUBT: Duration = Duration::from_secs(1);
/// After a last word on the console an agent that announced nothing must be silent this long,
/// although it is asked to speak: so the same words written by a program in the guest end nothing.
/// Agents from before they were asked have a heartbeat each second.
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

/// Waits until the agent of a guest that boots says that it answers, and sees it end before. A
/// guest that powers itself off leaves a VMM that runs, and would be waited for in vain.
///
/// # Errors
/// [`NotReady`], as soon as it is certain.
pub async fn ready(parts: &Parts, within: Duration) -> Result<ReadyInfo, NotReady> {
    let ended = async {
        let watch = Watch::begin(parts.clone()).await;
        Watch { for_what: For::Ready, ..watch }.end().await
    };
    tokio::select! {
        // What the guest said before it ended is worth more than that it ended.
        biased;
        ready = parts.control.ready(within) => ready,
        ended = ended => Err(NotReady::Ended(ended.reason)),
    }
}

/// A watch that has begun: what the console said until then is known as older.
#[derive(Debug)]
pub struct Watch {
    parts: Parts,
    console: Console,
    agent: Agent,
    for_what: For,
}

/// What a guest is watched for.
#[derive(Clone, Copy, Debug)]
enum For {
    /// Its end, whenever that is.
    Its,
    /// It was told to shut down, and has so long.
    Asked(Duration),
    /// It boots. How long its agent may be silent is not decided here.
    Ready,
}

impl Watch {
    /// Reads what stands on the console. Before the guest is told to shut down, so that only what
    /// it says afterwards is about this shutdown.
    pub async fn begin(parts: Parts) -> Self {
        let mut watch = Self { parts, console: Console::default(), agent: Agent::default(), for_what: For::Its };
        watch.look().await;
        watch
    }

    /// The guest was told to shut down, and has so long: that its agent says no more is to be
    /// expected, announced or not.
    #[must_use]
    pub fn asked(self, within: Duration) -> Self {
        Self { for_what: For::Asked(within), ..self }
    }

    /// Returns when the guest has ended.
    pub async fn end(mut self) -> Ended {
        loop {
            let end = self.something().await;
            if end.is_some() {
                sleep(LAST_WORDS).await;
            }
            let ending = self.look().await;
            let ended = match end {
                // The host's kernel knows better than anything that a guest has said before.
                Some(end) => Some(match self.parts.vmm.cgroup().out_of_memory() {
                    Some(why) => Ended::new(why.to_string(), false),
                    None => by_end(end, self.agent.said(), ending),
                }),
                None => by_silence(&self.agent, ending, self.patience(ending)),
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Waits for something to look at, and gives the VMM's end when that is it.
    async fn something(&mut self) -> Option<VmmEnd> {
        let mut view = self.parts.control.changes();
        let pause = self.pause(view.borrow_and_update().ending);
        let news = async {
            tokio::select! {
                () = self.console.written.wait() => {}
                Ok(()) = view.changed() => {}
            }
            // A guest that writes without an end is looked at now and then only.
            if let Some(looked) = self.agent.looked {
                sleep_until(looked + LOOK).await;
            }
        };
        tokio::select! {
            end = self.parts.vmm.ended() => Some(end),
            () = sleep(pause) => None,
            () = news => None,
        }
    }

    /// How long nothing has to be looked at, unless something happens.
    fn pause(&self, ending: Option<ShutdownKind>) -> Duration {
        let ends = ending.is_some() || self.agent.said.is_some() || matches!(self.for_what, For::Asked(_));
        match self.for_what {
            _ if ends => LOOK,
            _ if self.agent.silent < CALM => CALM.saturating_sub(self.agent.silent),
            _ => DOUBT,
        }
    }

    /// How long the guest may be silent.
    fn patience(&self, ending: Option<ShutdownKind>) -> Patience {
        match self.for_what {
            For::Ready => Patience::Endless,
            For::Asked(within) => Patience::Goodbye(within.max(GOODBYE)),
            // One that was not heard since the daemon began may be on its way down since before.
            For::Its if ending.is_some() || self.agent.heard.is_none() => Patience::Goodbye(GOODBYE),
            For::Its => Patience::Usual,
        }
    }

    /// Looks at console and agent, and says which end is announced.
    async fn look(&mut self) -> Option<ShutdownKind> {
        let said = self.console.scan(self.parts.console.clone()).await;
        let view = self.parts.control.view();
        // One thread of Firecracker is disks and vsock: while the host's disk makes it wait, no
        // word of the agent comes through.
        let stuck = self.agent.silent >= DOUBT && self.parts.vmm.waits_for_the_host();
        self.agent.look(view.heard, said, Instant::now(), stuck);
        if self.agent.silent >= CALM || self.agent.said.is_some() {
            self.parts.control.ask();
        }
        view.ending
    }
}

/// How long silence proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// [`SILENCE`].
    Usual,
    /// The guest goes down, and has so long.
    Goodbye(Duration),
    /// Whoever waits knows how long.
    Endless,
}

/// The console as far as it was read.
#[derive(Debug)]
struct Console {
    scanner: Scanner,
    /// It was read once, with success: what comes is new.
    read: bool,
    /// What is written after the last reading.
    written: Written,
}

impl Default for Console {
    fn default() -> Self {
        Self { scanner: Scanner::default(), read: false, written: Written::unknown() }
    }
}

/// A kernel's last word, or something that looks like one.
#[derive(Debug)]
struct Said {
    word: LastWord,
    /// It came after the watch had begun.
    fresh: bool,
}

impl Console {
    /// Reads on, on a thread for blocking work.
    async fn scan(&mut self, path: PathBuf) -> Option<Said> {
        let mut scanner = std::mem::take(&mut self.scanner);
        let work = tokio::task::spawn_blocking(move || {
            // Before it is read: what is written meanwhile is told.
            let written = Written::after(&path);
            (scanner.scan(&path), scanner, written)
        });
        let Ok((word, scanner, written)) = work.await else {
            *self = Self::default();
            return None;
        };
        (self.scanner, self.written) = (scanner, written);
        match word {
            Ok(word) => {
                let fresh = std::mem::replace(&mut self.read, true);
                word.map(|word| Said { word, fresh })
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read a console");
                None
            }
        }
    }
}

/// What kernel and agent said last. Silence is counted by this process' own looks: time in which
/// the daemon itself was stopped or starved, or the VMM stuck, is not the guest's.
#[derive(Debug, Default)]
struct Agent {
    heard: Option<Instant>,
    looked: Option<Instant>,
    silent: Duration,
    /// The last word, when it was found, and for how long the agent is silent since.
    said: Option<(Said, Instant, Duration)>,
}

impl Agent {
    fn look(&mut self, heard: Option<Instant>, said: Option<Said>, now: Instant, stuck: bool) {
        let passed = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.looked = Some(now);
        if let Some(at) = heard
            && heard != self.heard
        {
            self.heard = heard;
            self.silent = now.saturating_duration_since(at).min(CALM);
            if let Some((_, _, silent)) = &mut self.said {
                *silent = Duration::ZERO;
            }
        } else if !stuck {
            // As long as a pause may be, and a second more for a daemon that is late.
            let at_most = CALM.saturating_sub(self.silent).max(DOUBT) + DOUBT;
            self.silent += passed.min(at_most);
            if let Some((_, _, silent)) = &mut self.said {
                *silent += passed.min(4 * LOOK);
            }
        }
        if let Some(said) = said {
            self.said = Some((said, now, Duration::ZERO));
        }
        // An agent that is heard afterwards: these were not the kernel's words.
        if let (Some((_, at, _)), Some(heard)) = (&self.said, heard)
            && heard > *at + IN_FLIGHT
        {
            self.said = None;
        }
    }

    fn said(&self) -> Option<&Said> {
        self.said.as_ref().map(|(said, ..)| said)
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

fn by_silence(agent: &Agent, ending: Option<ShutdownKind>, patience: Patience) -> Option<Ended> {
    if let Some((said, _, silent)) = &agent.said {
        let certain = match (said.fresh, ending) {
            // Kernel and agent agree.
            (true, Some(_)) => true,
            // An announcement to this daemon is newer than a word that it found.
            (false, Some(_)) => false,
            // The agent says nothing against it.
            (true, None) => *silent >= CONFIRM,
            (false, None) => *silent >= CONFIRM_FOUND,
        };
        if certain {
            return Some(by_word(&said.word, ending));
        }
    }
    let (limit, how) = match patience {
        Patience::Endless => return None,
        Patience::Usual => {
            let reason = format!("no sign of life from the guest for {} s", SILENCE.as_secs());
            return (agent.silent >= SILENCE).then(|| Ended::new(reason, false));
        }
        Patience::Goodbye(limit) if ending.is_some() => (limit, "guest began to shut down, and gave"),
        Patience::Goodbye(limit) => (limit, "guest gave"),
    };
    let reason = format!("{how} no sign of life for {} s", limit.as_secs());
    (agent.silent >= limit).then(|| Ended::new(reason, false))
}

#[cfg(test)]
mod tests;
