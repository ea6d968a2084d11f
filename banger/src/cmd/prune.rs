//! `vm prune`: the caller's VMs that do not run are shown, and removed if the caller says so.

use crate::client::Client;
use crate::cmd::lifecycle::{self, Verb};
use crate::cmd::list;
use crate::error::explained;
use crate::{output, terminal};
use anyhow::Context as _;
use banger_policy::VmId;
use banger_policy::lifecycle::State;
use banger_proto::model::VmRecord;
use std::collections::BTreeSet;

pub(super) async fn run(force: bool) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let mut vms = idle(&client).await?;
    if vms.is_empty() {
        output::note("none of your VMs is stopped; nothing to remove");
        return Ok(0);
    }
    list::show_table(&vms, false)?;
    if !force {
        agreed(vms.len()).context("removed nothing")?;
        // While the question stood, a VM may have been started: it is in use.
        let shown: BTreeSet<VmId> = vms.iter().map(|vm| vm.id).collect();
        vms = idle(&client).await?;
        vms.retain(|vm| shown.contains(&vm.id));
    }
    lifecycle::on_all(&client, Verb::Prune, &vms, 0).await
}

async fn idle(client: &Client) -> anyhow::Result<Vec<VmRecord>> {
    let mut vms = list::records(client, false).await?;
    vms.retain(|vm| vm.state != State::Running);
    Ok(vms)
}

/// # Errors
/// When the caller says anything but yes, or is not there to be asked.
fn agreed(count: usize) -> anyhow::Result<()> {
    if !terminal::interactive() {
        return Err(explained(
            "there is no terminal to ask on",
            "to remove them without a question: banger vm prune -f",
        ));
    }
    let what =
        if count == 1 { "this VM and its disks".to_owned() } else { format!("these {count} VMs and their disks") };
    output::question(&format!("Remove {what} for good? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    anyhow::ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "the answer was not yes");
    Ok(())
}
