//! `vm chown`: an administrator gives VMs away, one after the other.

use crate::client::{Client, answer, soon};
use crate::error::{FAILED, say};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended, OnInterrupt};
use crate::output::ReaderGone;
use crate::output::line;
use crate::progress::{Detail, Progress};
use anyhow::Context as _;

pub(super) async fn run(user: &str, vms: Vec<String>) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let mut status = 0;
    for vm in vms {
        let what = format!("cannot give {vm} to {user}");
        match give(&client, user, &vm).await.context(what) {
            Ok(0) => {}
            Ok(interrupted) => return Ok(interrupted),
            Err(error) if error.is::<ReaderGone>() => return Err(error),
            Err(error) => {
                say(&error);
                status = FAILED;
            }
        }
    }
    Ok(status)
}

async fn give(client: &Client, user: &str, vm: &str) -> anyhow::Result<u8> {
    let mut interrupts = Interrupts::listen()?;
    let job = answer(client.rpc.give_vm(soon(), vm.to_owned(), user.to_owned())).await?;
    let mut progress = Progress::new(Detail::Quiet);
    match job::follow(client, job, &mut progress, &mut interrupts, OnInterrupt::Leave).await? {
        Ended::Done(result) => {
            let given = job::vm(result)?;
            line(&format!("{} belongs to {} now", given.name, given.owner_name))?;
            Ok(0)
        }
        Ended::Interrupted(status, _) => Ok(status),
    }
}
