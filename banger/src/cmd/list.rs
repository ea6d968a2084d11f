//! `vm list`, `ps`, `vm show`.

use crate::cli::{Json, List};
use crate::client::{Client, answer, soon};
use crate::output::{self, age, amount, facts, line, short, size, state_colour, table};
use anyhow::Context as _;
use banger_proto::model::VmRecord;
use banger_proto::time::Timestamp;

const STATE_COLUMN: usize = 1;

/// All pages.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(super) async fn records(client: &Client, all: bool) -> anyhow::Result<Vec<VmRecord>> {
    let (mut vms, mut after) = (Vec::new(), None);
    loop {
        let page = answer(client.rpc.list_vms(soon(), all, after)).await.context("cannot list the VMs")?;
        vms.extend(page.vms);
        after = page.next;
        if after.is_none() {
            vms.sort_by(|a, b| (&a.owner_name, &a.name).cmp(&(&b.owner_name, &b.name)));
            return Ok(vms);
        }
    }
}

pub(super) async fn list(options: List) -> anyhow::Result<u8> {
    let vms = records(&Client::connect().await?, options.all).await?;
    if options.json.json {
        output::json(&vms)?;
        return Ok(0);
    }
    if vms.is_empty() {
        output::note("no VMs; make one with: banger vm run");
        return Ok(0);
    }
    show_table(&vms, options.all)?;
    Ok(0)
}

/// VMs, with their owners or without.
///
/// # Errors
/// When nobody reads our output any more.
pub(super) fn show_table(vms: &[VmRecord], owners: bool) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let mut header = vec!["NAME", "STATE", "IMAGE", "CPU", "MEMORY", "ADDRESS", "DNS NAME", "AGE", "REASON"];
    if owners {
        header.insert(0, "OWNER");
        header.insert(header.len() - 1, "USE");
    }
    let row = |vm: &VmRecord| {
        let mut row = vec![
            vm.name.to_string(),
            vm.state.to_string(),
            vm.image_name.to_string(),
            vm.spec.vcpu_count.to_string(),
            size(u64::from(vm.spec.memory_mib) << 20),
            vm.runtime.guest_ip.to_string(),
            vm.runtime.dns_name.clone(),
            age(vm.created_at, now),
            first_line(&vm.runtime.last_error),
        ];
        if owners {
            row.insert(0, vm.owner_name.clone());
            let used = vm.stats.as_ref();
            let used = used.map(|stats| format!("{:.0}% {}", stats.cpu_percent, amount(stats.rss_bytes)));
            row.insert(row.len() - 1, used.unwrap_or_default());
        }
        row
    };
    let state = STATE_COLUMN + usize::from(owners);
    let rows: Vec<Vec<String>> = vms.iter().map(row).collect();
    table(&header, &rows, |column, cell| if column == state { state_colour(cell) } else { None })
}

/// A reason may quote the console; a table has one line for it.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

pub(super) async fn show(vm: String, json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let what = format!("cannot show {vm}");
    let vm = answer(client.rpc.show_vm(soon(), vm)).await.context(what)?;
    if json.json {
        output::json(&vm)?;
        return Ok(0);
    }
    facts(&[
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("owner", vm.owner_name.clone()),
        ("state", vm.state.to_string()),
        ("reason", first_line(&vm.runtime.last_error)),
        ("image", format!("{} ({})", vm.image_name, short(&vm.image_id))),
        ("kernel", short(&vm.kernel_id)),
        ("vcpus", vm.spec.vcpu_count.to_string()),
        ("memory", size(u64::from(vm.spec.memory_mib) << 20)),
        ("root disk", size(vm.spec.system_overlay_size_bytes)),
        ("work disk", size(vm.spec.work_disk_size_bytes)),
        ("restart", vm.restart.to_string()),
        ("network", vm.network.mode.to_string()),
        ("allowed", vm.network.allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("private", vm.network.private.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("refused", vm.refused.filter(|count| *count > 0).map(|count| refused(count, &vm)).unwrap_or_default()),
        ("address", vm.runtime.guest_ip.to_string()),
        ("dns name", vm.runtime.dns_name.clone()),
        ("console", vm.runtime.log_path.clone()),
        ("tap", vm.runtime.tap_device.clone().unwrap_or_default()),
        ("root device", vm.runtime.dm_dev.clone().unwrap_or_default()),
        ("firecracker", super::version::vmm(vm.runtime.vmm_version.as_deref(), vm.runtime.vmm_sha256.as_deref())),
        ("created", vm.created_at.to_string()),
        ("last used", vm.last_touched_at.to_string()),
    ])?;
    super::publish::show(vm.published.as_deref().unwrap_or_default())?;
    if let Some(stats) = &vm.stats {
        line(&format!(
            "used            {:.0}% of a CPU, {} of memory, root disk {}, work disk {} (at {})",
            stats.cpu_percent,
            amount(stats.rss_bytes),
            amount(stats.system_overlay_bytes),
            amount(stats.work_disk_bytes),
            stats.collected_at
        ))?;
    }
    Ok(0)
}

fn refused(count: u32, vm: &VmRecord) -> String {
    let what = if count == 1 { "destination" } else { "destinations" };
    format!("{count} {what}, see: banger vm refused {}", vm.name)
}
