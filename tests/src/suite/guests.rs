//! What scenarios do with VMs again and again: make one, look at it, use it, remove it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::command::Finished;
use super::scene::Scene;

/// A guest of the suites: the tiny image, small enough that several fit beside each other under
/// emulation.
pub(super) const TINY: &[&str] =
    &["--image", "tiny", "--vcpu", "1", "--memory", "256M", "--root-size", "128M", "--disk-size", "64M"];

/// The cgroup of all VMs (docs/architecture.md, "Processes").
const VMS: &str = "/sys/fs/cgroup/system.slice/bangerd.service/vms";

/// A VM of the suites. Not removed by itself: a scenario that ends early shows what it has left.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) owner: &'static str,
    pub(super) name: &'static str,
    pub(super) id: String,
}

impl Guest {
    /// `vm run --detach`: made, started and ready.
    pub(super) fn run(scene: &Scene, owner: &'static str, name: &'static str) -> Result<Self> {
        Self::run_with(scene, owner, name, &[])
    }

    /// The same with more flags.
    pub(super) fn run_with(scene: &Scene, owner: &'static str, name: &'static str, flags: &[&str]) -> Result<Self> {
        let words = [&["vm", "run", "--detach", "--name", name], TINY, flags].concat();
        scene.banger_long(owner, &words)?.ok()?.says(name)?;
        Self::known(scene, owner, name)
    }

    /// `vm create`: made and not started.
    pub(super) fn create(scene: &Scene, owner: &'static str, name: &'static str) -> Result<Self> {
        let words = [&["vm", "create", "--name", name], TINY].concat();
        scene.banger_long(owner, &words)?.ok()?.says(name)?;
        Self::known(scene, owner, name)
    }

    /// A VM that was made in another way.
    pub(super) fn known(scene: &Scene, owner: &'static str, name: &'static str) -> Result<Self> {
        let record = scene.banger(owner, &["vm", "show", name, "--json"])?.ok()?.json()?;
        let id = record.get("id").and_then(Value::as_str).with_context(|| format!("no id in {record}"))?;
        ensure!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?} is no VM id");
        Ok(Self { owner, name, id: id.to_owned() })
    }

    /// `vm show --json`.
    pub(super) fn record(&self, scene: &Scene) -> Result<Value> {
        scene.banger(self.owner, &["vm", "show", self.name, "--json"])?.ok()?.json()
    }

    /// State, and the reason for it.
    pub(super) fn state(&self, scene: &Scene) -> Result<(String, String)> {
        let record = self.record(scene)?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok((text(record.get("state")), text(record.pointer("/runtime/last_error"))))
    }

    /// The state must be this now.
    pub(super) fn is(&self, scene: &Scene, expected: &str) -> Result<()> {
        let (state, reason) = self.state(scene)?;
        ensure!(state == expected, "{} is {state} ({reason}), expected {expected}", self.name);
        Ok(())
    }

    /// The state must become this in time, with a reason that contains one of the words (no words:
    /// any reason or none).
    pub(super) fn becomes(
        &self,
        scene: &Scene,
        expected: &str,
        words: &[&str],
        under_kvm: Duration,
    ) -> Result<Duration> {
        let what = format!("{} is {expected}, for a reason that names one of {words:?}", self.name);
        scene.wait_until(&what, under_kvm, || {
            let (state, reason) = self.state(scene)?;
            let named = words.is_empty() || words.iter().any(|word| reason.to_lowercase().contains(word));
            Ok((state != expected || !named).then(|| format!("{state} ({reason})")))
        })
    }

    /// `vm exec NAME -- sh -c LINE`.
    pub(super) fn shell(&self, scene: &Scene, line: &str) -> Result<Finished> {
        scene.banger_long(self.owner, &["vm", "exec", "--no-tty", "--no-stdin", self.name, "--", "sh", "-c", line])
    }

    /// `vm stop`, `start`, `restart`, `kill`, `delete`.
    pub(super) fn order(&self, scene: &Scene, verb: &str) -> Result<Finished> {
        scene.banger_long(self.owner, &["vm", verb, self.name])
    }

    /// `vm delete`, after which nobody knows it any more.
    pub(super) fn delete(&self, scene: &Scene) -> Result<()> {
        self.order(scene, "delete")?.ok()?;
        scene.banger(self.owner, &["vm", "show", self.name])?.refused(&[self.name]).map(drop)
    }

    /// After a stop: the init heard of it. One that does not is switched off by the agent, which
    /// takes longer than anybody waits and shows in no state.
    pub(super) fn ended_by_its_init(&self, scene: &Scene) -> Result<()> {
        let console = scene.root(&format!("cat /var/lib/banger/vms/{}/console.log", self.id))?;
        ensure!(!console.contains("switches the machine off"), "its init did not end it: {console}");
        Ok(())
    }

    /// Its cgroup.
    pub(super) fn cgroup(&self, scene: &Scene) -> Result<String> {
        let uid = scene.root(&format!("id -u {}", self.owner))?;
        Ok(format!("{VMS}/{}/{}", uid.trim(), self.id))
    }

    /// Its VMM: the first process of its cgroup.
    pub(super) fn vmm(&self, scene: &Scene) -> Result<u32> {
        let text = scene.root(&format!("head -n 1 {}/cgroup.procs", self.cgroup(scene)?))?;
        text.trim().parse().with_context(|| format!("the VMM of {}: {text:?}", self.name))
    }

    /// The kernel's random id of this boot: another one means that the guest was started again.
    pub(super) fn boot_id(&self, scene: &Scene) -> Result<String> {
        Ok(self.shell(scene, "cat /proc/sys/kernel/random/boot_id")?.ok()?.stdout.trim().to_owned())
    }

    /// Starts a counter in the guest that a restarted guest or a suspended one would break.
    pub(super) fn start_counter(&self, scene: &Scene) -> Result<()> {
        let line = "(n=0; while true; do n=$((n+1)); echo $n > /root/counter.new && mv /root/counter.new /root/counter; sleep 0.2; done) </dev/null >/dev/null 2>&1 &";
        self.shell(scene, line)?.ok()?;
        scene
            .wait_until("the counter runs", Duration::from_secs(5), || {
                let text = self.shell(scene, "cat /root/counter 2>/dev/null; :")?.ok()?.stdout;
                Ok(text.trim().is_empty().then_some(text))
            })
            .map(drop)
    }

    /// What the counter says.
    pub(super) fn counter(&self, scene: &Scene) -> Result<u64> {
        let text = self.shell(scene, "cat /root/counter")?.ok()?.stdout;
        text.trim().parse().with_context(|| format!("the counter says {text:?}"))
    }
}

/// Names of a user's VMs, by `vm list --json`.
pub(super) fn names(scene: &Scene, user: &str) -> Result<Vec<String>> {
    let list = scene.banger(user, &["vm", "list", "--json"])?.ok()?.json()?;
    let records = list.as_array().with_context(|| format!("no list: {list}"))?;
    Ok(records.iter().filter_map(|record| record.get("name")?.as_str().map(str::to_owned)).collect())
}
