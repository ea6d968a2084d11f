//! The release of what belongs to no VM.

use super::orphans::{Folder, Orphan};
use crate::error::chain;
use crate::privileged::PrivilegedError;
use crate::store::Store;
use crate::vm::Context;
use crate::vm::error::VmError;
use crate::vm::teardown::remove_folder;
use banger_proto::helper::HelperError;

/// What becomes of disks, images and kernels.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    Kept,
    /// Images and kernels by the store that they are in.
    Removed(&'a Store),
}

/// True when nothing of it is left. What could not be done is in the journal.
pub(super) async fn release(ctx: &Context, orphan: &Orphan, data: Data<'_>) -> bool {
    let leak = orphan.leak();
    if matches!(data, Data::Kept) && orphan.is_data() {
        tracing::warn!(
            "{} {} belongs to no VM ({}): kept, `banger doctor --leaks --fix` removes it",
            leak.kind,
            leak.name,
            leak.detail
        );
        return false;
    }
    let released = match orphan {
        Orphan::Group { owner, vm, .. } => {
            // An actor of a row that somebody removed by hand would go on with it.
            ctx.forget(vm);
            ctx.machine.end_group(*owner, vm).await.map_err(VmError::from)
        }
        Orphan::Held { quarantined: true, .. } => {
            tracing::error!("{} {}: quarantined, left alone; an administrator must look", leak.kind, leak.name);
            return false;
        }
        Orphan::Held { vm, .. } => {
            let released = gone(ctx.privileged.release(*vm).await);
            match data {
                Data::Kept => released,
                Data::Removed(_) => released.and(gone(ctx.privileged.discard_disk(*vm).await)),
            }
        }
        Orphan::Folder { path, of } => match data {
            Data::Removed(store) if *of == Folder::Store => store.remove_unknown(path).await.map_err(VmError::from),
            _ => remove_folder(path),
        },
    };
    match released {
        Ok(()) => tracing::warn!("{} {} belonged to no VM ({}): released", leak.kind, leak.name, leak.detail),
        Err(ref error) => tracing::warn!("{} {} belongs to no VM: {}", leak.kind, leak.name, error.message()),
    }
    released.is_ok()
}

/// Never held is as good as released.
fn gone(result: Result<(), PrivilegedError>) -> Result<(), VmError> {
    match result {
        Err(error) if error.refusal() == Some(HelperError::NotYours) => Ok(()),
        other => other.map_err(|error| {
            tracing::debug!("{}", chain(&error));
            error.at("the helper").into()
        }),
    }
}
