//! From a row to what users see. Paths follow from the id, names from the owner.

use super::Context;
use crate::db::VmRow;
use crate::util::text;
use banger_policy::VmName;
use banger_proto::model::{VmRecord, VmRuntime, VmStats};
use std::net::Ipv4Addr;

pub(super) fn of(row: &VmRow, ctx: &Context, stats: Option<VmStats>) -> VmRecord {
    let paths = ctx.paths.vm(&row.id);
    // A network that was made smaller leaves addresses outside it: they are shown as none.
    let index = ctx.config.network.index(row.address_index).ok();
    let mirror = row.mirror.clone();
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
            guest_ip: index.map_or(Ipv4Addr::UNSPECIFIED, |index| ctx.config.network.guest(index)),
            api_sock_path: text(&paths.api_socket()),
            vsock_path: text(&paths.vsock()),
            vsock_cid: index.map_or(0, banger_policy::net::AddressIndex::cid),
            log_path: text(&paths.console()),
            metrics_path: text(&paths.metrics()),
            dns_name: dns_name(&row.name, row.owner, &row.owner_name),
            vm_dir: text(&paths.dir),
            system_overlay_path: text(&paths.cow),
            work_disk_path: text(&paths.work_disk()),
            last_error: row.last_error.clone(),
            tap_device: mirror.tap_device,
            base_loop: mirror.base_loop,
            cow_loop: mirror.cow_loop,
            dm_name: mirror.dm_name,
            dm_dev: mirror.dm_dev,
            generation: mirror.generation,
        },
        stats,
        workspace: row.workspace.clone(),
        published: Some(super::publish::shown(row, ctx)),
    }
}

/// For a list, of which a page must fit a frame: the first line of the reason, no raw metrics,
/// no workspace and no ports.
pub(super) fn brief(mut record: VmRecord) -> VmRecord {
    const REASON: usize = 200;
    let reason = record.runtime.last_error.lines().next().unwrap_or_default();
    record.runtime.last_error = reason.chars().take(REASON).collect();
    (record.workspace, record.published) = (None, None);
    if let Some(stats) = &mut record.stats {
        stats.metrics_raw.clear();
    }
    record
}

/// `<vm>.<user>.vm`; a user's name that is no DNS label becomes `u<uid>`.
fn dns_name(vm: &VmName, owner: u32, owner_name: &str) -> String {
    // The grammar of a VM's name is that of a label (RFC 1123).
    match owner_name.parse::<VmName>() {
        Ok(label) => format!("{vm}.{label}.vm"),
        Err(_) => format!("{vm}.u{owner}.vm"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_user_name_that_is_no_label_becomes_a_number() {
        let vm = "demo".parse().unwrap();
        assert_eq!(dns_name(&vm, 1001, "alice"), "demo.alice.vm");
        for odd in ["Alice", "a.b", "svc_x", "user$", ""] {
            assert_eq!(dns_name(&vm, 1001, odd), "demo.u1001.vm");
        }
    }
}
