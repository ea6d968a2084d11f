//! The life of a VM as a pure table: what each event means in each state. Effects run elsewhere, in the order
//! given. One that fails keeps the later ones from running that would forget what is still held: `BringUp`,
//! `ClearHandles`, `RemoveFiles`, `RemoveRow`. All others run all the same, and the failure is
//! [`Event::TeardownFailed`] at the end.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a VM is. There is no state "starting": until the last step a VM is what it was, so that a crash
/// in between never leaves a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Made, never started.
    Created,
    /// Its guest said that it is ready, and its process lives.
    Running,
    /// Holds nothing but its disks.
    Stopped,
    /// A start failed or a teardown could not finish; the reason is in `last_error`.
    Error,
}

impl State {
    /// All of them, for tables.
    pub const ALL: [State; 4] = [State::Created, State::Running, State::Stopped, State::Error];

    /// As in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Stopped => "stopped",
            State::Error => "error",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody asks for a start.
    Start,
    /// The last step of a start is done.
    Started,
    /// A step of a start failed, or the start was cancelled.
    StartFailed,
    /// Somebody asks for a clean stop.
    Stop,
    /// The host goes down: a clean stop, and the VM counts as one that ran.
    HostDown,
    /// Somebody asks for an end without the guest's cooperation.
    Kill,
    /// The guest or its VMM ended by itself.
    Ended,
    /// The daemon starts and finds the VM's process alive, and its guest ready.
    FoundAlive,
    /// The daemon starts and finds no process.
    FoundDead,
    /// The daemon starts in another boot of the host than the one that the VM ran in.
    FoundRebooted,
    /// A teardown could not finish.
    TeardownFailed,
    /// Somebody asks for removal.
    Delete,
}

impl Event {
    /// All of them, for tables.
    pub const ALL: [Event; 12] = [
        Event::Start,
        Event::Started,
        Event::StartFailed,
        Event::Stop,
        Event::HostDown,
        Event::Kill,
        Event::Ended,
        Event::FoundAlive,
        Event::FoundDead,
        Event::FoundRebooted,
        Event::TeardownFailed,
        Event::Delete,
    ];
}

/// What is to be done about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Run the steps of a start; ends in [`Event::Started`] or [`Event::StartFailed`].
    BringUp,
    /// Write `handles.json`, then the cache, and the mirror in the same step.
    RecordHandles,
    /// Seed the cache from what was found.
    SeedCache,
    /// Ask the guest to shut down, bounded.
    ShutDownGuest,
    /// End every process in the VM's cgroup.
    KillProcesses,
    /// Release tap, NAT and disk by the cascade of handles.
    TearDown,
    /// Clear mirror, file and cache entry.
    ClearHandles,
    /// Remove the root disk and the VM's folder.
    RemoveFiles,
    /// Remove the row.
    RemoveRow,
}

/// What an event leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The state afterwards; `None` when the VM is gone.
    pub next: Option<State>,
    /// To be done, in order.
    pub effects: &'static [Effect],
}

/// An event that has no meaning in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// A start of what runs.
    #[error("it is already running")]
    AlreadyRunning,
    /// An event of the daemon's own that does not fit: a defect, reported and otherwise without effect.
    #[error("{event:?} has no meaning for a VM that is {state}")]
    Unexpected {
        /// The state.
        state: State,
        /// The event.
        event: Event,
    },
}

/// The table.
///
/// # Errors
/// [`Illegal`]: nothing is to be done.
pub fn next(state: State, event: Event) -> Result<Outcome, Illegal> {
    use Effect::{
        BringUp, ClearHandles, KillProcesses, RecordHandles, RemoveFiles, RemoveRow, SeedCache, ShutDownGuest, TearDown,
    };
    let to = |next, effects| Ok(Outcome { next: Some(next), effects });
    match (state, event) {
        (State::Running, Event::Start) => Err(Illegal::AlreadyRunning),
        (State::Created | State::Stopped, Event::Start) => to(state, &[BringUp]),
        // What a failed teardown left must go before anything new is acquired.
        (State::Error, Event::Start) => to(state, &[KillProcesses, TearDown, ClearHandles, BringUp]),

        (State::Created | State::Stopped | State::Error, Event::Started) => to(State::Running, &[RecordHandles]),
        (State::Created | State::Stopped | State::Error, Event::StartFailed) => {
            to(State::Error, &[KillProcesses, TearDown, ClearHandles])
        }

        (State::Running, Event::Stop | Event::HostDown) => {
            to(State::Stopped, &[ShutDownGuest, KillProcesses, TearDown, ClearHandles])
        }
        (State::Running, Event::Kill | Event::Ended) => to(State::Stopped, &[KillProcesses, TearDown, ClearHandles]),
        // Stopping what does not run is what the user wants already.
        (State::Created | State::Stopped, Event::Stop | Event::HostDown | Event::Kill) => to(state, &[]),
        (State::Error, Event::Stop | Event::HostDown | Event::Kill) => {
            to(State::Stopped, &[KillProcesses, TearDown, ClearHandles])
        }

        (State::Running, Event::FoundAlive) => to(State::Running, &[SeedCache]),
        (State::Running, Event::FoundDead | Event::FoundRebooted) => {
            to(State::Stopped, &[KillProcesses, TearDown, ClearHandles])
        }
        // An older copy of the database knows nothing of the start.
        (State::Created | State::Stopped | State::Error, Event::FoundAlive) => {
            to(State::Running, &[SeedCache, RecordHandles])
        }
        // A crash in the middle of a start: the row does not say running, so it never was.
        (State::Created | State::Stopped | State::Error, Event::FoundDead)
        | (State::Created | State::Stopped, Event::FoundRebooted) => {
            to(state, &[KillProcesses, TearDown, ClearHandles])
        }
        // What its error held is gone with the host.
        (State::Error, Event::FoundRebooted) => to(State::Stopped, &[KillProcesses, TearDown, ClearHandles]),

        (_, Event::TeardownFailed) => to(State::Error, &[]),

        (State::Running, Event::Delete) => Ok(Outcome {
            next: None,
            effects: &[ShutDownGuest, KillProcesses, TearDown, ClearHandles, RemoveFiles, RemoveRow],
        }),
        (State::Created | State::Stopped | State::Error, Event::Delete) => {
            Ok(Outcome { next: None, effects: &[KillProcesses, TearDown, ClearHandles, RemoveFiles, RemoveRow] })
        }

        (State::Running, Event::Started | Event::StartFailed)
        | (State::Created | State::Stopped | State::Error, Event::Ended) => Err(Illegal::Unexpected { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_all(mut check: impl FnMut(State, Event, Result<Outcome, Illegal>)) {
        for state in State::ALL {
            for event in Event::ALL {
                check(state, event, next(state, event));
            }
        }
    }

    #[test]
    fn whatever_stops_running_is_torn_down_and_forgotten() {
        for_all(|state, event, outcome| {
            let Ok(outcome) = outcome else { return };
            let leaves =
                state == State::Running && outcome.next != Some(State::Running) && event != Event::TeardownFailed;
            if leaves {
                let wanted = [Effect::KillProcesses, Effect::TearDown, Effect::ClearHandles];
                assert!(outcome.effects.windows(3).any(|three| three == wanted), "{state} {event:?}: {outcome:?}");
            }
        });
    }

    #[test]
    fn handles_are_recorded_exactly_when_running_begins() {
        for_all(|state, event, outcome| {
            let Ok(outcome) = outcome else { return };
            let begins = state != State::Running && outcome.next == Some(State::Running);
            assert_eq!(begins, outcome.effects.contains(&Effect::RecordHandles), "{state} {event:?}");
        });
    }

    #[test]
    fn only_delete_removes_and_it_always_does() {
        for_all(|state, event, outcome| {
            let removes =
                outcome.is_ok_and(|outcome| outcome.next.is_none() && outcome.effects.contains(&Effect::RemoveRow));
            assert_eq!(removes, event == Event::Delete, "{state} {event:?}");
        });
    }

    #[test]
    fn the_guest_is_asked_only_by_a_clean_end_of_what_runs() {
        for_all(|state, event, outcome| {
            let asks = outcome.is_ok_and(|outcome| outcome.effects.contains(&Effect::ShutDownGuest));
            assert_eq!(
                asks,
                state == State::Running && matches!(event, Event::Stop | Event::HostDown | Event::Delete),
                "{state} {event:?}"
            );
        });
    }

    #[test]
    fn a_start_leads_to_running_or_error_from_every_state() {
        for state in [State::Created, State::Stopped, State::Error] {
            assert_eq!(next(state, Event::Start).map(|o| o.next), Ok(Some(state)));
            assert_eq!(next(state, Event::Started).map(|o| o.next), Ok(Some(State::Running)));
            assert_eq!(next(state, Event::StartFailed).map(|o| o.next), Ok(Some(State::Error)));
        }
        assert_eq!(next(State::Running, Event::Start), Err(Illegal::AlreadyRunning));
    }
}
