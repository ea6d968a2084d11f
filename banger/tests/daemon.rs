//! What the real program does with a daemon, which is a fake one on a real socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod fake;

use banger_policy::lifecycle::State;
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
    let commands: [&[&str]; 21] = [
        &["vm", "list"],
        &["ps", "--all"],
        &["image", "list"],
        &["image", "show", "debian:13"],
        &["kernel", "list"],
        &["kernel", "show", "6.12"],
        &["image", "promote", "--shared", "debian:13"],
        &["image", "promote", "--private", "debian:13"],
        &["kernel", "share", "6.12"],
        &["vm", "chown", "bob", "other", "nobody"],
        &["job", "list"],
        &["version"],
        &["vm", "show", "nobody"],
        &["vm", "logs", "demo"],
        &["vm", "ports", "demo"],
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
    for (number, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
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
fn exec_keeps_the_outputs_apart_and_the_status() {
    let output = demo().banger(&["vm", "exec", "demo", "--", "both"]).output().unwrap();
    assert_eq!(all(&output), "out\nerr\nstatus Some(3)\n");
    let stopped = demo().banger(&["vm", "exec", "other", "--", "true"]).output().unwrap();
    assert_eq!(
        all(&stopped),
        "banger: cannot run a command in other: other is stopped\n  start it: banger vm start demo\nstatus Some(1)\n"
    );
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
fn a_commands_variables_folder_and_user_are_sent_over_the_callers_language() {
    let fake = demo();
    let words = [
        "vm",
        "exec",
        "-n",
        "-e",
        "A=b=c",
        "-e",
        "HERE",
        "-e",
        "NOT_HERE",
        "-e",
        "LANG=C",
        "-w",
        "/srv",
        "-u",
        "app:staff",
        "demo",
        "--",
        "said",
    ];
    for command in [
        &words[..],
        &[
            "vm",
            "run",
            "--name",
            "new",
            "-e",
            "A=b=c",
            "-e",
            "HERE",
            "-e",
            "NOT_HERE",
            "-e",
            "LANG=C",
            "-w",
            "/srv",
            "-u",
            "app:staff",
            "--",
            "said",
        ],
    ] {
        let mut banger = fake.banger(command);
        banger.env_clear().env("BANGER_SOCKET", fake.socket()).env("HOME", "/nonexistent");
        banger.env("HERE", "ours").env("LANG", "de_DE.UTF-8").env("TZ", "UTC").env("TERM", "vt100").env("SECRET", "x");
        let output = banger.output().unwrap();
        assert!(output.status.success(), "{}", all(&output));
        let said = fake.state().calls.pop().unwrap();
        let pairs = said.split_once('[').unwrap().1;
        let mut env: Vec<&str> = pairs.split("(\"").skip(1).collect();
        let given = env.split_off(3);
        env.sort_unstable();
        assert!(said.starts_with("Some(\"/srv\") Some(\"app:staff\") ["), "{said}");
        let expected = ["LANG\", \"de_DE.UTF-8\"), ", "TERM\", \"vt100\"), ", "TZ\", \"UTC\"), "];
        assert_eq!(env, expected, "{said}");
        assert_eq!(given, ["A\", \"b=c\"), ", "HERE\", \"ours\"), ", "LANG\", \"C\")]"], "{said}");
    }
}

#[test]
fn a_command_that_a_signal_ended_has_a_shells_status() {
    for (number, status) in [("9", 137), ("31", 159), ("64", 192)] {
        let output = demo().banger(&["vm", "exec", "-n", "demo", "--", "killed", number]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", all(&output));
    }
    // However much credit a guest gives.
    let output = demo().banger(&["vm", "exec", "-n", "demo", "--", "generous"]).output().unwrap();
    assert!(output.status.success(), "{}", all(&output));
}

#[test]
fn exec_carries_much_data_both_ways() {
    for command in [&["vm", "exec", "demo", "--", "cat"][..], &["vm", "proxy", "demo"]] {
        let fake = demo();
        let mut child = fake.banger(command).stdin(Stdio::piped()).spawn().unwrap();
        let sent: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).take(8_000_000).collect();
        let mut stdin = child.stdin.take().unwrap();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
        let mut got = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }
}

#[test]
fn a_signal_goes_to_the_command_and_the_third_interruption_ends_the_wait() {
    for (command, signals, status) in [("signal", 1, 130), ("deaf", 3, 130)] {
        let fake = demo();
        let mut child = fake.banger(&["vm", "exec", "-n", "demo", "--", command]).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "waiting\n");
        for _ in 0..signals {
            signal(&child, Signal::SIGINT);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(child.wait().unwrap().code(), Some(status), "{command}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_without_a_word() {
    let mut child = demo().banger(&["vm", "exec", "demo", "--", "flood"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1000]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), String::new()));
}

#[test]
fn a_terminal_is_given_when_there_is_one() {
    let fake = demo();
    assert_eq!(text(&fake.banger(&["vm", "exec", "demo", "--", "tty"]).output().unwrap().stdout), "none\n");
    let command = format!("{} vm exec demo -- tty", env!("CARGO_BIN_EXE_banger"));
    // script(1) runs it on a terminal of its own.
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
    script.env("BANGER_SOCKET", fake.socket()).env("TERM", "xterm-test");
    let Ok(output) = script.output() else {
        eprintln!("skipped: there is no script(1)");
        return;
    };
    assert_eq!(text(&output.stdout).trim(), "xterm-test 80x24");
}

#[test]
fn input_from_a_pipe_ends_in_a_terminal_too_and_holds_no_way_out() {
    for got in ["~.\na\n", "a\n~.", ""] {
        let mut child = demo().banger(&["vm", "exec", "-t", "demo"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(got.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), got.to_owned()), "{}", all(&output));
    }
}

#[test]
fn run_reads_no_input_when_told() {
    // Standard input stays open, and is not waited for.
    let mut child = demo().banger(&["vm", "run", "-n", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), String::new()), "{}", all(&output));
    drop(stdin);
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

/// Escape sequences, their one-byte forms, turned text, a line of its own.
const EVIL: &str = "\x1b[31m\u{9b}2J\u{7f}\u{202e}\u{2066}\u{2028}\x07\rbanger";

fn steers(text: &str) -> bool {
    text.chars().any(|c| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c) || c == '\u{2066}')
}

#[test]
fn no_command_passes_on_what_steers_a_terminal() {
    let fake = Fake::start(vec![vm("demo", State::Running), vm("broken", State::Running)]);
    {
        let mut state = fake.state();
        state.evil = EVIL;
        for vm in &mut state.vms {
            vm.owner_name += EVIL;
            vm.runtime.last_error = format!("why{EVIL}\nmore");
            (vm.runtime.dns_name, vm.runtime.log_path) = (EVIL.into(), EVIL.into());
            (vm.runtime.tap_device, vm.runtime.dm_dev) = (Some(EVIL.into()), Some(EVIL.into()));
        }
    }
    let kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.as_file().set_len(4096).unwrap();
    let kernel = kernel.path().to_str().unwrap();
    let commands: [&[&str]; 36] = [
        &["version"],
        &["vm", "list", "--all"],
        &["vm", "show", "demo"],
        &["vm", "show", "nobody"],
        &["vm", "run", "-d", "--verbose"],
        &["vm", "run", "--name", "new", "--", "exit", "0"],
        &["vm", "exec", "-n", "demo", "--", "missing"],
        &["vm", "ports", "demo"],
        &["vm", "health", "demo"],
        &["vm", "ports", "demo", "--json"],
        &["vm", "stop", "demo", "broken"],
        &["vm", "delete", "nobody"],
        &["image", "list"],
        &["image", "show", "debian:13"],
        &["image", "delete", "used"],
        &["kernel", "import", kernel, "--modules", "/tmp"],
        &["kernel", "list"],
        &["kernel", "show", "6.12"],
        &["kernel", "show", "nothing"],
        &["vm", "prune"],
        &["job", "list"],
        &["doctor"],
        &["doctor", "--leaks"],
        &["doctor", "vm", "demo"],
        &["version", "--json"],
        &["vm", "list", "--all", "--json"],
        &["vm", "show", "demo", "--json"],
        &["image", "list", "--json"],
        &["image", "show", "debian:13", "--json"],
        &["kernel", "list", "--json"],
        &["kernel", "show", "6.12", "--json"],
        &["job", "list", "--json"],
        &["doctor", "--json"],
        &["doctor", "vm", "demo", "--json"],
        &["system", "status"],
        &["system", "status", "--json"],
    ];
    for command in commands {
        let output = fake.banger(command).output().unwrap();
        let shown = all(&output);
        assert!(!steers(&shown), "{command:?}: {shown:?}");
        // Every one of them shows one of those texts, or this would say nothing.
        assert!(shown.contains("banger"), "{command:?}: {shown}");
        if command.ends_with(&["--json"]) {
            let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(value.to_string().contains('\u{9b}'), "{command:?} says something else: {value}");
        }
    }
}

#[test]
fn a_console_is_shown_clean_on_both_outputs_of_a_terminal_and_whole_in_a_pipe() {
    let fake = demo();
    fake.state().evil = EVIL;
    let piped = fake.banger(&["vm", "logs", "demo"]).output().unwrap();
    assert_eq!(text(&piped.stdout), format!("console\r\n\x1b[2J{EVIL}"));
    assert_eq!(text(&piped.stderr), format!("trouble{EVIL}\n"));
    let command = format!("{} vm logs demo", env!("CARGO_BIN_EXE_banger"));
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).env("BANGER_SOCKET", fake.socket());
    let Ok(output) = script.output() else {
        eprintln!("skipped: there is no script(1)");
        return;
    };
    // The terminal itself adds carriage returns.
    let shown = text(&output.stdout).replace("\r\n", "\n");
    assert!(shown.contains("console\n") && shown.contains("trouble"), "{shown:?}");
    assert!(!steers(&shown), "{shown:?}");
}

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

#[test]
fn an_interrupted_import_is_cancelled() {
    let fake = demo();
    // Standard input stays open: the upload waits.
    let mut child = fake.banger(&["image", "import", "-", "--name", "slow"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"some").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
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

#[test]
fn leaks_are_shown_and_what_is_left_is_a_failure() {
    let found = demo().banger(&["doctor", "--leaks"]).output().unwrap();
    assert_eq!(found.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr));
    assert!(out.contains("found") && out.contains("tap bgr-") && err.contains("--leaks --fix"), "{out}{err}");
    let fixed = demo().banger(&["doctor", "--leaks", "--fix"]).output().unwrap();
    assert_eq!(fixed.status.code(), Some(1), "one of them is left");
    let (out, err) = (String::from_utf8_lossy(&fixed.stdout), String::from_utf8_lossy(&fixed.stderr));
    assert!(out.contains("released") && out.contains("FAILED") && err.contains("journalctl"), "{out}{err}");
    let json = demo().banger(&["doctor", "--leaks", "--json"]).output().unwrap();
    assert!(String::from_utf8_lossy(&json.stdout).contains("\"kind\": \"folder\""), "{json:?}");
    assert_eq!(demo().banger(&["doctor", "--fix"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn doctor_fails_with_what_the_daemon_found() {
    let output = demo().banger(&["doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.contains("FAIL  kvm") && shown.contains("there is no /dev/kvm"), "{}", all(&output));
    assert!(shown.contains("-> switch virtualisation on in the firmware"), "{}", all(&output));
}

#[test]
fn doctor_of_a_vm_shows_its_state_its_jobs_and_its_console() {
    let output = demo().banger(&["doctor", "vm", "demo"]).output().unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    for words in ["name", "demo", "state", "running", "console"] {
        assert!(shown.contains(words), "{words}: {}", all(&output));
    }
    let broken = demo().banger(&["doctor", "vm", "nobody"]).output().unwrap();
    assert_eq!(broken.status.code(), Some(1), "{}", all(&broken));
}

#[test]
fn a_bundle_for_a_bug_report_has_what_the_daemon_says_and_no_console() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bug.tar.gz");
    let output = demo().banger(&["bug", "--output", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    assert_eq!(text(&output.stdout).trim(), path.to_str().unwrap());
    let listed =
        Command::new("tar").args(["--extract", "--gzip", "--to-stdout", "--file"]).arg(&path).output().unwrap();
    let bundle = text(&listed.stdout);
    assert!(bundle.contains("\"demo\"") && bundle.contains("Firecracker v1.16.0"), "{bundle}");
    assert!(!bundle.contains("\x1b[2J"), "the console is in it: {bundle}");
    let again = demo().banger(&["bug", "--output", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a file that is there is not replaced: {}", all(&again));
}
