//! Names in private networks: each running guest is told the other VMs of its network, so that
//! `ping db` means the VM `db` of the same owner there. The guest keeps them in its `/etc/hosts`;
//! no guest asks the host for a name.

use super::Vms;
use super::machine::Running;
use crate::db::VmRow;
use banger_policy::access::Owner;
use banger_policy::net::{AddressIndex, Network};
use banger_policy::{VmId, VmName, dns};
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::Instrument as _;

/// A guest's own name for itself, which no VM takes away.
const LOCALHOST: &str = "localhost";
/// VMs in one list: what an agent takes (`MAX_LIST`), with the longest names.
const MOST: usize = 5000;
/// A guest may be frozen, or its agent just be started again.
const AGAIN: Duration = Duration::from_secs(30);
const TRIES: u32 = 5;
/// Between two rounds, each of which reads all rows: whoever changes a VM again and again makes the
/// daemon read them no more often. Guests follow within a second nevertheless (docs/contract.md).
const PAUSE: Duration = Duration::from_millis(300);

/// Wakes the task that tells guests.
#[derive(Debug, Default)]
pub(crate) struct Fellows {
    changed: Notify,
}

impl Fellows {
    /// A VM came, went, started or changed its network.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Waits for a change, but for a pause first: all changes in it are one.
    async fn next_round(&self) {
        sleep(PAUSE).await;
        self.changed.notified().await;
    }
}

/// What a guest was told in its present boot.
#[derive(Debug)]
struct Told {
    of: Weak<dyn Running>,
    lines: Vec<String>,
    telling: AbortHandle,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.telling.abort();
    }
}

impl Vms {
    /// Tells running guests who else is in their networks, whenever that has changed.
    pub(crate) fn tell_fellows_in_background(self: &Arc<Self>) {
        let vms = Arc::clone(self);
        tokio::spawn(async move {
            let mut told = HashMap::new();
            loop {
                vms.ctx.fellows.next_round().await;
                vms.tell_fellows(&mut told).await;
            }
        });
    }

    async fn tell_fellows(&self, told: &mut HashMap<VmId, Told>) {
        let rows = match self.ctx.db.vms(None, None, u32::MAX).await {
            Ok(rows) => rows,
            Err(error) => return tracing::warn!("no guest is told of its network: {}", crate::error::chain(&error)),
        };
        let there: HashSet<VmId> = rows.iter().map(|row| row.id).collect();
        told.retain(|vm, _| there.contains(vm));
        let networks = networks(&rows, self.ctx.config.now().network);
        for row in &rows {
            let entry = self.ctx.actors.lock().get(&row.id).cloned();
            let Some(running) = entry.and_then(|entry| entry.shared.running()) else { continue };
            let lines = lines(row, &networks);
            let of = Arc::downgrade(&running);
            let same = match told.get(&row.id) {
                Some(before) if before.of.ptr_eq(&of) => before.lines == lines,
                // A guest that has just begun has none of an earlier boot. One that is taken back
                // after a restart may have.
                _ => lines.is_empty() && row.network.private.is_none(),
            };
            if same {
                continue;
            }
            let (list, guest) = (lines.clone(), of.clone());
            drop(running);
            // By itself: nobody waits for a guest that does not answer. A newer list ends an older
            // one.
            let telling = async move {
                for _ in 0..TRIES {
                    // Not kept while it is waited for: its end must not wait for this.
                    let Some(telling) = guest.upgrade().map(|running| running.know(list.clone())) else { return };
                    match telling.await {
                        Ok(()) => return,
                        Err(error) => tracing::debug!("the guest is not told of its network: {error}"),
                    }
                    sleep(AGAIN).await;
                }
            };
            let span = tracing::info_span!("vm", banger_vm = %row.id, banger_uid = row.owner);
            let telling = tokio::spawn(telling.instrument(span)).abort_handle();
            told.insert(row.id, Told { of, lines, telling });
        }
    }
}

type Networks<'a> = HashMap<(Owner, &'a VmName), Vec<(VmId, &'a VmName, Ipv4Addr)>>;

fn networks(rows: &[VmRow], network: Network) -> Networks<'_> {
    let mut networks = Networks::new();
    for row in rows.iter().filter(|row| !row.making) {
        // It may run with an address that a new row would not get any more.
        let leased = AddressIndex::leased(row.address_index).map(|index| network.guest(index));
        if let (Some(private), Some(address)) = (&row.network.private, row.mirror.guest_ip.or(leased.ok())) {
            networks.entry((row.who(), private)).or_default().push((row.id, &row.name, address));
        }
    }
    networks
}

/// For `/etc/hosts` (hosts(5)): address, name, whole name.
fn lines(row: &VmRow, networks: &Networks<'_>) -> Vec<String> {
    let owner = row.who();
    let members = row.network.private.as_ref().and_then(|private| networks.get(&(owner.clone(), private)));
    let others = members.into_iter().flatten().filter(|(vm, name, _)| *vm != row.id && name.as_str() != LOCALHOST);
    others.take(MOST).map(|(_, name, address)| format!("{address} {name} {}", dns::name(name, &owner))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_without_end_are_a_few_rounds_and_the_last_one_is_seen() {
        const CHANGES: u32 = 1_000;
        let fellows = Fellows::default();
        let (made, mut rounds, mut seen) = (std::cell::Cell::new(0), 0, 0);
        let changes = async {
            for change in 1..=CHANGES {
                made.set(change);
                fellows.changed();
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_secs(1)).await;
        };
        let tell = async {
            loop {
                fellows.next_round().await;
                (rounds, seen) = (rounds + 1, made.get());
            }
        };
        tokio::select! {
            () = tell => {}
            () = changes => {}
        }
        assert_eq!(seen, CHANGES);
        assert!((2..=6).contains(&rounds), "{rounds} rounds");
    }
}
