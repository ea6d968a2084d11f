//! Following a job to its end, and cancelling it when the user interrupts.

use crate::client::{Client, answer, patiently, soon, watching};
use crate::error::Explained;
use crate::interrupt::Interrupts;
use crate::progress::Progress;
use banger_proto::daemon::DaemonClient;
use banger_proto::model::{ImageRecord, JobId, JobResult, JobState, JobView, KernelRecord, VmRecord};
use std::future::ready;
use tarpc::client::RpcError;

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
    /// The same for what cannot be undone once it has begun.
    Withdraw,
    /// The job goes on, without us: it is a clean-up.
    Leave,
}

/// Why nothing came of a job, as far as we know.
enum Trouble {
    /// It has failed.
    Failed(anyhow::Error),
    /// Its end was not seen.
    Unseen(anyhow::Error),
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
    let ended = watch(client, &mut None, job, progress, interrupts, on_interrupt).await;
    ended.map_err(|(Trouble::Failed(error) | Trouble::Unseen(error))| error)
}

/// The same for a job whose result is nobody's when we do not see it: then the job is cancelled, by
/// a connection of its own. After a loss, `client` is another connection.
///
/// # Errors
/// As [`follow`].
pub(crate) async fn follow_or_cancel(
    client: &mut Client,
    job: JobId,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Ended> {
    let mut again = None;
    let ended = watch(client, &mut again, job, progress, interrupts, OnInterrupt::Cancel).await;
    if let Some(again) = again {
        *client = again;
    }
    match ended {
        Ok(ended) => Ok(ended),
        Err(Trouble::Failed(error)) => Err(error),
        Err(Trouble::Unseen(error)) => {
            let cancelling = async {
                let client = Client::connect_again().await?;
                answer(patiently(async || client.rpc.cancel_job(soon(), job).await)).await
            };
            let cancelled = tokio::select! {
                cancelled = cancelling => cancelled.is_ok(),
                _ = interrupts.next() => false,
            };
            Err(error.context(if cancelled {
                format!("{job} was cancelled, because its end could not be seen")
            } else {
                format!("the end of {job} could not be seen; see: banger job list")
            }))
        }
    }
}

/// The next view, shown.
async fn next(
    rpc: &DaemonClient,
    again: &mut Option<Client>,
    job: JobId,
    seq: u64,
    progress: &mut Progress,
) -> anyhow::Result<JobView> {
    let view = view(rpc, again, job, seq).await?;
    progress.update(&view).await;
    Ok(view)
}

/// The next view; after a loss by another connection, once.
async fn view(rpc: &DaemonClient, again: &mut Option<Client>, job: JobId, seq: u64) -> anyhow::Result<JobView> {
    let watch = async |rpc: &DaemonClient| patiently(async || rpc.watch_job(watching(), job, seq).await).await;
    match watch(again.as_ref().map_or(rpc, |client| &client.rpc)).await {
        // No loss of the connection. A daemon that is silent may have been replaced.
        Err(RpcError::Server(error)) => answer(ready(Err(RpcError::Server(error)))).await,
        Err(lost) => {
            let Ok(client) = Client::connect_again().await else { return answer(ready(Err(lost))).await };
            let answered = watch(&client.rpc).await;
            *again = Some(client);
            answer(ready(answered)).await
        }
        answered => answer(ready(answered)).await,
    }
}

async fn watch(
    client: &Client,
    again: &mut Option<Client>,
    job: JobId,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
    on_interrupt: OnInterrupt,
) -> Result<Ended, Trouble> {
    let mut interrupted = None;
    let mut seq = 0;
    loop {
        let view = tokio::select! {
            view = next(&client.rpc, again, job, seq, progress) => view.map_err(Trouble::Unseen)?,
            status = interrupts.next() => {
                if interrupted.is_some() || on_interrupt == OnInterrupt::Leave {
                    return Ok(left(job, progress, status));
                }
                interrupted = Some(status);
                progress.say(if on_interrupt == OnInterrupt::Withdraw {
                    "interrupted: what has begun of it cannot be undone (interrupt again to leave that to bangerd)"
                } else {
                    "interrupted: undoing what was done (interrupt again to leave that to bangerd)"
                });
                let rpc = again.as_ref().map_or(&client.rpc, |client| &client.rpc);
                let cancelled = patiently(async || rpc.cancel_job(soon(), job).await);
                tokio::select! {
                    cancelled = answer(cancelled) => cancelled.map_err(Trouble::Unseen)?,
                    status = interrupts.next() => return Ok(left(job, progress, status)),
                }
                continue;
            }
        };
        seq = view.seq;
        if let Some(ended) = end_of(view, interrupted) {
            return ended.map_err(Trouble::Failed);
        }
    }
}

/// What the second interruption does.
fn left(job: JobId, progress: &Progress, status: u8) -> Ended {
    progress.say(&format!("not waiting any longer: bangerd finishes {job} by itself"));
    Ended::Interrupted(status, None)
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
