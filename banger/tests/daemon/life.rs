//! VMs that are made, stopped and removed, and jobs that are interrupted.

use super::*;

#[test]
fn run_gives_the_commands_status_and_keeps_standard_output_for_it() {
    let fake = demo();
    let output = fake.banger(&["vm", "run", "--name", "new", "--", "exit", "42"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(42), String::new()));
    let said = text(&output.stderr);
    assert!(
        said.contains("new: image debian:13") && said.contains("guest ready") && said.contains("ready in"),
        "{said}"
    );
    assert_eq!(fake.state().calls, ["create new no_start=false keep=false"]);
}

#[test]
fn run_rm_deletes_whatever_the_command_did() {
    for (command, status) in [(["exit", "7"], 7), (["hang-up", ""], 1)] {
        let fake = demo();
        let command: Vec<&str> = command.into_iter().filter(|word| !word.is_empty()).collect();
        let output =
            fake.banger(&[&["vm", "run", "--name", "new", "--rm", "--"], command.as_slice()].concat()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", all(&output));
        assert_eq!(fake.state().calls.last().unwrap(), "delete new");
    }
}

#[test]
fn run_detached_prints_the_name_alone() {
    let output = demo().banger(&["vm", "run", "-d"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "brave-otter\n".into()));
}

#[test]
fn an_interruption_cancels_at_the_daemon_and_waits_for_the_rollback() {
    for (number, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGQUIT, 131)] {
        let fake = demo();
        fake.state().slow = true;
        let child = fake.banger(&["vm", "run", "--name", "new"]).spawn().unwrap();
        wait_for("the call", || !fake.state().calls.is_empty());
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", all(&output));
        assert_eq!(fake.state().calls, ["create new no_start=false keep=false", "cancel job-1"]);
        assert!(text(&output.stderr).contains("interrupted: undoing"));
    }
}

#[test]
fn several_vms_at_once_each_once_and_a_bad_one_stops_nobody() {
    let fake = Fake::start(vec![vm("aa", State::Running), vm("bb", State::Running), vm("broken", State::Running)]);
    let id = fake.state().vms[0].id.to_string();
    let output = fake.banger(&["vm", "stop", "aa", "nobody", "aa", &id, "broken", "bb"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let mut calls = fake.state().calls.clone();
    calls.sort();
    assert_eq!(calls, ["stop aa", "stop bb", "stop broken"]);
    let said = text(&output.stderr);
    assert!(said.contains("banger: cannot stop nobody: no VM nobody\n  see: banger vm list"), "{said}");
    assert!(said.contains("banger: cannot stop broken: the guest did not"), "{said}");
    assert_eq!(text(&output.stdout).lines().count(), 2);
}

#[test]
fn a_stop_gives_the_guests_the_time_that_is_asked_for() {
    let fake = Fake::start(vec![vm("aa", State::Running), vm("bb", State::Running)]);
    let output = fake.banger(&["vm", "stop", "--timeout", "600", "aa", "bb"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    assert_eq!(fake.state().calls.iter().filter(|call| *call == "within 600 s").count(), 2);
    for odd in ["0", "3601", "-1", "1m", ""] {
        let output = fake.banger(&["vm", "stop", "--timeout", odd, "aa"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{odd}: {}", all(&output));
    }
    assert_eq!(fake.state().calls.len(), 4, "nobody else is asked");
}

#[test]
fn everyone_is_stopped_for_the_hosts_shutdown() {
    let fake = demo();
    let output = fake.banger(&["vm", "stop", "--everyone"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(fake.state().calls, ["list true", "stop demo", "list true"]);
}

#[test]
fn prune_removes_what_does_not_run_and_asks_before() {
    let world = || {
        let vms = [("new", State::Created), ("old", State::Stopped), ("bad", State::Error), ("busy", State::Running)];
        Fake::start(vms.map(|(name, state)| vm(name, state)).to_vec())
    };
    let fake = world();
    let output = fake.banger(&["vm", "prune"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(text(&output.stdout).contains("old") && !text(&output.stdout).contains("busy"), "{}", all(&output));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        said,
        "banger: removed nothing: there is no terminal to ask on\n  to remove them without a question: banger vm prune -f\n"
    );
    assert_eq!(fake.state().calls, ["list false"]);
    let output = fake.banger(&["vm", "prune", "-f"]).output().unwrap();
    assert!(output.status.success(), "{}", all(&output));
    assert_eq!(fake.state().vms.iter().map(|vm| vm.name.to_string()).collect::<Vec<_>>(), ["busy"]);
    let output = fake.banger(&["vm", "prune"]).output().unwrap();
    assert_eq!(all(&output), "none of your VMs is stopped; nothing to remove\nstatus Some(0)\n");
    for (answer, left) in [("n", 4), ("", 4), ("y", 1)] {
        let fake = world();
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{} vm prune", env!("CARGO_BIN_EXE_banger")), "/dev/null"]);
        script.env("BANGER_SOCKET", fake.socket()).env("HOME", "/nonexistent");
        let Ok(mut child) = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            eprintln!("skipped: there is no script(1)");
            return;
        };
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(format!("{answer}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            text(&output.stdout).contains("Remove these 3 VMs and their disks for good? [y/N]"),
            "{}",
            all(&output)
        );
        assert_eq!(fake.state().vms.len(), left, "{answer:?}: {}", all(&output));
    }
}

#[test]
fn an_interrupted_delete_orders_no_more_vms_away() {
    for words in [&["vm", "delete"][..], &["vm", "prune", "-f"]] {
        let names: Vec<String> = (0..40).map(|number| format!("vm-{number}")).collect();
        let mut vms: Vec<_> = names.iter().map(|name| vm(name, State::Stopped)).collect();
        for (number, vm) in (1..).zip(&mut vms) {
            vm.id = banger_policy::VmId::from_bytes([number; 32]).unwrap();
        }
        let all = vms.len();
        let fake = Fake::start(vms);
        fake.state().slow = true;
        let mut words = words.to_vec();
        if words[1] == "delete" {
            words.extend(names.iter().map(String::as_str));
        }
        let child = fake.banger(&words).spawn().unwrap();
        let deletes = |fake: &Fake| fake.state().calls.iter().filter(|call| call.starts_with("delete")).count();
        wait_for("the first ones", || deletes(&fake) == 16);
        signal(&child, Signal::SIGINT);
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), deletes(&fake)), (Some(130), 16), "{said}");
        assert_eq!((fake.state().vms.len(), said.matches(" was not deleted").count()), (all, all), "{said}");
        assert!(said.contains("cannot be undone") && !said.contains("undoing"), "{said}");
    }
}

#[test]
fn a_prune_leaves_what_has_come_into_use() {
    let fake = Fake::start(vec![vm("old", State::Stopped), vm("starting", State::Stopped)]);
    let output = fake.banger(&["vm", "prune", "-f"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    assert_eq!(text(&output.stderr).trim(), "starting is left: starting runs, or is about to");
    assert_eq!(fake.state().vms.iter().map(|vm| vm.name.to_string()).collect::<Vec<_>>(), ["starting"]);
}

#[test]
fn a_job_is_followed_through_a_busy_daemon_and_a_lost_connection() {
    let fake = demo();
    (fake.state().too_often, fake.state().cuts) = (2, 1);
    let output = fake.banger(&["vm", "run", "--name", "new", "--rm", "--", "exit", "3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", all(&output));
    assert_eq!(fake.state().calls, ["create new no_start=false keep=false", "delete new"]);
}

#[test]
fn a_vm_whose_making_cannot_be_followed_is_not_left() {
    for command in [&["vm", "run", "--rm", "--name", "new"][..], &["vm", "create", "--name", "new"]] {
        let fake = demo();
        (fake.state().slow, fake.state().blind) = (true, true);
        let output = fake.banger(command).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("job-1 was cancelled"), "{said}");
        assert_eq!(fake.state().calls.last().unwrap(), "cancel job-1");
    }
    // Others go on, as they do when their command line ends.
    let fake = demo();
    fake.state().blind = true;
    let output = fake.banger(&["vm", "stop", "demo"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fake.state().calls, ["stop demo"]);
}
