//! `doctor vm`: how far a VM has come and what was said on the way, in one place.

use crate::cli::Json;
use crate::client::{Client, answer, soon};
use crate::cmd::job;
use crate::error::FAILED;
use crate::{output, session};
use anyhow::Context as _;
use banger_policy::lifecycle::State;
use banger_proto::model::{JobState, JobView, VmRecord};
use banger_proto::stream::StreamRequest;
use serde::Serialize;

/// Of the console, lines. Its end has what the VMM said last: both write to one file.
const TAIL: u32 = 40;
/// The jobs about a VM that are shown.
const JOBS: usize = 3;

#[derive(Debug, Serialize)]
struct Report<'a> {
    vm: &'a VmRecord,
    jobs: &'a [JobView],
    console: &'a str,
}

pub(super) async fn run(vm: String, json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let what = format!("cannot look at {vm}");
    let record = answer(client.rpc.show_vm(soon(), vm.clone())).await.with_context(|| what.clone())?;
    let jobs = about(job::views(&client).await?, &record);
    let request = StreamRequest::Logs { vm: record.id.to_string(), follow: false, tail: Some(TAIL) };
    let (stream, _) = client.stream(request).await.with_context(|| what.clone())?;
    let console = session::collect(stream).await.context(what)?;
    if json.json {
        output::json(&Report { vm: &record, jobs: &jobs, console: &console })?;
    } else {
        show(&vm, &record, &jobs, &console)?;
    }
    Ok(if record.state == State::Error { FAILED } else { 0 })
}

/// The owner's jobs whose title names the VM, newest first. An administrator is given everybody's
/// jobs, and the VMs of two users may have one name.
fn about(jobs: Vec<JobView>, vm: &VmRecord) -> Vec<JobView> {
    let names = |title: &str| title.split_whitespace().any(|word| word == vm.name.as_str());
    jobs.into_iter().filter(|job| job.owner == vm.owner && names(&job.title)).take(JOBS).collect()
}

fn show(word: &str, vm: &VmRecord, jobs: &[JobView], console: &str) -> anyhow::Result<()> {
    let runtime = &vm.runtime;
    let held = [&runtime.tap_device, &runtime.dm_dev, &runtime.base_loop, &runtime.cow_loop];
    let held: Vec<&str> = held.into_iter().flatten().map(String::as_str).collect();
    output::facts(&[
        ("name", vm.name.to_string()),
        ("state", vm.state.to_string()),
        ("reason", runtime.last_error.clone()),
        ("holds", if held.is_empty() { "nothing but its disks".to_owned() } else { held.join(", ") }),
        ("next", next(word, vm.state)),
    ])?;
    for job in jobs {
        output::print("\n")?;
        output::line(&format!("{} ({}): {}", job.title, job.id, ended(job)))?;
        for stage in &job.stages {
            let time = stage.took_ms.map_or("not finished".to_owned(), |took| format!("{took} ms"));
            output::line(&format!("  {:<20} {time:>12}  {}", stage.name, stage.detail))?;
        }
        for warning in &job.warnings {
            output::line(&format!("  warning: {warning}"))?;
        }
    }
    output::print(&format!("\nthe last {TAIL} lines of its console, where the VMM writes too:\n"))?;
    output::print(if console.is_empty() { "(empty: it has never run)\n" } else { console })
}

fn ended(job: &JobView) -> String {
    match &job.state {
        JobState::Running => "at work".to_owned(),
        JobState::Done(_) => "done".to_owned(),
        JobState::Cancelled => "cancelled".to_owned(),
        JobState::Failed(error) => format!("failed: {} {}", error.message, error.hint).trim_end().to_owned(),
    }
}

/// What somebody who asks this will want to do, with the VM as it was named.
fn next(word: &str, state: State) -> String {
    match state {
        State::Running => format!("banger vm health {word} asks the guest itself"),
        State::Error => {
            format!("mend what the reason names, then: banger vm start {word}, or banger vm delete {word}")
        }
        _ => format!("banger vm start {word}"),
    }
}
