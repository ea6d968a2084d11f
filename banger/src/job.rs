//! Following a job to its end, and cancelling it when the user interrupts.

use crate::client::{Client, answer, soon, watching};
use crate::error::Explained;
use crate::interrupt::Interrupts;
use crate::progress::Progress;
use banger_proto::model::{ImageRecord, JobId, JobResult, JobState, JobView, KernelRecord, VmRecord};

/// How a job that we followed ended. A failure is an error.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As asked for.
    Done(JobResult),
    /// The user interrupted: end with this status. A job that was faster than the interruption has
    /// a result.
    Interrupted(u8, Option<JobResult>),
}

/// What an interruption means to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// The first one cancels it and waits for the rollback, the second one leaves that to the
    /// daemon.
    Cancel,
    /// The job goes on, without us: it is a clean-up.
    Leave,
}

/// Waits for the end of a job.
///
/// # Errors
/// Why the job failed, or a lost connection.
pub(crate) async fn follow(
    client: &Client,
    job: JobId,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
    on_interrupt: OnInterrupt,
) -> anyhow::Result<Ended> {
    let mut interrupted = None;
    let mut seq = 0;
    loop {
        let view = tokio::select! {
            view = answer(client.rpc.watch_job(watching(), job, seq)) => view?,
            status = interrupts.next() => {
                if interrupted.is_some() || on_interrupt == OnInterrupt::Leave {
                    progress.say(&format!("not waiting any longer: bangerd finishes {job} by itself"));
                    return Ok(Ended::Interrupted(status, None));
                }
                interrupted = Some(status);
                progress.say("interrupted: undoing what was done (interrupt again to leave that to bangerd)");
                answer(client.rpc.cancel_job(soon(), job)).await?;
                continue;
            }
        };
        seq = view.seq;
        progress.update(&view);
        if let Some(ended) = end_of(view, interrupted) {
            return ended;
        }
    }
}

fn end_of(view: JobView, interrupted: Option<u8>) -> Option<anyhow::Result<Ended>> {
    Some(match (view.state, interrupted) {
        (JobState::Running, _) => return None,
        (JobState::Done(result), None) => Ok(Ended::Done(result)),
        (JobState::Done(result), Some(status)) => Ok(Ended::Interrupted(status, Some(result))),
        (JobState::Cancelled, Some(status)) => Ok(Ended::Interrupted(status, None)),
        (JobState::Cancelled, None) => Err(anyhow::anyhow!("it was cancelled from elsewhere")),
        (JobState::Failed(error), _) => Err(anyhow::Error::new(Explained::from(error))),
    })
}

/// The VM of a result.
///
/// # Errors
/// When the daemon answers with something else, which no daemon of this version does.
pub(crate) fn vm(result: JobResult) -> anyhow::Result<VmRecord> {
    match result {
        JobResult::Vm(vm) => Ok(*vm),
        other => Err(unexpected(&other)),
    }
}

/// The image of a result.
///
/// # Errors
/// As [`vm`].
pub(crate) fn image(result: JobResult) -> anyhow::Result<ImageRecord> {
    match result {
        JobResult::Image(image) => Ok(*image),
        other => Err(unexpected(&other)),
    }
}

/// The kernel of a result.
///
/// # Errors
/// As [`vm`].
pub(crate) fn kernel(result: JobResult) -> anyhow::Result<KernelRecord> {
    match result {
        JobResult::Kernel(kernel) => Ok(*kernel),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(result: &JobResult) -> anyhow::Error {
    let what = match result {
        JobResult::Vm(_) => "a VM",
        JobResult::Image(_) => "an image",
        JobResult::Kernel(_) => "a kernel",
        JobResult::Text(_) => "a text",
    };
    anyhow::anyhow!("bangerd answered with {what}, which was not asked for")
}
