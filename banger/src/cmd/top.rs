//! `banger top`: what VMs that run use, drawn again every two seconds.

use super::list;
use crate::cli::Top;
use crate::client::Client;
use crate::input::{self, Chunk};
use crate::output::{self, Screen, amount, line, size, table_lines};
use crate::signals;
use crate::terminal::{self, Raw};
use banger_policy::lifecycle::State;
use banger_proto::metrics::{User, Vms};
use banger_proto::model::VmRecord;
use std::time::Duration;
use tokio::signal::unix::SignalKind;

/// Between two pictures. The daemon measures more rarely (`stats_poll_interval`), but a VM that
/// comes or goes is seen at once.
const AGAIN: Duration = Duration::from_secs(2);
/// Keys that end it: q, and Ctrl-C and Ctrl-D, which are bytes in a raw terminal.
const ENDS: [u8; 3] = [b'q', 3, 4];

pub(super) async fn run(options: Top) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let all = options.list.all;
    if options.list.json.json {
        output::json(&by_use(list::records(&client, all).await?))?;
        return Ok(0);
    }
    if options.once || !terminal::interactive() {
        picture(&by_use(list::records(&client, all).await?), all).iter().try_for_each(|text| line(text))?;
        return Ok(0);
    }
    let mut ends = [signals::listen(SignalKind::terminate())?, signals::listen(SignalKind::hangup())?];
    let [terminate, hangup] = &mut ends;
    let _raw = Raw::enter();
    let screen = Screen::enter()?;
    let mut keys = input::read(None);
    loop {
        let vms = by_use(list::records(&client, all).await?);
        screen.draw(&picture(&vms, all), terminal::window().unwrap_or((80, 24)))?;
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            key = keys.recv() => match key {
                Some(Chunk::Bytes(typed)) if !typed.iter().any(|byte| ENDS.contains(byte)) => {}
                _ => return Ok(0),
            },
            () = signals::next(terminate) => return Ok(0),
            () = signals::next(hangup) => return Ok(0),
        }
    }
}

/// Those that run, the busiest first.
fn by_use(mut vms: Vec<VmRecord>) -> Vec<VmRecord> {
    vms.retain(|vm| vm.state == State::Running);
    let cpu = |vm: &VmRecord| vm.stats.as_ref().map_or(0.0, |stats| stats.cpu_percent);
    vms.sort_by(|a, b| cpu(b).total_cmp(&cpu(a)).then_with(|| a.name.cmp(&b.name)));
    vms
}

fn picture(vms: &[VmRecord], owners: bool) -> Vec<String> {
    let sum = Vms::of(vms);
    let mut lines = vec![
        format!(
            "{} running: {} vCPUs, {} of memory given; {:.0}% of a CPU, {} of memory, work disks {} used",
            sum.running,
            sum.vcpus,
            amount(sum.memory_bytes),
            sum.cpu_percent,
            amount(sum.resident_bytes),
            amount(sum.work_disk_bytes)
        ),
        String::new(),
    ];
    if owners {
        let rows: Vec<Vec<String>> = User::all_of(vms).iter().map(user_row).collect();
        lines.extend(table_lines(&["USER", "VMS", "VCPUS", "CPU", "MEMORY", "GIVEN", "WORK DISKS"], &rows));
        lines.push(String::new());
    }
    let mut header = vec!["NAME", "CPU", "VCPUS", "MEMORY", "GIVEN", "WORK DISK", "ADDRESS", "MEASURED"];
    if owners {
        header.insert(0, "OWNER");
    }
    let rows: Vec<Vec<String>> = vms.iter().map(|vm| row(vm, owners)).collect();
    lines.extend(table_lines(&header, &rows));
    lines
}

fn user_row(user: &User) -> Vec<String> {
    let User { owner_name, vms, .. } = user;
    vec![
        owner_name.clone(),
        vms.running.to_string(),
        vms.vcpus.to_string(),
        format!("{:.0}%", vms.cpu_percent),
        amount(vms.resident_bytes),
        amount(vms.memory_bytes),
        amount(vms.work_disk_bytes),
    ]
}

fn row(vm: &VmRecord, owners: bool) -> Vec<String> {
    let given = size(u64::from(vm.spec.memory_mib) << 20);
    // One that was started just now is measured soon.
    let used = vm.stats.as_ref().map(|stats| {
        let (cpu, memory) = (format!("{:.0}%", stats.cpu_percent), amount(stats.rss_bytes));
        (cpu, memory, amount(stats.work_disk_bytes), stats.collected_at.to_string())
    });
    let (cpu, memory, disk, at) = used.unwrap_or_default();
    let vcpus = vm.spec.vcpu_count.to_string();
    let mut row = vec![vm.name.to_string(), cpu, vcpus, memory, given, disk, vm.runtime.guest_ip.to_string(), at];
    if owners {
        row.insert(0, vm.owner_name.clone());
    }
    row
}
