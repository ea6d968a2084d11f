//! `system status` and `system metrics`: the host's banger in numbers, as far as the caller may see
//! it. Both show the same [`Numbers`].

use super::{job, list};
use crate::cli::{List, System};
use crate::client::{Client, answer, soon};
use crate::output::{self, amount};
use banger_policy::lifecycle::State;
use banger_proto::model::{DaemonInfo, JobState, JobView, VmRecord};
use serde::Serialize;
use std::collections::BTreeSet;

pub(super) async fn run(command: System) -> anyhow::Result<u8> {
    match command {
        System::Status(List { all, json }) => {
            let numbers = Numbers::of(&Client::connect().await?, all).await?;
            if json.json { output::json(&numbers)? } else { numbers.show()? }
        }
        System::Metrics(asked) => {
            output::print(&Numbers::of(&Client::connect().await?, asked.all).await?.metrics())?;
        }
    }
    Ok(0)
}

/// What there is now.
#[derive(Debug, Serialize)]
struct Numbers {
    daemon: DaemonInfo,
    vms: Vms,
    jobs_running: usize,
    users: Vec<User>,
}

/// What one user has of it.
#[derive(Debug, Default, PartialEq, Serialize)]
struct User {
    owner: u32,
    owner_name: String,
    vms: Vms,
}

impl User {
    fn all_of(vms: &[VmRecord]) -> Vec<Self> {
        let owners: BTreeSet<(u32, &str)> = vms.iter().map(|vm| (vm.owner, &*vm.owner_name)).collect();
        let of = |(owner, name): (u32, &str)| {
            let own: Vec<VmRecord> =
                vms.iter().filter(|vm| vm.owner == owner && vm.owner_name == name).cloned().collect();
            Self { owner, owner_name: name.to_owned(), vms: Vms::of(&own) }
        };
        owners.into_iter().map(of).collect()
    }

    /// A login name may be any text in a directory of the network's: what ends a label's value is
    /// escaped.
    fn labels(&self) -> String {
        let name = self.owner_name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{{user=\"{name}\",uid=\"{}\"}}", self.owner)
    }
}

/// VMs, and what those that run were given and use.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Vms {
    created: usize,
    running: usize,
    stopped: usize,
    error: usize,
    owners: usize,
    vcpus: u64,
    memory_bytes: u64,
    resident_bytes: u64,
    cpu_percent: f64,
    root_disk_bytes: u64,
    work_disk_bytes: u64,
}

impl Vms {
    fn of(vms: &[VmRecord]) -> Self {
        let mut sum = Self { owners: vms.iter().map(|vm| vm.owner).collect::<BTreeSet<_>>().len(), ..Self::default() };
        for vm in vms {
            match vm.state {
                State::Created => sum.created += 1,
                State::Running => sum.running += 1,
                State::Stopped => sum.stopped += 1,
                State::Error => sum.error += 1,
            }
            // The root disk is taken whole when a VM is made.
            sum.root_disk_bytes = sum.root_disk_bytes.saturating_add(vm.spec.system_overlay_size_bytes);
            if vm.state != State::Running {
                continue;
            }
            sum.vcpus = sum.vcpus.saturating_add(vm.spec.vcpu_count.into());
            sum.memory_bytes = sum.memory_bytes.saturating_add(u64::from(vm.spec.memory_mib) << 20);
            if let Some(stats) = &vm.stats {
                sum.resident_bytes = sum.resident_bytes.saturating_add(stats.rss_bytes);
                sum.cpu_percent += stats.cpu_percent;
                sum.work_disk_bytes = sum.work_disk_bytes.saturating_add(stats.work_disk_bytes);
            }
        }
        sum
    }
}

impl Numbers {
    async fn of(client: &Client, all: bool) -> anyhow::Result<Self> {
        let daemon = answer(client.rpc.info(soon())).await?;
        let records = list::records(client, all).await?;
        let (vms, users) = (Vms::of(&records), User::all_of(&records));
        let at_work = |job: &JobView| matches!(job.state, JobState::Running);
        let jobs_running = job::views(client).await?.iter().filter(|job| at_work(job)).count();
        Ok(Self { daemon, vms, jobs_running, users })
    }

    fn show(&self) -> anyhow::Result<()> {
        let (daemon, vms) = (&self.daemon, &self.vms);
        let vmm = if daemon.vmm_version.is_empty() { "not found" } else { &daemon.vmm_version };
        output::facts(&[
            ("bangerd", format!("{} (protocol {}), since {}", daemon.version, daemon.protocol, daemon.started_at)),
            ("firecracker", vmm.to_owned()),
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
            ("jobs", format!("{} at work", self.jobs_running)),
        ])
    }

    /// The text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats).
    fn metrics(&self) -> String {
        let vms = &self.vms;
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, lines: &[(&str, String)]| {
            text += &format!("# HELP banger_{name} {help}\n# TYPE banger_{name} gauge\n");
            text.extend(lines.iter().map(|(labels, value)| format!("banger_{name}{labels} {value}\n")));
        };
        let states = [
            ("{state=\"created\"}", vms.created),
            ("{state=\"running\"}", vms.running),
            ("{state=\"stopped\"}", vms.stopped),
            ("{state=\"error\"}", vms.error),
        ];
        gauge("vms", "VMs by state.", &states.map(|(labels, count)| (labels, count.to_string())));
        let started = self.daemon.started_at.unix();
        for (name, help, value) in [
            ("daemon_start_time_seconds", "When bangerd started.", started.to_string()),
            ("vm_owners", "Users who have VMs.", vms.owners.to_string()),
            ("vcpus", "vCPUs of running VMs.", vms.vcpus.to_string()),
            ("memory_bytes", "Memory that running VMs were given.", vms.memory_bytes.to_string()),
            ("memory_resident_bytes", "Memory that running VMs use.", vms.resident_bytes.to_string()),
            ("cpu_ratio", "CPUs that running VMs use.", (vms.cpu_percent / 100.0).to_string()),
            ("root_disk_bytes", "Size of all root disks.", vms.root_disk_bytes.to_string()),
            ("work_disk_bytes", "What work disks of running VMs take.", vms.work_disk_bytes.to_string()),
            ("jobs_running", "Jobs at work.", self.jobs_running.to_string()),
        ] {
            gauge(name, help, &[("", value)]);
        }
        let labels: Vec<String> = self.users.iter().map(User::labels).collect();
        let mut of_users = |name: &str, help: &str, value: fn(&Vms) -> String| {
            let values = self.users.iter().map(|user| value(&user.vms));
            let lines: Vec<(&str, String)> = labels.iter().map(String::as_str).zip(values).collect();
            gauge(name, help, &lines);
        };
        of_users("user_vms", "VMs of a user.", |vms| {
            [vms.created, vms.running, vms.stopped, vms.error].iter().sum::<usize>().to_string()
        });
        of_users("user_vms_running", "VMs of a user that run.", |vms| vms.running.to_string());
        of_users("user_vcpus", "vCPUs of a user's running VMs.", |vms| vms.vcpus.to_string());
        of_users("user_memory_bytes", "Memory that a user's running VMs were given.", |vms| {
            vms.memory_bytes.to_string()
        });
        of_users("user_memory_resident_bytes", "Memory that a user's running VMs use.", |vms| {
            vms.resident_bytes.to_string()
        });
        of_users("user_cpu_ratio", "CPUs that a user's running VMs use.", |vms| (vms.cpu_percent / 100.0).to_string());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::time::Timestamp;

    #[test]
    fn every_metric_has_its_help_its_type_and_a_number() {
        let daemon = DaemonInfo {
            version: "0".to_owned(),
            protocol: 1,
            started_at: Timestamp::from_unix(1_700_000_000),
            vmm_version: String::new(),
        };
        let vms = Vms { running: 2, cpu_percent: 150.0, memory_bytes: 1 << 30, ..Vms::default() };
        let odd = User { owner: 7, owner_name: "a\"b\\c\nd".to_owned(), vms: Vms { running: 1, ..Vms::default() } };
        let text = Numbers { daemon, vms, jobs_running: 3, users: vec![odd] }.metrics();
        assert!(text.contains(r#"banger_user_vms_running{user="a\"b\\c\nd",uid="7"} 1"#), "{text}");
        assert!(
            text.contains("banger_vms{state=\"running\"} 2\n") && text.contains("banger_cpu_ratio 1.5\n"),
            "{text}"
        );
        assert!(
            text.contains("banger_memory_bytes 1073741824\n") && text.contains("banger_jobs_running 3\n"),
            "{text}"
        );
        let mut helped = BTreeSet::new();
        for line in text.lines() {
            match line.strip_prefix("# HELP ") {
                Some(rest) => drop(helped.insert(rest.split(' ').next().unwrap_or_default())),
                None if line.starts_with("# TYPE ") => assert!(line.ends_with(" gauge"), "{line}"),
                None => {
                    let (name, value) = line.rsplit_once(' ').unwrap_or_default();
                    assert!(helped.contains(name.split('{').next().unwrap_or_default()), "{line}");
                    assert!(value.parse::<f64>().is_ok(), "{line}");
                }
            }
        }
        assert_eq!(helped.len(), 16, "{text}");
    }

    #[test]
    fn no_vm_is_nothing() {
        assert_eq!(Vms::of(&[]), Vms::default());
    }
}
