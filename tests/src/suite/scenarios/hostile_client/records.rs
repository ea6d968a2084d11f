//! One record in the journal for each operation, and no system call beside the table for any of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_policy::reach::{Mode, Reach};
use banger_policy::{Digest, VmId};
use banger_proto::helper::{HelperRequest, ProcessState};

use super::objects::{Image, MIN_ROOT, OWNER, with_helper};
use crate::suite::list::Outcome;
use crate::suite::peer::helper::{Helper, word};
use crate::suite::peer::place::Who;
use crate::suite::peer::vm;
use crate::suite::scene::Scene;

const HELPER: &str = "/usr/libexec/banger/banger-priv";
/// How often a process is bound that is bound already.
const AGAIN: usize = 20;

/// Asks one thing after the other and keeps what each came to: operation as the journal names it,
/// and `ok` or `denied`.
struct Asked<'a> {
    helper: &'a mut Helper,
    told: Vec<(&'static str, &'static str)>,
}

impl Asked<'_> {
    fn ask(&mut self, operation: &'static str, request: &HelperRequest, expected: &str) -> Result<()> {
        let said = word(&self.helper.call(request)?)?;
        ensure!(said == expected, "{operation} was answered with {said}, expected {expected}");
        self.told.push((operation, if said == "Ok" { "ok" } else { "denied" }));
        Ok(())
    }
}

/// A VM's whole life: each operation granted where it can be, and refused where it cannot.
fn life(scene: &Scene, helper: &mut Helper, vm: VmId, image: Digest) -> Result<Vec<(&'static str, &'static str)>> {
    let number = u16::from(vm.as_bytes()[0]);
    let mut asked = Asked { helper, told: Vec::new() };
    let create = |root_bytes| HelperRequest::CreateDisk { vm, owner: OWNER, image, root_bytes };
    let acquire = |owner| HelperRequest::AcquireTap { vm, owner, address_index: number };
    asked.ask("set_network", &HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) }, "NotYours")?;
    asked.ask("attach_disk", &HelperRequest::AttachDisk { vm, owner: OWNER }, "NotYours")?;
    asked.ask("create_disk", &create(1), "BadArgument")?;
    asked.ask("create_disk", &create(MIN_ROOT), "Ok")?;
    let grow = |root_bytes| HelperRequest::GrowDisk { vm, owner: OWNER, root_bytes };
    asked.ask("grow_disk", &grow(2 * MIN_ROOT), "Ok")?;
    asked.ask("grow_disk", &grow(MIN_ROOT), "BadArgument")?;
    asked.ask("give_disk", &HelperRequest::GiveDisk { vm, owner: OWNER + 1 }, "Ok")?;
    asked.ask("give_disk", &HelperRequest::GiveDisk { vm, owner: OWNER }, "Ok")?;
    asked.ask("attach_disk", &HelperRequest::AttachDisk { vm, owner: OWNER }, "Ok")?;
    asked.ask("give_disk", &HelperRequest::GiveDisk { vm, owner: OWNER + 1 }, "BadState")?;
    asked.ask("discard_disk", &HelperRequest::DiscardDisk { vm }, "BadState")?;
    asked.ask("grow_disk", &grow(3 * MIN_ROOT), "BadState")?;
    asked.ask("acquire_tap", &acquire(OWNER), "Ok")?;
    asked.ask("acquire_tap", &acquire(OWNER + 1), "NotYours")?;
    asked.ask("set_network", &HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) }, "Ok")?;
    asked.ask("bind_process", &HelperRequest::BindProcess { vm, pid: 1 }, "NotYours")?;

    let mut process = Who::of_vm(OWNER, vm).start("sleep infinity")?;
    let pid = process.id();
    scene.wait_until("the VM's process is there", Duration::from_secs(5), || {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok((name.trim() != "sleep").then_some(name))
    })?;
    asked.ask("bind_process", &HelperRequest::BindProcess { vm, pid }, "Ok")?;
    // Each process is watched by one descriptor, however often it is bound.
    let descriptors = |scene: &Scene| -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", scene.main_pid("banger-priv.service")?))?.count())
    };
    let open = descriptors(scene)?;
    for _ in 0..AGAIN {
        asked.ask("bind_process", &HelperRequest::BindProcess { vm, pid }, "Ok")?;
    }
    let now = descriptors(scene)?;
    ensure!(now < open + AGAIN / 2, "{open} descriptors of the helper's were open, and {AGAIN} bindings later {now}");
    asked.ask("process_running", &HelperRequest::ProcessRunning { vm, pid }, "Ok")?;
    asked.ask("release", &HelperRequest::Release { vm }, "StillRunning")?;
    process.kill().context("end the VM's process")?;
    process.wait().context("wait for the VM's process")?;

    // The same questions again are no part of the count: they only bring what the claims need.
    let (tap, disk) = (asked.helper.tap(vm, OWNER, number)?, asked.helper.disk(vm, OWNER)?);
    asked.told.extend([("acquire_tap", "ok"), ("attach_disk", "ok")]);
    asked.ask("identity", &HelperRequest::Identity { vm }, "Ok")?;
    asked.ask("set_network", &HelperRequest::SetNetwork { vm, reach: Reach::default() }, "Ok")?;
    asked.ask("detach_disk", &HelperRequest::DetachDisk { vm, disk: disk.clone() }, "Ok")?;
    let mut other = tap.clone();
    other.generation ^= 1;
    asked.ask("release_tap", &HelperRequest::ReleaseTap { vm, tap: other }, "NotYours")?;
    asked.ask("release_tap", &HelperRequest::ReleaseTap { vm, tap }, "Ok")?;
    asked.ask("release", &HelperRequest::Release { vm }, "Ok")?;
    asked.ask("discard_disk", &HelperRequest::DiscardDisk { vm }, "Ok")?;
    asked.ask("identity", &HelperRequest::Identity { vm }, "NotYours")?;
    Ok(asked.told)
}

/// `operation verdict` of each record that names this VM, and how often.
fn recorded(journal: &str, vm: VmId) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mark = format!(" vm={vm} ");
    for line in journal.lines().filter(|line| line.starts_with("op=") && line.contains(&mark)) {
        let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap_or("nothing");
        *counts.entry(format!("{} {}", field("op="), field("verdict="))).or_default() += 1;
    }
    counts
}

/// Operation, VM and verdict of everything that was asked, once each; every operation of the
/// protocol is among it.
pub(super) fn one_each(scene: &mut Scene) -> Result<Outcome> {
    with_helper(scene, |scene, helper| {
        let vm = vm(70)?;
        let image = Image::new(scene)?;
        let lived = life(scene, helper, vm, image.digest);
        image.remove(scene)?;
        let told = lived?;
        let mut expected = BTreeMap::new();
        for (operation, verdict) in &told {
            *expected.entry(format!("{operation} {verdict}")).or_insert(0_usize) += 1;
        }
        let operations: BTreeSet<_> = told.iter().map(|(operation, _)| *operation).collect();
        // All of the protocol but `list`, which is of no VM.
        ensure!(operations.len() == 13, "not every operation was asked: {operations:?}");
        scene.wait_until("each operation has one record", Duration::from_secs(5), || {
            let found = recorded(&scene.journal("banger-priv.service")?, vm);
            Ok((found != expected).then(|| format!("recorded {found:?}, asked {expected:?}")))
        })?;
        let denied = scene.journal("banger-priv.service")?;
        let denied = denied.lines().filter(|line| line.contains(&vm.to_string()) && line.contains("verdict=denied"));
        for line in denied {
            let rule = line.split(' ').find_map(|word| word.strip_prefix("rule=")).unwrap_or_default();
            ensure!(!rule.is_empty() && rule != "granted", "a refusal without its rule: {line}");
        }
        scene.measured("operations asked, each with one record", told.len());
        Ok(())
    })
}

/// The serving helper under `strace`, over every operation: what it asks of the kernel stays within
/// the table, in the forms that the table allows.
pub(super) fn observed(scene: &mut Scene) -> Result<Outcome> {
    with_helper(scene, |scene, helper| {
        let table = Table::read(&scene.root(&format!("{HELPER} --self-check"))?)?;
        let log = "/run/bench-strace";
        let pid = scene.main_pid("banger-priv.service")?;
        // Arguments as numbers, whatever they mean. Both threads, each into a file of its own.
        let line = format!("exec strace -ff -q -e raw=all -e signal=none -o {log} -p {pid}");
        let strace = crate::suite::Run::start(None, &["sh", "-c", &line])?;
        scene.wait_until("strace has attached", Duration::from_secs(10), || {
            let status = scene.root(&format!("grep TracerPid /proc/{pid}/status"))?;
            Ok(status.contains("TracerPid:\t0").then_some(status))
        })?;
        let image = Image::new(scene)?;
        let lived = (|| {
            life(scene, helper, vm(71)?, image.digest)?;
            let list = helper.call(&HelperRequest::List { after: None })?;
            ensure!(word(&list)? == "Ok", "{list:?}");
            let none = helper.call(&HelperRequest::ProcessRunning { vm: vm(71)?, pid: 1 })?;
            ensure!(format!("{none:?}").contains(&format!("{:?}", ProcessState::NotYours)), "{none:?}");
            // Another peer, another connection.
            super::played(scene, &Who::daemon().with_user("root"), "knock").map(drop)
        })();
        image.remove(scene)?;
        strace.signal(nix::sys::signal::Signal::SIGTERM)?;
        drop(strace.wait(scene.limit(Duration::from_secs(10)))?);
        lived?;
        let text = scene.root(&format!("cat {log}.*; rm {log}.*"))?;
        let seen = table.compare(&text)?;
        scene.measured("system calls seen", seen.calls);
        scene.measured("rows of the table seen", format!("{} of {}", seen.rows.len(), table.rows.len()));
        scene.measured(
            "rows never seen",
            table.rows.keys().filter(|row| !seen.rows.contains(*row)).cloned().collect::<Vec<_>>().join(" "),
        );
        // Without these strace has not looked at a helper that worked.
        for needed in [
            "ioctl",
            "openat2",
            "sendto",
            "recvfrom",
            "renameat",
            "unlinkat",
            "pidfd_open",
            "accept4",
            "fallocate",
            "fstatfs",
        ] {
            ensure!(seen.rows.contains(needed), "no {needed} among {:?}", seen.rows);
        }
        Ok(())
    })
}

/// Call to forms; a form is which arguments must have which 32 bits. No form: any.
struct Table {
    rows: BTreeMap<String, Vec<Vec<(usize, u64)>>>,
}

struct Seen {
    calls: usize,
    rows: BTreeSet<String>,
}

impl Table {
    fn read(text: &str) -> Result<Self> {
        let rows = super::super::confinement::rows(text)?;
        ensure!(!rows.is_empty(), "no table in {text}");
        Ok(Self { rows: rows.into_iter().map(|row| (row.name, row.forms)).collect() })
    }

    /// Lines of `strace -e raw=all`: `name(0x1, 0x2) = ...`.
    fn compare(&self, text: &str) -> Result<Seen> {
        let mut seen = Seen { calls: 0, rows: BTreeSet::new() };
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('(') else { continue };
            // The call in which strace met it, and its end by restart: not asked for by the
            // helper's code.
            if name == "restart_syscall" {
                continue;
            }
            let arguments = rest.split(')').next().unwrap_or_default();
            let number = |text: &str| {
                let text = text.trim();
                text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
            };
            let arguments: Vec<Option<u64>> = arguments.split(',').map(number).collect();
            let is = |(at, value): &(usize, u64)| {
                arguments.get(*at).copied().flatten().is_some_and(|seen| seen & 0xffff_ffff == *value)
            };
            let forms = self.rows.get(name).with_context(|| format!("no row for {line}"))?;
            ensure!(forms.is_empty() || forms.iter().any(|form| form.iter().all(is)), "in no form of its row: {line}");
            seen.calls += 1;
            seen.rows.insert(name.to_owned());
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Result<Table> {
        Table::read("row read 0 any files\nrow ioctl 16 1=1074025674|1=19459 devices\nrow unlinkat 263 2=0 files\n")
    }

    #[test]
    fn what_is_beside_the_table_is_seen() -> Result<()> {
        let text = "read(0x3, 0x7ffc, 0x2000) = 0x10\nioctl(0x5, 0x400454ca, 0x7ff) = 0\nunlinkat(0x4, 0x55, 0) = 0\n";
        let seen = table()?.compare(text)?;
        assert_eq!((seen.calls, seen.rows.len()), (3, 3));
        for wrong in ["openat(0x3, 0x1) = 0x4", "ioctl(0x5, 0x5412, 0x7ff) = 0", "unlinkat(0x4, 0x55, 0x200) = 0"] {
            assert!(table()?.compare(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn records_are_counted_by_operation_and_verdict() -> Result<()> {
        let (mine, other) = (vm(1)?, vm(2)?);
        let journal = format!(
            "op=release vm={mine} verdict=ok rule=granted us=3\nop=release vm={other} verdict=ok rule=granted us=3\n\
             op=release vm={mine} verdict=denied rule=still-running us=3\nrecover vm={mine} rule=x\n"
        );
        let found = recorded(&journal, mine);
        assert_eq!(found, [("release denied".to_owned(), 1), ("release ok".to_owned(), 1)].into());
        Ok(())
    }
}
