//! Errors about images and kernels.

use super::{DEFECT, FULL, LOOK, answer, failed, job, no_room, over_limit, records};
use crate::convert::ConvertError;
use crate::db::store::{IMAGES, Kind, Thing};
use crate::store::error::{StoreError, UsedBy};
use crate::stream::UploadError;
use banger_proto::model::{ApiError, ErrorCode};

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        answer(error.message(), told(&error))
    }
}

pub(super) fn told(error: &StoreError) -> (ErrorCode, String) {
    let (code, hint) = match error {
        StoreError::NotFound { kind, .. } => {
            return (ErrorCode::NotFound, format!("`banger {} list` shows what there is.", kind.word));
        }
        StoreError::Ambiguous { kind, .. } => {
            return (ErrorCode::Ambiguous, format!("Name it by its name; `banger {} list` shows them.", kind.word));
        }
        StoreError::NoneYet(kind) if is_image(kind) => {
            (ErrorCode::NotFound, "Import one: `banger image import ROOTFS.tar --name NAME`.")
        }
        StoreError::NoneYet(_) => (
            ErrorCode::NotFound,
            "Import the host's own: `banger kernel import /boot/vmlinuz-VERSION`. An administrator does it for everybody with --shared.",
        ),
        StoreError::Several(kind) => {
            let word = kind.word;
            return (ErrorCode::Ambiguous, format!("Choose one with --{word}; `banger {word} list` shows them."));
        }
        StoreError::SeeAll => (ErrorCode::Denied, "Leave --all out to see your own, or run it as root."),
        StoreError::Denied { .. } => (ErrorCode::Denied, "Root or a member of the group banger-admin can."),
        StoreError::ImportShared(_) => (ErrorCode::Denied, "Import it without --shared, for yourself."),
        StoreError::SharedAlready { kind, .. } => {
            let hint = format!("Take that one back first; `banger {} list --all` shows whose it is.", kind.word);
            return (ErrorCode::AlreadyExists, hint);
        }
        StoreError::InUse { kind, by, .. } => return (ErrorCode::InUse, in_use(kind, by)),
        StoreError::KernelNotShared { kernel: Some((owner, kernel)), .. } => {
            let hint = format!("Share that first: `banger kernel share {owner}/{kernel}`.");
            return (ErrorCode::Denied, hint);
        }
        StoreError::KernelNotShared { kernel: None, .. } => {
            (ErrorCode::Denied, "Nobody has a name for that kernel any more: register the image again, with another.")
        }
        StoreError::ImagesKernel(_) => {
            (ErrorCode::NotFound, "Name another with --kernel; `banger kernel list` shows which you may use.")
        }
        StoreError::KernelOfAnother(_) => {
            (ErrorCode::Denied, "Share it first with `banger kernel share`, or name another.")
        }
        StoreError::KernelGone => (ErrorCode::NotFound, "`banger kernel list` shows what there is."),

        StoreError::Name(_) | StoreError::TooLarge(_) | StoreError::NoDigest => (ErrorCode::BadRequest, ""),
        StoreError::KernelsOwnName(_) => (ErrorCode::BadRequest, "Give the kernel a name with --name."),
        StoreError::Taken { .. } => (ErrorCode::AlreadyExists, "Choose another name with --name, or delete it first."),
        StoreError::IsShared(_) => {
            (ErrorCode::Denied, "Pull it under another name with --name, or ask an administrator to pull it.")
        }
        StoreError::Limit(why) => return over_limit(why),
        StoreError::NoRoom(why) => return no_room(why),
        StoreError::Job(error) => return job(error),
        StoreError::Cancelled(_) => (ErrorCode::Cancelled, ""),

        StoreError::Upload(UploadError::Client(_) | UploadError::Idle | UploadError::TooLong) => {
            (ErrorCode::OperationFailed, "Try again.")
        }
        StoreError::Upload(UploadError::TooLarge(_)) => (ErrorCode::OperationFailed, ""),
        StoreError::Spool(_) | StoreError::Staging(_) | StoreError::Files(_) | StoreError::Upload(_) => {
            return failed(error);
        }
        StoreError::Convert { source, .. } => match source {
            ConvertError::Cancelled => (ErrorCode::Cancelled, ""),
            ConvertError::Full => (ErrorCode::NoSpace, FULL),
            ConvertError::Refused(_) => (ErrorCode::BadRequest, ""),
            ConvertError::Host(_) => (ErrorCode::OperationFailed, LOOK),
        },
        StoreError::OtherContent => {
            (ErrorCode::OperationFailed, "Import it again. If that fails, too, tell an administrator of this host.")
        }
        StoreError::Known => (ErrorCode::OperationFailed, ""),
        StoreError::Records(error) => return records(error),
        StoreError::OtherKind | StoreError::WorkerEnded(_) | StoreError::TaskEnded(_) => (ErrorCode::Internal, DEFECT),
    };
    (code, hint.to_owned())
}

fn is_image(kind: &Kind) -> bool {
    kind.word == IMAGES.word
}

fn in_use(kind: &Kind, by: &UsedBy) -> String {
    match by {
        UsedBy::Own(Thing::Vm(_)) => "Delete that VM first.".to_owned(),
        UsedBy::Own(Thing::Image(image)) => format!("Delete that image first: `banger image delete {image}`."),
        UsedBy::Told { what: using, .. } => {
            let off = if is_image(kind) { "image promote --private" } else { "kernel share --off" };
            let using = if matches!(using, Thing::Vm(_)) { "VM" } else { "image" };
            let what = kind.word;
            format!("Delete that {using} first, or take the {what} back from the others with `banger {off}`.")
        }
        UsedBy::Another(_) => {
            "Ask an administrator (root, or a member of the group banger-admin) to take it back from the others."
                .to_owned()
        }
    }
}
