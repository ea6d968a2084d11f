//! The confinement of the services as installed, read from the running processes and tried on the
//! program that ships.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "confinement",
    about: "what helper and daemon cannot do any more: capabilities, Landlock, every system call, as shipped",
    setup: Setup::Installed,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("as-they-run", as_they_run),
        Scenario::new("self-check", self_check),
        Scenario::new("each-row-of-the-filter", each_row),
        Scenario::new("calls-without-a-row", calls_without_a_row),
        Scenario::new("a-record-per-decision", records),
    ]
}

const HELPER: &str = "/usr/libexec/banger/banger-priv";
/// NET_ADMIN (12) and SYS_ADMIN (21).
const TWO: &str = "0000000000201000";
const NONE: &str = "0000000000000000";
/// Budget of system calls while serving.
const CALLS: usize = 35;
/// How the shell sees a death by SIGSYS.
const KILLED: &str = "159";

/// `/proc/PID/status`: name and value.
fn status(scene: &Scene, unit: &str) -> Result<BTreeMap<String, String>> {
    let pid = scene.main_pid(unit)?;
    let text = scene.root(&format!("cat /proc/{pid}/status"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

fn must(of: &str, status: &BTreeMap<String, String>, wanted: &[(&str, &str)]) -> Result<()> {
    for (name, value) in wanted {
        let found = status.get(*name).map_or("missing", String::as_str);
        ensure!(found == *value, "{of}: {name} is {found}, and must be {value}");
    }
    Ok(())
}

fn as_they_run(scene: &mut Scene) -> Result<Outcome> {
    // Activated by its socket.
    scene.banger("alice", &["vm", "list"])?.ok()?;
    scene.step("the helper has two capabilities, and no way to more", |scene| {
        let found = status(scene, "banger-priv.service")?;
        let sets = [("CapPrm", TWO), ("CapEff", TWO), ("CapBnd", TWO), ("CapInh", NONE), ("CapAmb", NONE)];
        must("banger-priv", &found, &sets)?;
        must("banger-priv", &found, &[("NoNewPrivs", "1"), ("Seccomp", "2"), ("Threads", "2")])
    })?;
    scene.step("the daemon has none", |scene| {
        let found = status(scene, "bangerd.service")?;
        let sets = [("CapPrm", NONE), ("CapEff", NONE), ("CapBnd", NONE), ("CapInh", NONE), ("CapAmb", NONE)];
        must("bangerd", &found, &sets)?;
        must("bangerd", &found, &[("NoNewPrivs", "1"), ("Seccomp", "2")])?;
        let user = scene.root("id -u bangerd")?;
        ensure!(found.get("Uid").is_some_and(|uids| uids.split_whitespace().all(|uid| uid == user.trim())));
        Ok(())
    })?;
    scene.step("each runs in its own cgroup, the helper in one with limits", |scene| {
        for (unit, leaf) in [
            ("banger-priv.service", "/system.slice/banger-priv.service"),
            ("bangerd.service", "/system.slice/bangerd.service/daemon"),
        ] {
            let pid = scene.main_pid(unit)?;
            let found = scene.root(&format!("cat /proc/{pid}/cgroup"))?;
            ensure!(found.trim() == format!("0::{leaf}"), "{unit} is in {found}");
        }
        let limits =
            scene.root("cd /sys/fs/cgroup/system.slice/banger-priv.service; cat memory.max pids.max cgroup.procs")?;
        let pid = scene.main_pid("banger-priv.service")?;
        let wanted = format!("{}\n4\n{pid}\n", 64 << 20);
        ensure!(limits == wanted, "memory.max, pids.max and processes are {limits:?}, and must be {wanted:?}");
        Ok(())
    })?;
    scene.step("nothing of the helper's can be read by the daemon's user", |scene| {
        let pid = scene.main_pid("banger-priv.service")?;
        for path in
            ["/run/banger-priv", "/var/lib/banger-priv", &format!("/proc/{pid}/fd"), &format!("/proc/{pid}/mem")]
        {
            let finished =
                scene.root_any(&format!("setpriv --reuid bangerd --regid bangerd --init-groups cat {path}"))?;
            ensure!(finished.stderr.contains("Permission denied"), "{path}: {}", finished.stderr);
        }
        Ok(())
    })?;
    scene.passed()
}

/// A row of the table as the program prints it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    number: u64,
    /// In which forms it is allowed; a form is what arguments must be. None listed: any.
    pub(super) forms: Vec<Vec<(usize, u64)>>,
}

pub(super) fn rows(text: &str) -> Result<Vec<Row>> {
    text.lines().filter_map(|line| line.strip_prefix("row ")).map(row).collect()
}

fn row(line: &str) -> Result<Row> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().filter(|word| !word.is_empty()).with_context(|| format!("short row {line:?}"));
    let (name, number, forms) = (word()?.to_owned(), word()?.parse()?, word()?);
    word().context("a row without a reason")?;
    let is = |text: &str| -> Result<(usize, u64)> {
        let (argument, value) = text.split_once('=').with_context(|| format!("{text:?} in {line:?}"))?;
        Ok((argument.parse()?, value.parse()?))
    };
    let form = |text: &str| text.split(',').map(is).collect::<Result<Vec<_>>>();
    let forms = if forms == "any" { Vec::new() } else { forms.split('|').map(form).collect::<Result<_>>()? };
    Ok(Row { name, number, forms })
}

fn self_check(scene: &mut Scene) -> Result<Outcome> {
    let by_hand =
        scene.step("by hand: everything holds", |scene| checked(&scene.root(&format!("{HELPER} --self-check"))?))?;
    scene.measured("helper syscalls", by_hand.rows);
    ensure!(by_hand.rows <= CALLS, "the filter has {} rows, above {CALLS}", by_hand.rows);
    scene.step("the daemon finds Landlock as well", |scene| {
        let checks = scene.banger("alice", &["doctor", "--json"])?.json()?;
        let landlock = checks.as_array().into_iter().flatten().find(|check| check["name"] == "landlock");
        ensure!(landlock.is_some_and(|check| check["status"] == "pass"), "{checks}");
        Ok(())
    })?;
    scene.step("without the helper's rights it does nothing for anybody", |scene| {
        for words in ["--self-check", "--self-check-call 39"] {
            let finished = scene.user("alice", &format!("{HELPER} {words}"))?;
            ensure!(!finished.status.success() && finished.stdout.is_empty(), "{finished}");
            ensure!(finished.stderr.contains("is missing: banger-priv is started by systemd as root"), "{finished}");
        }
        Ok(())
    })?;
    scene.step(
        "in a unit like the helper's: everything holds, by as many filters as the serving helper has",
        |scene| {
            // The shipped unit with another command: what it prints is what the helper stands in.
            let unit = "/run/systemd/system/banger-check.service";
            scene.root(&format!(
                "sed -e 's|^ExecStart=.*|ExecStart={HELPER} --boot-id %b --self-check|' -e 's/^Type=.*/Type=oneshot/' \
             -e '/^Restart/d' -e '/^WatchdogSec/d' -e '/^Requires=/d' \
             /usr/lib/systemd/system/banger-priv.service > {unit}; systemctl daemon-reload"
            ))?;
            let ran = scene.root_any("systemctl start banger-check.service")?;
            let said = scene.journal("banger-check.service")?;
            scene.root(&format!(
                "rm {unit}; systemctl daemon-reload; systemctl reset-failed banger-check.service 2>/dev/null || :"
            ))?;
            ensure!(ran.status.success(), "it ended with {}: {said}", ran.status);
            let in_unit = checked(&said)?;
            let serving = status(scene, "banger-priv.service")?;
            must("banger-priv", &serving, &[("Seccomp_filters", &in_unit.filters)])?;
            scene.measured("seccomp filters, own one included", &in_unit.filters);
            Ok(())
        },
    )?;
    scene.passed()
}

struct Checked {
    rows: usize,
    filters: String,
}

fn checked(text: &str) -> Result<Checked> {
    let holds = text.lines().filter(|line| line.starts_with("holds: ")).count();
    ensure!(holds == 9 && !text.contains("DOES NOT HOLD"), "not everything holds:\n{text}");
    ensure!(text.lines().any(|line| line == "landlock V6"), "no word of Landlock:\n{text}");
    let filters = text.lines().find_map(|line| line.strip_prefix("filters ")).context("no number of filters")?;
    Ok(Checked { rows: rows(text)?.len(), filters: filters.to_owned() })
}

/// One call in the confined program, and the exit status that it must come to.
struct Probe {
    words: Vec<u64>,
    wanted: &'static str,
}

/// A process each; what is not as it must be.
fn probe(scene: &Scene, probes: &[Probe]) -> Result<()> {
    for batch in probes.chunks(200) {
        let mut script = format!("p() {{ {HELPER} --self-check-call \"$@\" >/dev/null 2>&1; echo $?; }}\n");
        for probe in batch {
            let words: Vec<String> = probe.words.iter().map(u64::to_string).collect();
            let _ = writeln!(script, "p {}", words.join(" "));
        }
        let said = scene.root(&format!("({script}) 2>/dev/null"))?;
        let ended: Vec<&str> = said.lines().collect();
        ensure!(ended.len() == batch.len(), "{} probes, {} answers", batch.len(), ended.len());
        for (probe, ended) in batch.iter().zip(ended) {
            ensure!(ended == probe.wanted, "call {:?} ended with {ended}, and must with {}", probe.words, probe.wanted);
        }
    }
    Ok(())
}

/// Number and arguments of a call that does nothing: no such descriptor, nothing at address 0. What
/// it answers is an error of the kernel's, and that shows that the filter let it pass.
fn call(row: &Row, form: &[(usize, u64)]) -> Vec<u64> {
    let mut words = vec![row.number, u64::from(u32::MAX), 0, 0, 0, 0, 0];
    if matches!(row.name.as_str(), "brk" | "exit_group" | "clock_gettime") {
        words[1] = 0;
    }
    for (argument, value) in form {
        words[argument + 1] = *value;
    }
    words
}

fn each_row(scene: &mut Scene) -> Result<Outcome> {
    let rows = rows(&scene.root(&format!("{HELPER} --self-check"))?)?;
    let any = vec![Vec::new()];
    let forms = |row: &Row| if row.forms.is_empty() { any.clone() } else { row.forms.clone() };
    scene.step("the allowed call passes, in every form", |scene| {
        let mut probes = Vec::new();
        for row in &rows {
            probes.extend(forms(row).iter().map(|form| Probe { words: call(row, form), wanted: "0" }));
        }
        scene.measured("allowed calls tried", probes.len());
        probe(scene, &probes)
    })?;
    scene.step("with a bit of a ruled argument changed, it is death", |scene| {
        let mut probes = Vec::new();
        for row in &rows {
            for form in &row.forms {
                for (at, (argument, value)) in form.iter().enumerate() {
                    for bit in [0, 1, 4, 8, 16, 31] {
                        let mut mutated = form.clone();
                        mutated[at] = (*argument, value ^ (1 << bit));
                        if !row.forms.contains(&mutated) {
                            probes.push(Probe { words: call(row, &mutated), wanted: KILLED });
                        }
                    }
                }
            }
        }
        scene.measured("mutated calls tried", probes.len());
        probe(scene, &probes)
    })?;
    scene.step("ioctl numbers are compared as the kernel reads them: 32 bits", |scene| {
        let ioctl = rows.iter().find(|row| row.name == "ioctl").context("no row for ioctl")?;
        // TIOCSTI, the way out of Snap's filter, and the same with a bit that the kernel does not
        // look at.
        let mut probes: Vec<Probe> =
            [0x5412, 0x1_0000_5412].map(|request| Probe { words: call(ioctl, &[(1, request)]), wanted: KILLED }).into();
        for form in &ioctl.forms {
            let [(1, request)] = form.as_slice() else { bail!("a form of ioctl that says more than its request") };
            probes.push(Probe { words: call(ioctl, &[(1, request | 1 << 32)]), wanted: "0" });
        }
        probe(scene, &probes)
    })?;
    scene.passed()
}

fn calls_without_a_row(scene: &mut Scene) -> Result<Outcome> {
    let rows = rows(&scene.root(&format!("{HELPER} --self-check"))?)?;
    scene.step(
        "each number without a row is death, those of new kernels and of the x32 interface included",
        |scene| {
            const X32: u64 = 0x4000_0000;
            // uretprobe and uprobe: trampolines of the kernel's own, which it hides from every
            // filter; SIGILL or an error outside of a probe that root has set.
            let known = |number: u64| matches!(number, 335 | 336) || rows.iter().any(|row| row.number == number);
            let numbers = (0..=512).filter(|number| !known(*number)).chain(rows.iter().map(|row| X32 | row.number));
            let probes: Vec<Probe> = numbers.map(|number| Probe { words: vec![number], wanted: KILLED }).collect();
            scene.measured("calls without a row tried", probes.len());
            probe(scene, &probes)
        },
    )?;
    scene.step("the families that are absent on purpose are among them", |_| {
        // execve, execveat, socket, bind, connect, clone, fork, vfork, clone3, kill, tkill, tgkill,
        // pidfd_send_signal, ptrace, mount, umount2, move_mount, fsopen, unshare, setns, bpf,
        // io_uring_setup, process_vm_readv, process_vm_writev, mprotect, open, openat, prctl,
        // seccomp, capset, setuid.
        for number in [
            59, 322, 41, 49, 42, 56, 57, 58, 435, 62, 200, 234, 424, 101, 165, 166, 429, 430, 272, 308, 321, 425, 310,
            311, 10, 2, 257, 157, 317, 126, 105,
        ] {
            ensure!(rows.iter().all(|row| row.number != number), "call {number} has a row");
        }
        Ok(())
    })?;
    scene.step("the serving helper has seen nothing of it", |scene| {
        scene.banger("alice", &["vm", "list"])?.ok()?;
        status(scene, "banger-priv.service").map(drop)
    })?;
    scene.passed()
}

fn records(scene: &mut Scene) -> Result<Outcome> {
    // The daemon is restarted, and tidies up.
    scene.allow_database_growth();
    let said = |scene: &Scene, what: &str| {
        scene
            .wait_until(&format!("the journal has {what:?}"), Duration::from_secs(5), || {
                let journal = scene.journal("banger-priv.service")?;
                Ok((!journal.lines().any(|line| line.contains(what))).then_some(journal))
            })
            .map(drop)
    };
    scene.step("root is turned away, and that is recorded", |scene| {
        drop(UnixStream::connect("/run/banger/priv.sock")?);
        said(scene, "op=connect verdict=denied rule=other-uid")
    })?;
    scene.step("so is the daemon's user outside of its unit", |scene| {
        scene.root(
            "setpriv --reuid bangerd --regid bangerd --init-groups \
             perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Peer => \"/run/banger/priv.sock\") or die $!; sleep 1'",
        )?;
        said(scene, "op=connect verdict=denied rule=outside-daemon-cgroup")
    })?;
    scene.step("the daemon is let in, and that is recorded", |scene| {
        scene.root("systemctl restart bangerd.service")?;
        scene.banger("alice", &["vm", "list"])?.ok()?;
        said(scene, "op=connect peer=")
    })?;
    scene.step("what a peer is told is no record's business: only fixed words, numbers and ids", |scene| {
        for line in scene.journal("banger-priv.service")?.lines().filter(|line| line.starts_with("op=")) {
            let fixed = |c: char| c.is_ascii_alphanumeric() || "-_= ".contains(c);
            ensure!(line.chars().all(fixed), "{line:?}");
        }
        Ok(())
    })?;
    scene.passed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let found = rows("holds: x\nrow a 1 any because\nrow b 2 0=1,2=3|4=5 of this\n").unwrap_or_default();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].forms, [vec![(0, 1), (2, 3)], vec![(4, 5)]]);
        assert_eq!(call(&found[1], &found[1].forms[1]), [2, u64::from(u32::MAX), 0, 0, 0, 5, 0]);
        assert!(rows("row a 1 any").is_err(), "a row without a reason");
    }
}
