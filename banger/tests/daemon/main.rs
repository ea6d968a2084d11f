//! What the real program does with a daemon, which is a fake one on a real socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod commands;
mod doctor;
#[path = "../fake/mod.rs"]
mod fake;
mod host;
mod terminal;

use banger_policy::lifecycle::State;
use banger_proto::model::{Refused, RefusedList};
use banger_proto::time::Timestamp;
use banger_proto::wire::Hello;
use fake::{Fake, vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Output, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn demo() -> Fake {
    Fake::start(vec![vm("demo", State::Running), vm("other", State::Stopped)])
}

/// Two destinations.
fn were_refused() -> RefusedList {
    let at = |hours: u64| Timestamp::from_unix(Timestamp::now().unix() - hours * 3600 - 60);
    let one = |address: [u8; 4], protocol: &str, port, times| Refused {
        address: address.into(),
        protocol: protocol.into(),
        port,
        times,
        first_at: at(3),
        last_at: at(1),
    };
    let destinations = vec![one([192, 0, 2, 7], "tcp", Some(443), 3), one([198, 51, 100, 1], "icmp", None, 1)];
    RefusedList { recorded: true, destinations }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(holds(), "not within 5 s: {what}");
}

fn all(output: &Output) -> String {
    format!("{}{}status {:?}\n", text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn tables() {
    let fake = demo();
    fake.state().vms[1].runtime.last_error = "the guest panicked\nKernel panic - not syncing".into();
    fake.state().refused = were_refused();
    let commands: [&[&str]; 25] = [
        &["vm", "list"],
        &["ps", "--all"],
        &["top"],
        &["top", "--all", "--once"],
        &["image", "list"],
        &["image", "show", "debian:13"],
        &["kernel", "list"],
        &["kernel", "show", "6.12"],
        &["image", "promote", "--shared", "debian:13"],
        &["image", "promote", "--private", "debian:13"],
        &["image", "promote", "debian:13", "other"],
        &["kernel", "share", "6.12"],
        &["vm", "chown", "bob", "other", "nobody"],
        &["job", "list"],
        &["version"],
        &["vm", "show", "nobody"],
        &["vm", "logs", "demo"],
        &["vm", "ports", "demo"],
        &["vm", "refused", "demo"],
        &["vm", "health", "demo"],
        &["vm", "health", "other"],
        &["vm", "exec", "-n", "demo", "--", "missing"],
        &["vm", "session", "list", "demo"],
        &["vm", "session", "show", "demo", "old"],
        &["vm", "session", "logs", "--times", "demo", "web"],
    ];
    let shown = commands.map(|c| format!("$ banger {}\n{}", c.join(" "), all(&fake.banger(c).output().unwrap())));
    // Times are those of this run.
    let fixed = |line: &str| {
        if line.starts_with("created ") || line.starts_with("updated ") {
            line[..13].to_owned() + "TIME"
        } else {
            line.to_owned()
        }
    };
    insta::assert_snapshot!(shown.join("\n").lines().map(fixed).collect::<Vec<_>>().join("\n"));
}

#[test]
fn json_has_the_names_of_the_model_and_every_page() {
    let fake = Fake::start((0..40).map(|n| vm(&format!("vm-{n}"), State::Stopped)).collect());
    let distinct: std::collections::BTreeSet<_> = fake.state().vms.iter().map(|vm| vm.id).collect();
    fake.state().vms.dedup_by_key(|vm| vm.id);
    let output = fake.banger(&["vm", "list", "--json"]).output().unwrap();
    let vms: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(vms.as_array().unwrap().len(), distinct.len());
    assert_eq!(vms[0]["spec"]["vcpu_count"], 2);
    assert_eq!(vms[0]["state"], "stopped");
    assert!(vms[0]["created_at"].as_str().unwrap().ends_with('Z'));
    for command in [["image", "list"], ["kernel", "list"], ["job", "list"]] {
        let output = fake.banger(&[command[0], command[1], "--json"]).output().unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap().is_array(), "{command:?}");
    }
    let one = fake.banger(&["vm", "show", "vm-1", "--json"]).output().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&one.stdout).unwrap()["name"], "vm-1");
}

#[test]
fn what_was_refused_is_shown_or_why_it_is_not() {
    let fake = demo();
    let refused = |words: &[&str]| fake.banger(&[&["vm", "refused"], words].concat()).output().unwrap();
    let off = all(&refused(&["demo"]));
    assert!(off.starts_with("nothing is recorded") && off.contains("enable bangerd-refused.socket"), "{off}");
    let value: serde_json::Value = serde_json::from_slice(&refused(&["demo", "--json"]).stdout).unwrap();
    assert_eq!(value, serde_json::json!({ "recorded": false, "destinations": [] }));
    fake.state().refused.recorded = true;
    let none = all(&refused(&["demo"]));
    assert_eq!(none, "nothing was refused to demo since it runs, and since the daemon runs\nstatus Some(0)\n");
    fake.state().refused = were_refused();
    let value: serde_json::Value = serde_json::from_slice(&refused(&["demo", "--json"]).stdout).unwrap();
    let one = &value["destinations"][0];
    assert_eq!((&one["address"], &one["protocol"], &one["port"]), (&"192.0.2.7".into(), &"tcp".into(), &443.into()));
    assert!(one["first_at"].as_str().unwrap().ends_with('Z') && one["last_at"].is_string() && one["times"] == 3);
    assert!(value["destinations"][1]["port"].is_null());
    assert_eq!(refused(&["nobody"]).status.code(), Some(1));
    fake.state().vms[0].refused = Some(2);
    let shown = all(&fake.banger(&["vm", "show", "demo"]).output().unwrap());
    assert!(shown.contains("2 destinations, see: banger vm refused demo"), "{shown}");
}

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
fn an_image_is_shown_with_the_names_of_the_contract() {
    let fake = demo();
    let shown = |command: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&fake.banger(command).output().unwrap().stdout).unwrap()
    };
    for image in [shown(&["image", "show", "debian:13", "--json"]), shown(&["image", "list", "--json"])[0].clone()] {
        assert_eq!(image["env"], serde_json::json!(["PATH=/opt/bin:/usr/bin", "BANNER=two\nlines\u{1b}[31m"]));
        assert_eq!((&image["working_dir"], &image["user"]), (&"/srv".into(), &"app".into()));
        assert_eq!(image["entrypoint"], serde_json::json!(["/entry point", "it's"]));
        assert_eq!(image["cmd"], serde_json::json!(["serve", ""]));
        assert!(image["created_at"].is_string() && image.get("config").is_none(), "{image}");
    }
    let missing = fake.banger(&["image", "show", "../x"]).output().unwrap();
    assert_eq!(all(&missing), "banger: cannot show the image ../x: no such image: ../x\nstatus Some(1)\n");
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
    assert_eq!(all(&output), "all of your VMs run; nothing to remove\nstatus Some(0)\n");
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

#[test]
fn a_command_that_lasts_holds_no_connection_for_calls() {
    let commands: [&[&str]; 3] = [
        &["vm", "exec", "-n", "demo", "--", "signal"],
        &["vm", "run", "--name", "new", "-n", "--", "signal"],
        &["vm", "session", "attach", "demo", "web"],
    ];
    for words in commands {
        let fake = demo();
        let mut child = fake.banger(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line == "waiting\n" || line == "now\n", "{line}");
        wait_for("no connection", || fake.state().connections == 0);
        signal(&child, Signal::SIGTERM);
        child.wait().unwrap();
    }
}

#[test]
fn a_connection_that_is_closed_at_once_is_explained_by_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = Command::new(env!("CARGO_BIN_EXE_banger")).arg("ps").env("BANGER_SOCKET", &socket).output().unwrap();
    closing.join().unwrap();
    assert!(text(&output.stderr).contains("as many connections as a user may have (128)"), "{}", all(&output));
}

#[test]
fn what_is_watched_as_json_is_an_object_a_line() {
    let fake = demo();
    let mut child = fake.banger(&["vm", "stats", "--watch", "--json", "demo"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["vm"]["name"], "demo");
    }
    signal(&child, Signal::SIGTERM);
    child.wait().unwrap();
}

/// Escape sequences, their one-byte forms, turned text, a line of its own.
#[test]
fn imports_send_what_they_were_given() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rootfs.tar");
    let bytes = vec![7; 3_000_001];
    std::fs::write(&path, &bytes).unwrap();
    let path = path.to_str().unwrap();
    let output = fake.banger(&["image", "import", path, "--name", "debian"]).output().unwrap();
    assert!(output.status.success(), "{}", all(&output));
    assert!(fake.state().uploaded == bytes);
    assert!(text(&output.stdout).starts_with("imported debian (aaaaaaaaaaaa, 8G, 2 MiB used) in "), "{}", all(&output));

    let stdin = std::fs::File::open(path).unwrap();
    let output = fake.banger(&["image", "import", "-", "--name", "debian"]).stdin(stdin).output().unwrap();
    assert!(output.status.success() && fake.state().uploaded == bytes);

    let output = fake.banger(&["image", "import", path, "--name", "refused"]).output().unwrap();
    let want =
        format!("banger: cannot import {path}: the file is not a tar archive\n  make one with tar\nstatus Some(1)\n");
    assert_eq!(all(&output), want);
}

/// A file system of 3 MB, as far as anybody looks, with something behind it.
fn root_disk(folder: &std::path::Path) -> (String, Vec<u8>) {
    let mut bytes = vec![7; 3 << 20];
    bytes[1024..2048].fill(0);
    for (at, value) in [(0x4, 768_u32), (0x18, 2), (0x38, 0xef53), (0x60, 0x2c2)] {
        bytes[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let path = folder.join("root.ext4");
    std::fs::write(&path, [bytes.as_slice(), &[1; 5000]].concat()).unwrap();
    (path.to_str().unwrap().to_owned(), bytes)
}

#[test]
fn a_file_system_is_registered_with_the_kernel_that_was_named() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let (disk, bytes) = root_disk(folder.path());
    let output = fake.banger(&["image", "register", "--rootfs", &disk, "own"]).output().unwrap();
    assert!(output.status.success(), "{}", all(&output));
    assert!(fake.state().uploaded == bytes, "what is behind the file system is not sent");
    assert!(text(&output.stdout).starts_with("registered own (aaaaaaaaaaaa, 8G, 3 MiB used) in "), "{}", all(&output));
    let output = fake.banger(&["image", "register", "--kernel", "6.12", "--rootfs", &disk, "own"]).output().unwrap();
    assert!(text(&output.stdout).contains(" used), kernel 6.12 in "), "{}", all(&output));
    let calls = [format!("register own of {disk} with None"), format!("register own of {disk} with Some(\"6.12\")")];
    assert_eq!(fake.state().calls, calls);
}

#[test]
fn a_kernels_file_is_imported_first_and_goes_again_when_the_image_fails() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let (disk, bytes) = root_disk(folder.path());
    let kernel = folder.path().join("vmlinux");
    std::fs::write(&kernel, "a kernel").unwrap();
    let kernel = kernel.to_str().unwrap();
    let register =
        |name: &str| fake.banger(&["image", "register", "--kernel", kernel, "--rootfs", &disk, name]).output().unwrap();
    let output = register("own");
    assert!(output.status.success() && text(&output.stdout).contains(", kernel own in "), "{}", all(&output));
    assert!(fake.state().uploaded == bytes);
    let calls =
        |name: &str| vec![format!("import kernel {name}"), format!("register {name} of {disk} with Some({name:?})")];
    assert_eq!(std::mem::take(&mut fake.state().calls), calls("own"));

    let output = register("refused");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("cannot register {disk}: the file is not")), "{}", all(&output));
    let undone = [calls("refused"), vec!["delete kernel refused".to_owned()]].concat();
    assert_eq!(std::mem::take(&mut fake.state().calls), undone);
    // What cannot be undone is said, and how.
    let output = register("used-refused");
    let said = text(&output.stderr);
    assert!(
        said.contains("could not be deleted again") && said.contains("banger kernel delete used-refused"),
        "{said}"
    );

    fake.state().calls.clear();
    let output = register("taken");
    let said = text(&output.stderr);
    assert!(said.contains("there is a kernel of the name taken already"), "{said}");
    assert!(said.contains("--kernel taken") && said.contains("banger kernel delete taken"), "{said}");
    assert_eq!(fake.state().calls, Vec::<String>::new(), "no image without its kernel, and no kernel is deleted");
}

#[test]
fn an_interrupted_registration_leaves_no_kernel() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let (disk, _) = root_disk(folder.path());
    let kernel = folder.path().join("vmlinux");
    std::fs::write(&kernel, "a kernel").unwrap();
    let words = ["image", "register", "--kernel", kernel.to_str().unwrap(), "--rootfs", &disk, "slow"];
    let mut child = fake.banger(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the image's upload", || fake.state().calls.iter().any(|call| call.starts_with("register slow")));
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fake.state().calls[2..], ["cancel job-2", "delete kernel slow"]);
}

#[test]
fn an_interrupted_import_is_cancelled() {
    let fake = demo();
    // Standard input stays open: the upload waits.
    let mut child = fake.banger(&["image", "import", "-", "--name", "slow"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"some").unwrap();
    wait_for("the upload", || !fake.state().jobs.is_empty());
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fake.state().calls, ["cancel job-1"]);
}

#[test]
fn an_older_daemon_gets_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let older = std::thread::spawn(move || {
        let mut peer = listener.accept().unwrap().0;
        let mut hello = Hello::ours(banger_proto::wire::Purpose::Calls);
        peer.read_exact(&mut [0; 32]).unwrap();
        hello.version = 0;
        peer.write_all(&hello.encode()).unwrap();
    });
    let output = Command::new(env!("CARGO_BIN_EXE_banger")).arg("ps").env("BANGER_SOCKET", &socket).output().unwrap();
    older.join().unwrap();
    let said = text(&output.stderr);
    assert!(said.starts_with("banger: cannot talk to bangerd: protocol version 0"), "{said}");
}
