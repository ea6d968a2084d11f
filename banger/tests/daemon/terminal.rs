//! What a daemon, a guest or another user wrote steers no terminal.

use super::*;

const EVIL: &str = "\x1b[31m\u{9b}2J\u{7f}\u{202e}\u{2066}\u{2028}\x07\rbanger";

pub(super) fn steers(text: &str) -> bool {
    text.chars().any(|c| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c) || c == '\u{2066}')
}

#[test]
fn no_command_passes_on_what_steers_a_terminal() {
    let fake = Fake::start(vec![vm("demo", State::Running), vm("broken", State::Running)]);
    {
        let mut state = fake.state();
        state.evil = EVIL;
        state.refused = were_refused();
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
    let commands: [&[&str]; 37] = [
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
        &["vm", "refused", "demo", "--json"],
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

/// What the program shows on a terminal that script(1) makes, without the carriage returns of
/// that. `None` without script.
pub(super) fn on_a_terminal(program: &Command, words: &str) -> Option<String> {
    let command = format!("{} {words}", env!("CARGO_BIN_EXE_banger"));
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
    script.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = script.output().ok();
    if output.is_none() {
        eprintln!("skipped: there is no script(1)");
    }
    output.map(|output| text(&output.stdout).replace("\r\n", "\n"))
}

#[test]
fn a_file_of_a_guest_is_not_shown_on_a_terminal() {
    let fake = demo();
    std::fs::write(fake.guest_home().join("evil"), EVIL).unwrap();
    let Some(shown) = on_a_terminal(&fake.banger(&[]), "vm cp demo:/root/evil -") else { return };
    assert!(shown.contains("not for a terminal") && !steers(&shown), "{shown:?}");
    let piped = fake.banger(&["vm", "cp", "demo:/root/evil", "-"]).output().unwrap();
    assert!(text(&piped.stdout).contains(EVIL), "{}", all(&piped));
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
