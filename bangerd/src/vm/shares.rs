//! Each user's share of the host: found out from configuration and user database, and handed to
//! the machine before something of the user runs, and whenever the configuration has changed.

use super::Context;
use super::error::VmError;
use crate::users::Named;
use banger_policy::shares::Share;
use std::sync::Arc;

/// What the user's VMs have together, by the configuration of now. Of a number without a name, or
/// whose name cannot be found out, what holds for everybody.
async fn share_of(ctx: &Arc<Context>, owner: u32) -> Share {
    let (users, limits) = (Arc::clone(&ctx.users), ctx.config.now().limits.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let name = match users.name_of(owner) {
            Named::As(name) => name,
            Named::Gone | Named::Unknown => String::new(),
        };
        let account = users.account(&name).filter(|account| account.uid == owner);
        limits.share_of(owner, &name, &account.map(|account| account.groups).unwrap_or_default())
    });
    // Only a runtime that ends does not answer: then nothing is started any more.
    asked.await.unwrap_or(Share::BUILT_IN)
}

/// Gives a user the share, before something of the user runs.
///
/// # Errors
/// When the kernel does not take it: a VM without its bounds does not run.
pub(super) async fn take(ctx: &Arc<Context>, owner: u32) -> Result<(), VmError> {
    let share = share_of(ctx, owner).await;
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
/// and tried again with the user's next start.
pub(crate) async fn give_all(ctx: &Arc<Context>) {
    for owner in ctx.machine.owners() {
        if let Err(error) = take(ctx, owner).await {
            tracing::error!(banger_uid = owner, "{}", error.message());
        }
    }
}
