//! `system status` and `system metrics`: the host's banger in numbers, as far as the caller may see
//! it. Both show the same [`Numbers`]; bangerd answers its metrics with them as well.

use super::{job, list};
use crate::cli::{List, System};
use crate::client::{Client, answer, soon};
use crate::output::{self, amount};
use banger_proto::metrics::{Numbers, User, Vms};
use banger_proto::model::{JobState, JobView};

pub(super) async fn run(command: System) -> anyhow::Result<u8> {
    match command {
        System::Status(List { all, json }) => {
            let numbers = numbers(&Client::connect().await?, all).await?;
            if json.json { output::json(&numbers)? } else { show(&numbers)? }
        }
        System::Metrics(asked) => {
            output::print(&numbers(&Client::connect().await?, asked.all).await?.metrics())?;
        }
    }
    Ok(0)
}

async fn numbers(client: &Client, all: bool) -> anyhow::Result<Numbers> {
    let daemon = answer(client.rpc.info(soon())).await?;
    let records = list::records(client, all).await?;
    let (vms, users) = (Vms::of(&records), User::all_of(&records));
    let at_work = |job: &JobView| matches!(job.state, JobState::Running);
    let jobs_running = job::views(client).await?.iter().filter(|job| at_work(job)).count();
    Ok(Numbers { daemon, vms, jobs_running, users })
}

fn show(numbers: &Numbers) -> anyhow::Result<()> {
    let (daemon, vms) = (&numbers.daemon, &numbers.vms);
    let vmm = super::version::of_daemon(daemon).unwrap_or_else(|| "not found".to_owned());
    output::facts(&[
        ("bangerd", format!("{} (protocol {}), since {}", daemon.version, daemon.protocol, daemon.started_at)),
        ("firecracker", vmm),
        (
            "VMs",
            format!(
                "{} running, {} stopped, {} created, {} in error; of {} users",
                vms.running, vms.stopped, vms.created, vms.error, vms.owners
            ),
        ),
        (
            "given",
            format!(
                "{} vCPUs, {} of memory, root disks {}",
                vms.vcpus,
                amount(vms.memory_bytes),
                amount(vms.root_disk_bytes)
            ),
        ),
        (
            "used",
            format!(
                "{:.0}% of a CPU, {} of memory, work disks {}",
                vms.cpu_percent,
                amount(vms.resident_bytes),
                amount(vms.work_disk_bytes)
            ),
        ),
        ("jobs", format!("{} at work", numbers.jobs_running)),
    ])
}
