//! Why something of the store was not done. Causes are values here, with their sources; what a user
//! reads of them is made in `rpc/answer`.

use crate::convert::ConvertError;
use crate::db::DbError;
use crate::db::store::{Kind, Thing};
use crate::error::{OverLimit, chain, step};
use crate::jobs::{Cancelled, JobError};
use crate::room::NoRoom;
use crate::stream::UploadError;
use crate::util::WorkerEnded;
use banger_policy::access::Refusal;
use banger_policy::name::NameError;
use std::io;
use tokio::task::JoinError;

/// Why a request, or an import, was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("no such {}: {shown}", .kind.word)]
    NotFound { kind: &'static Kind, shown: String },
    #[error("{shown} fits more than one {}", .kind.word)]
    Ambiguous { kind: &'static Kind, shown: String },
    /// None was named, and there is none.
    #[error("there is no {} for you yet", .0.word)]
    NoneYet(&'static Kind),
    /// None was named, and nothing says which.
    #[error("there is more than one {}", .0.word)]
    Several(&'static Kind),
    #[error("only root and the group banger-admin see what everyone has stored")]
    SeeAll,
    #[error("{word}: {why}")]
    Denied { word: String, why: Refusal },
    #[error("{0}")]
    ImportShared(Refusal),
    #[error("another {} of the name {name} is shared already", .kind.word)]
    SharedAlready { kind: &'static Kind, name: String },
    #[error("{} {word} {}", .kind.word, .by.what())]
    InUse { kind: &'static Kind, word: String, by: UsedBy },
    /// An image shall be everybody's.
    #[error("the kernel of the image {image} is not shared")]
    KernelNotShared { image: String, kernel: Option<(String, String)> },
    #[error("the kernel of the image {0} is not one that you may use")]
    ImagesKernel(String),
    #[error("the kernel {0} is another user's, and not shared")]
    KernelOfAnother(String),
    #[error("the kernel was deleted, or taken back from you, while the image was made")]
    KernelGone,

    #[error(transparent)]
    Name(#[from] NameError),
    /// The name that a kernel without one would get.
    #[error(transparent)]
    KernelsOwnName(NameError),
    #[error("a root file system of {0} bytes is over 128G")]
    TooLarge(u64),
    #[error("no image has this digest")]
    NoDigest,
    #[error("{} {name} exists already", .kind.word)]
    Taken { kind: &'static Kind, name: String },
    #[error("{0} is shared, and only administrators change what everybody uses")]
    IsShared(String),
    #[error(transparent)]
    Limit(#[from] OverLimit),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Job(#[from] JobError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),

    #[error("cannot write the upload")]
    Spool(#[source] io::Error),
    #[error("cannot make the staging folder")]
    Staging(#[source] io::Error),
    #[error("cannot change the store")]
    Files(#[source] io::Error),
    #[error("the upload failed")]
    Upload(#[from] UploadError),
    /// What was being made of the upload, and why it was not.
    #[error("{what}")]
    Convert { what: &'static str, source: ConvertError },
    #[error("what was made is not what its digest stands for")]
    OtherContent,
    #[error("it was imported just now")]
    Known,
    #[error("an upload became something else")]
    OtherKind,
    #[error("the daemon could not keep its records")]
    Records(#[from] DbError),
    #[error(transparent)]
    WorkerEnded(#[from] WorkerEnded),
    #[error("a task ended")]
    TaskEnded(#[source] JoinError),
}

/// Whose VM or image uses what was to be removed, as far as the peer may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UsedBy {
    /// The peer's own.
    Own(Thing),
    /// Another user's; the peer is an administrator.
    Told { owner: String, what: Thing },
    /// Another user's, whose name is not the peer's to know.
    Another(Thing),
}

impl UsedBy {
    fn what(&self) -> String {
        match self {
            Self::Own(Thing::Vm(vm)) => format!("is used by VM {vm}"),
            Self::Own(Thing::Image(image)) => format!("is the kernel of image {image}"),
            Self::Told { owner, what: Thing::Vm(vm) } => format!("is used by VM {owner}/{vm}"),
            Self::Told { owner, what: Thing::Image(image) } => format!("is the kernel of image {owner}/{image}"),
            Self::Another(Thing::Vm(_)) => "is shared, and a VM of another user uses it".to_owned(),
            Self::Another(Thing::Image(_)) => "is shared, and an image of another user names it".to_owned(),
        }
    }
}

impl StoreError {
    /// What failed and why.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Spool(_) | Self::Staging(_) | Self::Files(_) | Self::Upload(_) => step(self),
            Self::Convert { source: ConvertError::Cancelled, .. } => Cancelled.to_string(),
            Self::Convert { what, source: ConvertError::Full } => format!("{what} does not fit the host's disk"),
            Self::Convert { source: ConvertError::Refused(why), .. } => why.clone(),
            Self::Convert { what, source: ConvertError::Host(why) } => format!("{what}: {why}"),
            Self::NoRoom(_) | Self::Records(_) | Self::WorkerEnded(_) | Self::TaskEnded(_) => chain(self),
            // Their text is the whole of it.
            _ => self.to_string(),
        }
    }
}
