//! From a row to what users see. Paths follow from the id, names from the owner.

use super::Context;
use crate::db::VmRow;
use crate::handles::Handles;
use crate::util::text;
use banger_policy::net::AddressIndex;
use banger_proto::model::{VmRecord, VmRuntime, VmStats};
use std::net::Ipv4Addr;

pub(super) fn of(row: &VmRow, ctx: &Context, stats: Option<VmStats>) -> VmRecord {
    let paths = ctx.paths.vm(&row.id);
    let Handles { pid: _, tap_device, base_loop, cow_loop, dm_name, dm_dev, generation, guest_ip } = row.mirror.clone();
    // One that runs has the address of its start. A network that was made smaller leaves others
    // without an address until their next start.
    let network = ctx.config.now().network;
    let next = network.index(row.address_index).ok().map(|index| network.guest(index));
    let address = guest_ip.or(next).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let program = ctx.actors.lock().get(&row.id).and_then(|entry| entry.shared.program());
    let index = AddressIndex::leased(row.address_index).ok();
    VmRecord {
        id: row.id,
        name: row.name.clone(),
        image_id: row.image_id,
        image_name: row.image_name.clone(),
        kernel_id: row.kernel_id,
        owner: row.owner,
        owner_name: row.owner_name.clone(),
        state: row.state,
        created_at: row.created_at,
        updated_at: row.updated_at,
        last_touched_at: row.last_touched_at,
        restart: row.restart,
        spec: row.spec,
        runtime: VmRuntime {
            state: row.state,
            guest_ip: address,
            api_sock_path: text(&paths.api_socket()),
            vsock_path: text(&paths.vsock()),
            vsock_cid: index.map_or(0, AddressIndex::cid),
            log_path: text(&paths.console()),
            metrics_path: text(&paths.metrics()),
            dns_name: dns_name(row, ctx),
            vm_dir: text(&paths.dir),
            system_overlay_path: text(&paths.cow),
            work_disk_path: text(&paths.work_disk()),
            last_error: row.last_error.clone(),
            tap_device,
            base_loop,
            cow_loop,
            dm_name,
            dm_dev,
            generation,
            vmm_sha256: program.as_ref().map(|program| program.sha256.to_string()),
            vmm_version: program.map(|program| program.version),
        },
        stats,
        workspace: row.workspace.clone(),
        network: row.network.clone(),
        published: Some(super::publish::shown(row, ctx)),
        refused: ctx.refusals.count(&row.id),
    }
}

/// For a list, of which a page must fit a frame: the first line of the reason, no raw metrics, no
/// workspace, no list of destinations, no ports and no count of refusals.
pub(super) fn brief(mut record: VmRecord) -> VmRecord {
    const REASON: usize = 200;
    let reason = record.runtime.last_error.lines().next().unwrap_or_default();
    record.runtime.last_error = reason.chars().take(REASON).collect();
    (record.workspace, record.published, record.refused) = (None, None, None);
    record.network.allow.clear();
    if let Some(stats) = &mut record.stats {
        stats.metrics_raw.clear();
    }
    record
}

/// The name that is answered while the VM runs; empty when none is.
fn dns_name(row: &VmRow, ctx: &Context) -> String {
    let answered = ctx.config.now().dns.listen.is_some();
    if answered { banger_policy::dns::name(&row.name, &row.who()) } else { String::new() }
}
