//! What the daemon knows and shows. Field names are the JSON names and a contract with users'
//! scripts (docs/contract.md, "JSON"): add, never rename. No serde attribute that depends on the
//! format: these types cross the wire too.

mod error;
mod host;
mod job;
mod quota;
mod store;
mod vm;
mod workspace;

pub use error::{ApiError, ErrorCode, MAX_ERROR, cut};
pub use host::{Check, CheckStatus, DaemonInfo, Leak, LeakKind, Leaks};
pub use job::{JobId, JobPage, JobResult, JobState, JobView, Stage};
pub use quota::{Quota, QuotaLimit, QuotaPage};
pub use store::{ImageRecord, KernelRecord, LinkRequest, StoreKey, StorePage};
pub use vm::{
    CreateRequest, PublishRequest, PublishedPort, Refused, RefusedList, SetRequest, VmPage, VmRecord, VmRuntime,
    VmSpec, VmStats,
};
pub use workspace::{MAX_WORKSPACE, Workspace, WorkspaceMode};
