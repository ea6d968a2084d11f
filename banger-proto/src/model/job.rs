//! Work that takes time, and how far it is.

use super::{ApiError, ImageRecord, KernelRecord, VmRecord};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A unit of work that outlives the call that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobState {
    /// At work.
    Running,
    /// Done; what came of it.
    Done(JobResult),
    /// Failed; everything was undone.
    Failed(ApiError),
    /// Cancelled; everything was undone.
    Cancelled,
}

/// What a job made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobResult {
    /// A VM as it is now.
    Vm(Box<VmRecord>),
    /// An image.
    Image(Box<ImageRecord>),
    /// A kernel.
    Kernel(Box<KernelRecord>),
    /// Nothing is left to show, after a delete; a sentence.
    Text(String),
}

/// A step of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What it does, such as `disk` or `guest ready`.
    pub name: String,
    /// How long it took, milliseconds; `None` while it is at it.
    pub took_ms: Option<u64>,
    /// How far it is, such as `120 of 400 MiB`; may be empty.
    pub detail: String,
}

/// A job as seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id, which is in every log line that belongs to it.
    pub id: JobId,
    /// What it does, such as `start demo`.
    pub title: String,
    /// Whose.
    pub owner: u32,
    /// Grows with every change; what `watch_job` waits for.
    pub seq: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// The steps so far, oldest first; at most 32.
    pub stages: Vec<Stage>,
    /// What the user should know although nothing failed, such as a missing file to sync.
    pub warnings: Vec<String>,
    /// Where it stands.
    pub state: JobState,
}

/// Some of the jobs, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPage {
    /// At most 32, so that a page fits a frame.
    pub jobs: Vec<JobView>,
    /// Pass it on to get the rest.
    pub next: Option<JobId>,
}
