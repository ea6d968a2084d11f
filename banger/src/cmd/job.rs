//! `job list` and `job cancel`.

use crate::cli::{Job, Json};
use crate::client::{Client, answer, soon, watching};
use crate::error::{FAILED, explained, say};
use crate::output::{self, age, line, table};
use anyhow::Context as _;
use banger_proto::model::{JobId, JobState, JobView};
use banger_proto::time::Timestamp;

pub(super) async fn run(command: Job) -> anyhow::Result<u8> {
    match command {
        Job::List(json) => list(json).await,
        Job::Cancel { jobs } => cancel(jobs).await,
    }
}

/// All pages, newest first.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(super) async fn views(client: &Client) -> anyhow::Result<Vec<JobView>> {
    let (mut jobs, mut before) = (Vec::new(), None);
    loop {
        let page = answer(client.rpc.list_jobs(soon(), before)).await.context("cannot list the jobs")?;
        jobs.extend(page.jobs);
        before = page.next;
        if before.is_none() {
            return Ok(jobs);
        }
    }
}

async fn list(json: Json) -> anyhow::Result<u8> {
    let jobs = views(&Client::connect().await?).await?;
    if json.json {
        output::json(&jobs)?;
        return Ok(0);
    }
    if jobs.is_empty() {
        output::note("no jobs");
        return Ok(0);
    }
    let now = Timestamp::now();
    let row =
        |job: &JobView| vec![job.id.to_string(), age(job.started_at, now), state(job), job.title.clone(), outcome(job)];
    table(&["JOB", "AGE", "STATE", "WORK", "STEP"], &jobs.iter().map(row).collect::<Vec<_>>(), |_, _| None)?;
    Ok(0)
}

fn state(job: &JobView) -> String {
    match &job.state {
        JobState::Running => "running",
        JobState::Done(_) => "done",
        JobState::Failed(_) => "failed",
        JobState::Cancelled => "cancelled",
    }
    .to_owned()
}

/// The step that it is at, or why it failed.
fn outcome(job: &JobView) -> String {
    match &job.state {
        JobState::Running => job.stages.last().map(|stage| stage.name.clone()).unwrap_or_default(),
        JobState::Failed(error) => error.message.lines().next().unwrap_or_default().to_owned(),
        JobState::Done(_) | JobState::Cancelled => String::new(),
    }
}

async fn cancel(jobs: Vec<String>) -> anyhow::Result<u8> {
    let parsed: Vec<JobId> = jobs.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
    let client = Client::connect().await?;
    let mut status = 0;
    for job in parsed {
        match cancel_one(&client, job).await.with_context(|| format!("cannot cancel {job}")) {
            Ok(()) => line(&format!("cancelled {job}"))?,
            Err(error) => {
                say(&error);
                status = FAILED;
            }
        }
    }
    Ok(status)
}

async fn cancel_one(client: &Client, job: JobId) -> anyhow::Result<()> {
    answer(client.rpc.cancel_job(soon(), job)).await?;
    let mut seq = 0;
    loop {
        let view = answer(client.rpc.watch_job(watching(), job, seq)).await?;
        seq = view.seq;
        match view.state {
            JobState::Running => {}
            JobState::Cancelled => return Ok(()),
            JobState::Done(_) => anyhow::bail!("it was done before"),
            JobState::Failed(error) => anyhow::bail!("it failed before: {}", error.message),
        }
    }
}

/// `job-7` or `7`.
fn parse(text: &str) -> anyhow::Result<JobId> {
    let number = text.strip_prefix("job-").unwrap_or(text).parse();
    number.map(JobId).map_err(|_| explained(format!("{text:?} is not a job"), "see: banger job list"))
}
