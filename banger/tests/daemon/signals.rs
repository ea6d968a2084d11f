//! Signals, and readers that pause.

use super::*;
use std::process::Child;
use std::time::Duration;

/// The program, started as nohup(1) starts one.
fn ignoring(fake: &Fake, signals: &str, words: &[&str]) -> Child {
    let banger = fake.banger(words);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("trap '' {signals}; exec \"$@\""), "sh"]).arg(banger.get_program());
    shell.args(banger.get_args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in banger.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.spawn().unwrap()
}

/// Its first line; the rest of its output can be read.
fn first_line(child: &mut Child) -> (String, BufReader<std::process::ChildStdout>) {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    (line, out)
}

#[test]
fn an_ignored_signal_is_neither_the_commands_nor_an_interruption() {
    let commands: [&[&str]; 2] =
        [&["vm", "exec", "-n", "demo", "--", "signal"], &["vm", "run", "--rm", "--name", "new", "-n", "--", "signal"]];
    let ignored = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];
    for words in commands {
        let fake = demo();
        let mut child = ignoring(&fake, "HUP INT QUIT", words);
        let (line, mut out) = first_line(&mut child);
        assert_eq!(line, "waiting\n");
        ignored.into_iter().for_each(|number| signal(&child, number));
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{words:?} ended");
        assert!(!fake.state().calls.iter().any(|call| call.starts_with("delete")));
        signal(&child, Signal::SIGTERM);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("TERM\n", Some(130)), "{words:?}");
        // One that is not ignored.
        let mut child = fake.banger(words).spawn().unwrap();
        let (_, mut out) = first_line(&mut child);
        signal(&child, Signal::SIGHUP);
        rest.clear();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "HUP\n", "{words:?}");
        child.wait().unwrap();
    }
    let fake = demo();
    fake.state().slow = true;
    let mut child = ignoring(&fake, "HUP INT QUIT", &["vm", "run", "--name", "new"]);
    wait_for("the call", || !fake.state().calls.is_empty());
    ignored.into_iter().for_each(|number| signal(&child, number));
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none() && fake.state().calls.len() == 1, "{:?}", fake.state().calls);
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
