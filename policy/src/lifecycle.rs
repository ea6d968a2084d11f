//! The life of a VM as a pure table: what each event means in each state. Effects run elsewhere, in
//! the order given. What a failed effect means for the others stands in the table too:
//! [`Effect::needs_success`], [`Effect::may_fail`]. A failure that counts is
//! [`Event::TeardownFailed`] at the end.

mod diagnosis;

pub use diagnosis::{Finding, Look, Process, Question, Recorded, Seen, diagnose};

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a VM is. There is no state "starting": until the last step a VM is what it was, so that a
/// crash in between never leaves a lie.
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
    /// A step of a start failed.
    StartFailed,
    /// The start was cancelled before its last step: the VM is what it was.
    StartCancelled,
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
    pub const ALL: [Event; 13] = [
        Event::Start,
        Event::Started,
        Event::StartFailed,
        Event::StartCancelled,
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
    /// The same for a VM that is removed: its folder and row go anyway.
    DropHandles,
    /// Remove the root disk and the VM's folder.
    RemoveFiles,
    /// Remove the row.
    RemoveRow,
}

impl Effect {
    /// Skipped after an effect that failed: it would forget what is still held.
    #[must_use]
    pub fn needs_success(self) -> bool {
        matches!(self, Effect::ClearHandles | Effect::DropHandles | Effect::RemoveFiles | Effect::RemoveRow)
    }

    /// Its own failure is worth a warning only. On a full disk, removal is what makes room.
    #[must_use]
    pub fn may_fail(self) -> bool {
        self == Effect::DropHandles
    }
}

/// What comes after an event's effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The VM is in this state.
    Is(State),
    /// The steps of a start; they end in [`Event::Started`], [`Event::StartFailed`] or
    /// [`Event::StartCancelled`].
    BringUp,
    /// There is no VM any more.
    Gone,
}

/// What an event leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// To be done, in order.
    pub effects: &'static [Effect],
    /// And then, when none of them failed.
    pub then: Then,
}

/// An event that has no meaning in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// A start of what runs.
    #[error("it is already running")]
    AlreadyRunning,
    /// An event of the daemon's own that does not fit: a defect, reported and otherwise without
    /// effect.
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
        ClearHandles, DropHandles, KillProcesses, RecordHandles, RemoveFiles, RemoveRow, SeedCache, ShutDownGuest,
        TearDown,
    };
    let to = |state, effects| Ok(Outcome { effects, then: Then::Is(state) });
    match (state, event) {
        (State::Running, Event::Start) => Err(Illegal::AlreadyRunning),
        (State::Created | State::Stopped, Event::Start) => Ok(Outcome { effects: &[], then: Then::BringUp }),
        // What a failed teardown left must go before anything new is acquired.
        (State::Error, Event::Start) => {
            Ok(Outcome { effects: &[KillProcesses, TearDown, ClearHandles], then: Then::BringUp })
        }

        (State::Created | State::Stopped | State::Error, Event::Started) => to(State::Running, &[RecordHandles]),
        (State::Created | State::Stopped | State::Error, Event::StartFailed) => {
            to(State::Error, &[KillProcesses, TearDown, ClearHandles])
        }
        (State::Created | State::Stopped | State::Error, Event::StartCancelled) => {
            to(state, &[KillProcesses, TearDown, ClearHandles])
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
            effects: &[ShutDownGuest, KillProcesses, TearDown, DropHandles, RemoveFiles, RemoveRow],
            then: Then::Gone,
        }),
        (State::Created | State::Stopped | State::Error, Event::Delete) => {
            Ok(Outcome { effects: &[KillProcesses, TearDown, DropHandles, RemoveFiles, RemoveRow], then: Then::Gone })
        }

        (State::Running, Event::Started | Event::StartFailed | Event::StartCancelled)
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
                state == State::Running && outcome.then != Then::Is(State::Running) && event != Event::TeardownFailed;
            if leaves {
                let forget = if event == Event::Delete { Effect::DropHandles } else { Effect::ClearHandles };
                let wanted = [Effect::KillProcesses, Effect::TearDown, forget];
                assert!(outcome.effects.windows(3).any(|three| three == wanted), "{state} {event:?}: {outcome:?}");
            }
        });
    }

    #[test]
    fn handles_are_recorded_exactly_when_running_begins() {
        for_all(|state, event, outcome| {
            let Ok(outcome) = outcome else { return };
            let begins = state != State::Running && outcome.then == Then::Is(State::Running);
            assert_eq!(begins, outcome.effects.contains(&Effect::RecordHandles), "{state} {event:?}");
        });
    }

    #[test]
    fn only_delete_removes_and_it_always_does() {
        for_all(|state, event, outcome| {
            let removes =
                outcome.is_ok_and(|outcome| outcome.then == Then::Gone && outcome.effects.contains(&Effect::RemoveRow));
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
    fn nothing_new_is_acquired_while_something_old_may_be_held() {
        let held = next(State::Error, Event::Start).map(|outcome| outcome.effects);
        assert_eq!(held, Ok([Effect::KillProcesses, Effect::TearDown, Effect::ClearHandles].as_slice()));
        for_all(|state, event, outcome| {
            let brings_up = outcome.is_ok_and(|outcome| outcome.then == Then::BringUp);
            assert_eq!(brings_up, event == Event::Start && state != State::Running, "{state} {event:?}");
        });
    }

    #[test]
    fn what_forgets_comes_last_and_waits_for_what_releases() {
        for_all(|state, event, outcome| {
            let Ok(outcome) = outcome else { return };
            let first = outcome.effects.iter().position(|effect| effect.needs_success());
            let after = outcome.effects.iter().skip(first.unwrap_or(usize::MAX));
            assert!(after.copied().all(Effect::needs_success), "{state} {event:?}: {outcome:?}");
        });
    }

    #[test]
    fn a_start_leads_to_running_or_error_from_every_state_and_cancelled_to_where_it_began() {
        for state in [State::Created, State::Stopped, State::Error] {
            assert_eq!(next(state, Event::Start).map(|o| o.then), Ok(Then::BringUp));
            assert_eq!(next(state, Event::Started).map(|o| o.then), Ok(Then::Is(State::Running)));
            assert_eq!(next(state, Event::StartFailed).map(|o| o.then), Ok(Then::Is(State::Error)));
            assert_eq!(next(state, Event::StartCancelled).map(|o| o.then), Ok(Then::Is(state)));
        }
        assert_eq!(next(State::Running, Event::Start), Err(Illegal::AlreadyRunning));
    }
}
