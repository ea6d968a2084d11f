//! Commands in guests: outputs, status, signals, terminals.

use super::*;

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
fn a_lost_connection_is_explained_by_the_end_of_the_vm() {
    let exec = |word| all(&demo().banger(&["vm", "exec", "-n", "demo", "--", word]).output().unwrap());
    let what = "banger: cannot run a command in demo: the";
    assert_eq!(
        exec("vanish"),
        format!(
            "{what} VM ended before the command did: firecracker exited (status 0)\n  see: banger vm list, banger vm logs VM\nstatus Some(1)\n"
        )
    );
    let cut = exec("cut");
    assert!(cut.starts_with(&format!("{what} connection to the guest ended before the command did\n")), "{cut}");
}

#[test]
fn a_commands_variables_folder_and_user_are_sent_over_the_callers_language() {
    let fake = demo();
    let flags = ["-e", "A=b=c", "-e", "HERE", "-e", "NOT_HERE", "-e", "LANG=C", "-w", "/srv", "-u", "app:staff"];
    let (exec, run) = (["vm", "exec", "-n"], ["vm", "run", "--name", "new"]);
    for command in [[&exec[..], &flags, &["demo", "--", "said"]].concat(), [&run[..], &flags, &["--", "said"]].concat()]
    {
        let mut banger = fake.banger(&command);
        banger.env_clear().env("BANGER_SOCKET", fake.socket()).env("HOME", "/nonexistent");
        banger.env("HERE", "ours").env("LANG", "de_DE.UTF-8").env("TZ", "UTC").env("TERM", "vt100").env("SECRET", "x");
        let output = banger.output().unwrap();
        assert!(output.status.success(), "{}", all(&output));
        let said = fake.state().calls.pop().unwrap();
        let pairs = said.split_once('[').unwrap().1;
        let mut env: Vec<&str> = pairs.split("(\"").skip(1).collect();
        // Without a terminal here, the guest's TERM is its own.
        let given = env.split_off(2);
        env.sort_unstable();
        assert!(said.starts_with("Some(\"/srv\") Some(\"app:staff\") ["), "{said}");
        let expected = ["LANG\", \"de_DE.UTF-8\"), ", "TZ\", \"UTC\"), "];
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
fn input_that_cannot_be_read_is_not_its_end() {
    let fake = demo();
    // A folder cannot be read (EISDIR).
    for words in [&["vm", "exec", "demo"][..], &["vm", "exec", "-t", "demo"], &["vm", "cp", "-", "demo:/root/"]] {
        let output = fake.banger(words).stdin(std::fs::File::open("/").unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", all(&output));
        assert!(text(&output.stderr).contains("cannot read standard input"), "{words:?}: {}", all(&output));
    }
    let relay = fake.banger(&["relay"]).stdin(std::fs::File::open("/").unwrap()).output().unwrap();
    assert_eq!(relay.status.code(), Some(1), "{}", all(&relay));
}

#[test]
fn a_relative_path_begins_where_the_image_says_also_in_a_vm_that_does_not_run() {
    // The fake guest's commands start in this test's folder, which is not below /root.
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("copy");
    let output = fake.banger(&["vm", "cp", "other:Cargo.toml", target.to_str().unwrap()]).output().unwrap();
    let begins = std::env::current_dir().unwrap();
    let said =
        format!("other is stopped, and then only what is below /root can be copied, and not {}", begins.display());
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains(&said), "{}", all(&output));
    assert!(!target.exists());
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
