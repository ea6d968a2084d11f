//! What became of a VM: its row held beside what the host shows. The daemon asks this when it
//! starts, in its sweep each minute, and before it shows a VM to anybody, so that the three never
//! disagree.
//!
//! What is dear to find out (is there a process of the VM's own? does the helper hold anything for
//! it?) is asked for only when the answer decides: see [`Question`].

use super::{Event, State};

/// When the host is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// By a daemon that has just started, before it takes orders for the VM.
    First,
    /// At any later time.
    Later,
}

/// What the row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its state.
    pub state: State,
    /// A creation or a removal is in progress.
    pub making: bool,
    /// The VM ran in an earlier boot of the host, or was ended because the host went down.
    pub other_boot: bool,
    /// The row names a tap, a disk or a process: a start has begun, or a teardown has not ended.
    pub names_handles: bool,
}

/// What the host shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub look: Look,
    /// Processes run in the VM's cgroup, or it cannot be told.
    pub lives: bool,
    /// Every VM has a cgroup of its own, so that an empty one proves that the VM is dead.
    pub certain: bool,
    /// The daemon waits for the end of the VM's process.
    pub watched: bool,
    /// The answer to [`Question::Process`].
    pub process: Option<Process>,
    /// The answer to [`Question::Held`].
    pub held: Option<bool>,
}

/// What was found when the VM's process was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The VM's own VMM runs.
    Alive,
    /// The VM's own VMM runs, and its guest does not answer.
    Silent,
    /// There is none.
    Gone,
    /// It cannot be told.
    Unknown,
}

/// What decides next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Is there a process that is this VM's VMM? For a row that does not say "running": and does
    /// its guest answer?
    Process,
    /// Does the daemon or the helper hold anything for the VM?
    Held,
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Finding {
    /// The row is true, or nobody can tell that it is not.
    True,
    /// Answer this, then ask again.
    Ask(Question),
    /// This has happened to the VM and is not recorded.
    Happened(Event),
}

/// Row and host side by side.
pub fn diagnose(row: &Recorded, seen: &Seen) -> Finding {
    // Later, the order that makes or removes the VM is at work, unless it has said why it could
    // not.
    if row.making && (seen.look == Look::First || row.state == State::Error) {
        return Finding::Happened(Event::Delete);
    }
    if row.state == State::Running { running(row, seen) } else { not_running(row, seen) }
}

fn running(row: &Recorded, seen: &Seen) -> Finding {
    // No process outlives the host. One that lives though the row is of another boot was started
    // after an older copy of the database was made.
    if row.other_boot && !seen.lives {
        return Finding::Happened(Event::FoundRebooted);
    }
    if seen.certain && !seen.lives {
        return Finding::Happened(Event::FoundDead);
    }
    if seen.watched {
        return Finding::True;
    }
    match seen.process {
        None => Finding::Ask(Question::Process),
        Some(Process::Alive | Process::Silent) => Finding::Happened(Event::FoundAlive),
        Some(Process::Gone) => Finding::Happened(Event::FoundDead),
        // Not known is not dead: nothing is torn down under a guest that may live.
        Some(Process::Unknown) => Finding::True,
    }
}

fn not_running(row: &Recorded, seen: &Seen) -> Finding {
    // A row that names handles is of a start that a crash cut short: its process never was a VM
    // that ran. Without any, the row may be an older copy of one that says "running".
    if seen.lives && !row.names_handles {
        match seen.process {
            None => return Finding::Ask(Question::Process),
            Some(Process::Alive) => return Finding::Happened(Event::FoundAlive),
            Some(Process::Unknown) => return Finding::True,
            Some(Process::Silent | Process::Gone) => {}
        }
    }
    // The first look of a boot decides whether the VM is to run again. Later ones repeat what could
    // not be released or recorded then.
    let again = seen.look == Look::First || (row.state == State::Error && !seen.lives);
    if row.other_boot && again {
        return Finding::Happened(Event::FoundRebooted);
    }
    match seen.held {
        None => Finding::Ask(Question::Held),
        Some(true) => Finding::Happened(Event::FoundDead),
        Some(false) => Finding::True,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases() -> Vec<(Recorded, Seen)> {
        let bools = [false, true];
        let processes =
            [None, Some(Process::Alive), Some(Process::Silent), Some(Process::Gone), Some(Process::Unknown)];
        let mut cases = Vec::new();
        for state in State::ALL {
            for bits in 0..128_u32 {
                let bit = |n: u32| bits & (1 << n) != 0;
                let look = if bit(6) { Look::First } else { Look::Later };
                let row = Recorded { state, making: bit(0), other_boot: bit(1), names_handles: bit(2) };
                for process in processes {
                    for held in [None, Some(bools[0]), Some(bools[1])] {
                        let seen = Seen { look, lives: bit(3), certain: bit(4), watched: bit(5), process, held };
                        cases.push((row, seen));
                    }
                }
            }
        }
        cases
    }

    #[test]
    fn a_question_is_asked_once() {
        for (row, seen) in cases() {
            match diagnose(&row, &seen) {
                Finding::Ask(Question::Process) => assert_eq!(seen.process, None, "{row:?} {seen:?}"),
                Finding::Ask(Question::Held) => assert_eq!(seen.held, None, "{row:?} {seen:?}"),
                Finding::True | Finding::Happened(_) => {}
            }
        }
    }

    #[test]
    fn what_happened_has_a_meaning_in_the_state() {
        for (row, seen) in cases() {
            if let Finding::Happened(event) = diagnose(&row, &seen) {
                assert!(super::super::next(row.state, event).is_ok(), "{row:?} {seen:?}: {event:?}");
            }
        }
    }

    #[test]
    fn what_is_being_made_or_removed_is_removed_at_the_first_look_or_when_that_has_failed() {
        for (row, seen) in cases().into_iter().filter(|(row, _)| row.making) {
            let removed = diagnose(&row, &seen) == Finding::Happened(Event::Delete);
            assert_eq!(removed, seen.look == Look::First || row.state == State::Error, "{row:?} {seen:?}");
        }
    }

    #[test]
    fn nothing_is_torn_down_under_a_guest_that_lives_or_may_live() {
        for (row, seen) in cases() {
            let may_live = seen.lives && matches!(seen.process, Some(Process::Alive | Process::Unknown));
            let recorded = row.state == State::Running || !row.names_handles;
            if may_live && recorded && !row.making {
                let finding = diagnose(&row, &seen);
                assert!(
                    matches!(finding, Finding::True | Finding::Happened(Event::FoundAlive)),
                    "{row:?} {seen:?}: {finding:?}"
                );
            }
        }
    }

    #[test]
    fn what_runs_by_the_row_and_is_certainly_dead_is_never_true() {
        for (row, seen) in cases() {
            if row.state == State::Running && !row.making && seen.certain && !seen.lives {
                let finding = diagnose(&row, &seen);
                let event = if row.other_boot { Event::FoundRebooted } else { Event::FoundDead };
                assert_eq!(finding, Finding::Happened(event), "{row:?} {seen:?}");
            }
        }
    }

    #[test]
    fn what_does_not_run_and_holds_something_is_cleaned_up() {
        for (row, seen) in cases() {
            let stopped = row.state != State::Running && !row.making && !seen.lives;
            if stopped && !row.other_boot {
                let wanted = match seen.held {
                    None => Finding::Ask(Question::Held),
                    Some(true) => Finding::Happened(Event::FoundDead),
                    Some(false) => Finding::True,
                };
                assert_eq!(diagnose(&row, &seen), wanted, "{row:?} {seen:?}");
            }
        }
    }

    #[test]
    fn a_reboot_is_found_once_where_it_was_recorded() {
        let row = Recorded { state: State::Stopped, making: false, other_boot: true, names_handles: false };
        let seen = |look| Seen { look, lives: false, certain: true, watched: false, process: None, held: Some(false) };
        assert_eq!(diagnose(&row, &seen(Look::First)), Finding::Happened(Event::FoundRebooted));
        assert_eq!(diagnose(&row, &seen(Look::Later)), Finding::True);
        let failed = Recorded { state: State::Error, ..row };
        assert_eq!(diagnose(&failed, &seen(Look::Later)), Finding::Happened(Event::FoundRebooted));
    }
}
