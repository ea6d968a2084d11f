//! The daemon's place, taken by the bench: the daemon is stopped, and programs of the bench run as
//! its user in its cgroups.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_policy::VmId;
use nix::unistd::{Uid, User};

use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

/// Cgroup of the daemon's unit.
const UNIT: &str = "/sys/fs/cgroup/system.slice/bangerd.service";
/// A cgroup that has nothing to do with it.
const OUTSIDE: &str = "/sys/fs/cgroup/system.slice/bench-outside";
const UNITS: &str = "bangerd.socket bangerd.service";

/// A user and a cgroup, in which something is run.
#[derive(Debug, Clone)]
pub(in crate::suite) struct Who {
    pub(in crate::suite) user: &'static str,
    group: &'static str,
    pub(in crate::suite) cgroup: String,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroup = self.cgroup.trim_start_matches("/sys/fs/cgroup/system.slice/");
        write!(f, "{}:{} in {cgroup}", self.user, self.group)
    }
}

impl Who {
    /// Exactly what the helper admits.
    pub(in crate::suite) fn daemon() -> Self {
        Self::below("bangerd", "daemon")
    }

    /// A user's process in a cgroup below the daemon's unit.
    pub(in crate::suite) fn below(user: &'static str, leaf: &str) -> Self {
        Self { user, group: user, cgroup: format!("{UNIT}/{leaf}") }
    }

    /// Somewhere else on the host.
    pub(in crate::suite) fn outside(user: &'static str) -> Self {
        Self { user, group: user, cgroup: OUTSIDE.to_owned() }
    }

    /// Another user there.
    pub(in crate::suite) fn with_user(self, user: &'static str) -> Self {
        Self { user, group: user, ..self }
    }

    /// Another group, and no further ones.
    pub(in crate::suite) fn with_group(self, group: &'static str) -> Self {
        Self { group, ..self }
    }

    /// A cgroup below that one.
    pub(in crate::suite) fn with_leaf(self, leaf: &str) -> Self {
        Self { cgroup: format!("{}/{leaf}", self.cgroup), ..self }
    }

    /// Where a VM's process belongs.
    pub(in crate::suite) fn of_vm(owner: u32, vm: VmId) -> Self {
        Self::below("bangerd", &format!("vms/{owner}/{vm}"))
    }

    /// The command line that becomes this before it does anything else.
    pub(in crate::suite) fn line(&self, program: &str) -> String {
        let (user, group, cgroup) = (self.user, self.group, &self.cgroup);
        format!(
            "mkdir -p {cgroup} && echo $$ > {cgroup}/cgroup.procs && exec setpriv --reuid {user} --regid {group} --clear-groups {program}"
        )
    }

    /// Starts a program with pipes on its standard input and output.
    pub(in crate::suite) fn start(&self, program: &str) -> Result<Child> {
        Command::new("sh")
            .args(["-ec", &self.line(program)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{program}` as {self:?}"))
    }
}

/// The program of this suite in a role.
pub(in crate::suite) fn role(words: &str) -> Result<String> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(format!("{} peer {words}", program.display()))
}

/// The daemon's uid.
pub(in crate::suite) fn daemon_uid() -> Result<Uid> {
    Ok(User::from_name("bangerd")?.context("there is no user bangerd")?.uid)
}

/// Runs `work` with the daemon stopped, and brings it back whatever came of that. The helper must
/// be the same process afterwards, unless `helper_may_restart`.
pub(in crate::suite) fn instead_of_the_daemon(
    scene: &mut Scene,
    helper_may_restart: bool,
    work: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<Outcome> {
    scene.allow_database_growth();
    let before = active(scene)?;
    scene.root(&format!("systemctl stop {UNITS}"))?;
    let pid = scene.main_pid("banger-priv.service")?;
    let result = work(scene);
    let emptied = empty(Path::new(UNIT)).and_then(|()| empty(Path::new(OUTSIDE)));
    let back = scene.root(&format!("systemctl start {before}"));
    result?;
    emptied?;
    back?;
    let now = scene.main_pid("banger-priv.service")?;
    ensure!(helper_may_restart || now == pid, "the helper has not survived: pid {pid} is now {now}");
    scene.banger("alice", &["vm", "list"])?.ok()?;
    scene.passed()
}

fn active(scene: &Scene) -> Result<String> {
    let state = scene.root_any("systemctl is-active bangerd.service")?.stdout;
    Ok(if state.trim() == "active" { UNITS } else { "bangerd.socket" }.to_owned())
}

/// Ends what is left in a tree of cgroups and removes it.
fn empty(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(cgroup.join("cgroup.kill"), "1").with_context(|| format!("kill {}", cgroup.display()))?;
    for _ in 0..100 {
        if remove(cgroup) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("{} is still in use", cgroup.display())
}

fn remove(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(cgroup).is_ok()
}
