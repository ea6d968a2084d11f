//! Each user's share of the host: found out from configuration and user database, and handed to
//! the machine before something of the user runs, and whenever the configuration has changed.

use super::Context;
use super::error::VmError;
use crate::users::Named;
use banger_policy::shares::Share;
use std::sync::Arc;

/// What the user's VMs have together, by the configuration of now.
///
/// # Errors
/// Why it is not known: the number has no name, or who it is and which groups the user is in cannot
/// be found out.
async fn share_of(ctx: &Arc<Context>, owner: u32) -> Result<Share, Named> {
    let (users, limits) = (Arc::clone(&ctx.users), ctx.config.now().limits.clone());
    let asked = tokio::task::spawn_blocking(move || match users.name_of(owner) {
        Named::As(name) => {
            let account = users.account(&name).filter(|account| account.uid == owner).ok_or(Named::Unknown)?;
            Ok(limits.share_of(owner, &name, &account.groups))
        }
        other => Err(other),
    });
    // Only a runtime that ends does not answer: then nothing is started any more.
    asked.await.unwrap_or(Err(Named::Unknown))
}

/// Gives a user the share, before something of the user runs. A number without a name has what its
/// VMs that run were given, or else what holds for everybody.
///
/// # Errors
/// When the user cannot be found out, and when the kernel does not take the share: a VM without its
/// bounds does not run.
pub(super) async fn take(ctx: &Arc<Context>, owner: u32) -> Result<(), VmError> {
    let share = match share_of(ctx, owner).await {
        Ok(share) => share,
        Err(Named::Unknown) => return Err(VmError::OwnerUnknown(owner)),
        Err(_) if ctx.machine.owners().contains(&owner) => return Ok(()),
        Err(_) => ctx.config.now().limits.share_of(owner, "", &[]),
    };
    Ok(ctx.machine.share(owner, share)?)
}

/// Does [`give_all`] now and after each reload of the configuration, as long as the daemon runs.
pub(crate) fn give_at_each_reload(ctx: &Arc<Context>) {
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        let mut changes = ctx.config.changes();
        loop {
            give_all(&ctx).await;
            changes.next().await;
        }
    });
}

/// Gives every user of whom something runs the share of now. What cannot be given is in the log,
/// and tried again with the user's next start. Who cannot be found out keeps the share: a smaller
/// one takes memory from VMs that run, so the kernel would end them.
pub(crate) async fn give_all(ctx: &Arc<Context>) {
    for owner in ctx.machine.owners() {
        let given = match share_of(ctx, owner).await {
            Ok(share) => ctx.machine.share(owner, share).map_err(VmError::from),
            Err(Named::Unknown) => Err(VmError::OwnerUnknown(owner)),
            Err(_) => Ok(()),
        };
        if let Err(error) = given {
            tracing::error!(banger_uid = owner, "the share of the host stays as it was: {}", error.message());
        }
    }
}
