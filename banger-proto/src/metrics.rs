//! What there is in numbers: `system status` and `system metrics` of the command line, and what the
//! daemon answers to a program that collects metrics.

use crate::model::{DaemonInfo, VmRecord};
use banger_policy::lifecycle::State;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What there is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Numbers {
    /// The daemon.
    pub daemon: DaemonInfo,
    /// Its VMs.
    pub vms: Vms,
    /// Jobs at work.
    pub jobs_running: usize,
    /// The same by user.
    pub users: Vec<User>,
}

/// What one user has of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct User {
    /// The user's uid.
    pub owner: u32,
    /// The login name that the uid had when the VMs were made.
    pub owner_name: String,
    /// The user's VMs.
    pub vms: Vms,
}

impl User {
    /// One for each owner.
    #[must_use]
    pub fn all_of(vms: &[VmRecord]) -> Vec<Self> {
        let mut of_each: BTreeMap<(u32, &str), Vec<VmRecord>> = BTreeMap::new();
        for vm in vms {
            of_each.entry((vm.owner, &vm.owner_name)).or_default().push(vm.clone());
        }
        let user = |((owner, name), vms): ((u32, &str), Vec<VmRecord>)| Self {
            owner,
            owner_name: name.to_owned(),
            vms: Vms::of(&vms),
        };
        of_each.into_iter().map(user).collect()
    }

    /// A login name may be any text in a directory of the network's: what ends a label's value is
    /// escaped.
    fn labels(&self) -> String {
        let name = self.owner_name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{{user=\"{name}\",uid=\"{}\"}}", self.owner)
    }
}

/// VMs, and what those that run were given and use.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Vms {
    /// Made, and never started.
    pub created: usize,
    /// Running.
    pub running: usize,
    /// Stopped.
    pub stopped: usize,
    /// In error.
    pub error: usize,
    /// Users who have VMs.
    pub owners: usize,
    /// vCPUs of running VMs.
    pub vcpus: u64,
    /// Memory that running VMs were given, bytes.
    pub memory_bytes: u64,
    /// Memory that running VMs use, bytes.
    pub resident_bytes: u64,
    /// What running VMs use of a CPU, percent.
    pub cpu_percent: f64,
    /// Size of all root disks, bytes.
    pub root_disk_bytes: u64,
    /// What work disks of running VMs take, bytes.
    pub work_disk_bytes: u64,
}

impl Vms {
    /// Adds up.
    #[must_use]
    pub fn of(vms: &[VmRecord]) -> Self {
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
    /// The text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats).
    #[must_use]
    pub fn metrics(&self) -> String {
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
    use crate::time::Timestamp;

    #[test]
    fn every_metric_has_its_help_its_type_and_a_number() {
        let daemon = DaemonInfo {
            version: "0".to_owned(),
            protocol: 1,
            started_at: Timestamp::from_unix(1_700_000_000),
            vmm_version: String::new(),
            vmm_sha256: String::new(),
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
