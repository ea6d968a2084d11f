//! `vm start`, `stop`, `restart`, `kill`, `delete`: the same work on several VMs at once. One that
//! cannot be done does not stop the others, and the exit status says so.

use crate::client::{Client, answer, patiently, soon};
use crate::error::{FAILED, explained, is, say};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended, OnInterrupt};
use crate::output::{line, note, took};
use crate::progress::{Detail, Progress};
use anyhow::Context as _;
use banger_policy::lifecycle::State;
use banger_proto::daemon::KillSignal;
use banger_proto::model::{ErrorCode, SetRequest, VmRecord};
use futures::StreamExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// For so long after a command of `vm run --rm` was interrupted, another interruption is still
/// meant for it, and not for the deletion that follows.
const STILL_MEANT: Duration = Duration::from_secs(1);
/// VMs worked on at a time; the daemon takes up 32 calls of a connection.
const AT_ONCE: usize = 16;

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Verb {
    Start,
    /// With so many seconds for the guest, when somebody says how many.
    Stop(Option<u32>),
    /// Because the host goes down.
    HostDown,
    Restart,
    Kill(KillSignal),
    Set(SetRequest),
    Delete,
    /// If it is idle when its turn comes.
    Prune,
}

impl Verb {
    fn words(&self) -> (&'static str, &'static str) {
        match self {
            Verb::Start => ("start", "started"),
            Verb::Stop(_) | Verb::HostDown => ("stop", "stopped"),
            Verb::Restart => ("restart", "restarted"),
            Verb::Kill(_) => ("kill", "killed"),
            Verb::Set(_) => ("change", "changed"),
            Verb::Delete | Verb::Prune => ("delete", "deleted"),
        }
    }

    fn on_interrupt(&self) -> OnInterrupt {
        match self {
            Verb::Start | Verb::Restart | Verb::Set(_) => OnInterrupt::Cancel,
            Verb::Stop(_) | Verb::HostDown | Verb::Kill(_) | Verb::Delete | Verb::Prune => OnInterrupt::Withdraw,
        }
    }
}

/// A signal as users name it.
///
/// # Errors
/// When it is none that ends a VMM.
pub(super) fn signal(text: &str) -> anyhow::Result<KillSignal> {
    let upper = text.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "KILL" | "9" => Ok(KillSignal::Kill),
        "TERM" | "15" => Ok(KillSignal::Term),
        "INT" | "2" => Ok(KillSignal::Int),
        _ => Err(explained(format!("{text:?} is not a signal that can be sent to a VM"), "use KILL, TERM or INT")),
    }
}

pub(super) async fn run(verb: Verb, mut names: Vec<String>) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    // Each VM once: a name and an id may mean the same one.
    let (mut vms, mut status) = (Vec::<VmRecord>::new(), 0);
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    for name in names {
        let what = format!("cannot {} {name}", verb.words().0);
        match answer(client.rpc.show_vm(soon(), name)).await.context(what) {
            Ok(vm) if vms.iter().any(|other| other.id == vm.id) => {}
            Ok(vm) => vms.push(vm),
            Err(error) => {
                say(&error);
                status = FAILED;
            }
        }
    }
    on_all(&client, verb, &vms, status).await
}

/// `vm stop --everyone`: what the host's shutdown and the package's removal ask for.
pub(super) async fn stop_everyone(within: Option<u32>, host_down: bool) -> anyhow::Result<u8> {
    /// A VM whose start was at work is met the next time; one that cannot be stopped is not tried
    /// for ever.
    const ROUNDS: usize = 3;
    const AGAIN: Duration = Duration::from_secs(3);
    let client = Client::connect().await?;
    let mut status = 0;
    let mut stopped = 0;
    for _ in 0..ROUNDS {
        let mut vms = super::list::records(&client, true).await?;
        vms.retain(|vm| vm.state == State::Running);
        if vms.is_empty() {
            if !host_down || stopped > 0 {
                break;
            }
            // systemd asks because there are processes of VMs: one is being started.
            sleep(AGAIN).await;
            continue;
        }
        stopped += vms.len();
        let vms = in_turns(vms, |vm| (vm.owner, vm.owner_name.clone()));
        status = on_all(&client, if host_down { Verb::HostDown } else { Verb::Stop(within) }, &vms, status).await?;
        if status > FAILED {
            // Interrupted.
            break;
        }
    }
    Ok(status)
}

/// The first of each user, then the second of each: the host goes down with what has no time left,
/// and that shall not be all of one user's.
fn in_turns<T, U: Ord>(all: Vec<T>, user: impl Fn(&T) -> U) -> Vec<T> {
    let mut seen = BTreeMap::new();
    let turn = |one: T| {
        let count: &mut usize = seen.entry(user(&one)).or_default();
        *count += 1;
        (*count, one)
    };
    let mut turns: Vec<(usize, T)> = all.into_iter().map(turn).collect();
    // Those of one turn stay in order.
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, one)| one).collect()
}

/// # Errors
/// When nobody reads our output any more; other failures are said, and are in the status.
pub(super) async fn on_all(client: &Client, verb: Verb, vms: &[VmRecord], mut status: u8) -> anyhow::Result<u8> {
    let interrupts = Interrupts::listen()?;
    let detail = if vms.len() == 1 { Detail::Live } else { Detail::Quiet };
    let work = vms.iter().map(|vm| one(client, verb.clone(), vm, detail, interrupts.clone()));
    let mut running = futures::stream::iter(work).buffer_unordered(AT_ONCE);
    while let Some(outcome) = running.next().await {
        match outcome {
            Ok(0) => {}
            // An interruption outranks a failure: it is what the user did last.
            Ok(interrupted) => status = interrupted,
            Err(error) => {
                if error.is::<crate::output::ReaderGone>() {
                    return Err(error);
                }
                say(&error);
                status = status.max(FAILED);
            }
        }
    }
    Ok(status)
}

async fn one(
    client: &Client,
    verb: Verb,
    vm: &VmRecord,
    detail: Detail,
    mut interrupts: Interrupts,
) -> anyhow::Result<u8> {
    let (present, past) = verb.words();
    let what = || format!("cannot {present} {}", vm.name);
    // Whose turn has not come is let be.
    if let Some(status) = interrupts.came() {
        note(&format!("{} was not {past}", vm.name));
        return Ok(status);
    }
    let began = Instant::now();
    let id = vm.id.to_string();
    let rpc = &client.rpc;
    let job = match verb.clone() {
        Verb::Start => answer(rpc.start_vm(soon(), id)).await,
        Verb::Stop(within) => answer(rpc.stop_vm(soon(), id, within, false)).await,
        Verb::HostDown => answer(rpc.stop_vm(soon(), id, None, true)).await,
        Verb::Restart => answer(rpc.restart_vm(soon(), id)).await,
        Verb::Kill(signal) => answer(rpc.kill_vm(soon(), id, signal)).await,
        Verb::Set(request) => answer(rpc.set_vm(soon(), id, request)).await,
        Verb::Delete => answer(rpc.delete_vm(soon(), id)).await,
        Verb::Prune => answer(rpc.prune_vm(soon(), id)).await,
    };
    let mut progress = Progress::new(detail);
    let ended = match job {
        Ok(job) => job::follow(client, job, &mut progress, &mut interrupts, verb.on_interrupt()).await,
        Err(error) => Err(error),
    };
    drop(progress);
    let ended = match ended {
        // It came into use after it was listed.
        Err(error) if matches!(verb, Verb::Prune) && is(&error, ErrorCode::AlreadyRunning) => {
            note(&format!("{} is left: {error}", vm.name));
            return Ok(0);
        }
        ended => ended.with_context(what)?,
    };
    match ended {
        Ended::Interrupted(status, None) => {
            note(&format!("{} was not {past}", vm.name));
            Ok(status)
        }
        ended => {
            let interrupted = if let Ended::Interrupted(status, _) = ended { Some(status) } else { None };
            let status = match verb {
                Verb::Delete | Verb::Prune => {
                    crate::workspace::kept::forget(&vm.id);
                    interrupted
                }
                Verb::Start | Verb::Restart => {
                    sync(client, vm, interrupted, &mut interrupts).await.with_context(what)?
                }
                _ => interrupted,
            };
            line(&format!("{past} {} in {}", vm.name, took(began.elapsed())))?;
            Ok(status.unwrap_or(0))
        }
    }
}

/// The configured files of a VM that was started for the first time. Gives the status of an
/// interruption, this one's or that of the start.
async fn sync(
    client: &Client,
    vm: &VmRecord,
    interrupted: Option<u8>,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<u8>> {
    let left_out = |why: &str| {
        if super::sync::is_wanted(vm) {
            note(&format!("warning: file_sync was not applied to {}: {why}; copy them: banger vm cp", vm.name));
        }
    };
    match (vm.state, interrupted) {
        (State::Created, None) => tokio::select! {
            copied = super::sync::new_vm(client, vm) => copied.map(|()| None),
            status = interrupts.next() => {
                left_out("it was interrupted");
                Ok(Some(status))
            }
        },
        (State::Created, Some(status)) => {
            left_out("the start was interrupted");
            Ok(Some(status))
        }
        // Nobody knows whether it has run before.
        (State::Error, _) => {
            left_out("an earlier start may have failed, and the files only go with the first one");
            Ok(interrupted)
        }
        (State::Stopped | State::Running, _) => Ok(interrupted),
    }
}

/// Deletes a VM of ours at the end of `vm run`, by a connection of its own: the one before may be
/// gone, and so may the daemon for a moment.
///
/// # Errors
/// When it is still there.
pub(super) async fn delete_at_end(vm: &VmRecord, mut interrupts: Interrupts) -> anyhow::Result<()> {
    let what = || format!("cannot delete {}", vm.name);
    interrupts.forget();
    let asking = async {
        let client = Client::connect_again().await?;
        let job = answer(patiently(async || client.rpc.delete_vm(soon(), vm.id.to_string()).await)).await?;
        anyhow::Ok((client, job))
    };
    let given_up = async {
        sleep(STILL_MEANT).await;
        interrupts.forget();
        interrupts.next().await
    };
    let (client, job) = tokio::select! {
        asked = asking => asked,
        _ = given_up => {
            let hint = format!("remove it: banger vm delete {}", vm.name);
            Err(explained("interrupted while bangerd was waited for", hint))
        }
    }
    .with_context(what)?;
    let mut progress = Progress::new(Detail::Live);
    let ended = job::follow(&client, job, &mut progress, &mut interrupts, OnInterrupt::Leave).await;
    ended.with_context(what)?;
    crate::workspace::kept::forget(&vm.id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_take_turns_when_the_host_goes_down() {
        let all = vec![("alice", 1), ("alice", 2), ("alice", 3), ("bob", 1), ("carol", 1), ("carol", 2)];
        let turns = in_turns(all, |(user, _)| *user);
        assert_eq!(turns, [("alice", 1), ("bob", 1), ("carol", 1), ("alice", 2), ("carol", 2), ("alice", 3)]);
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, want) in [("kill", KillSignal::Kill), ("SIGTERM", KillSignal::Term), ("2", KillSignal::Int)] {
            assert_eq!(signal(text).ok(), Some(want), "{text}");
        }
        assert!(signal("STOP").is_err());
    }
}
