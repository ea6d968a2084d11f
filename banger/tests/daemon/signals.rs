//! Signals, and readers that pause.

use super::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::time::{Duration, Instant};

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

fn ends_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
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

#[test]
fn outputs_that_do_not_block_lose_nothing() {
    const BYTES: usize = 1_000_000;
    let fake = demo();
    let mut command = fake.banger(&["vm", "exec", "-n", "demo", "--", "much", "1000000"]);
    let pair = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, OwnedFd::from(theirs))
    };
    let ((out, theirs), (err, error_theirs)) = (pair(), pair());
    let mut child = command.stdout(theirs).stderr(error_theirs).spawn().unwrap();
    // Our copies of its ends.
    drop(command);
    // Until they are full.
    std::thread::sleep(Duration::from_millis(300));
    let reading = [(out, b'o'), (err, b'e')].map(|(mut from, byte)| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).unwrap();
            assert!(all.iter().all(|got| *got == byte), "{}", text(&all));
            all.len()
        })
    });
    for read in reading {
        assert_eq!(read.join().unwrap(), BYTES);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_pauses_keeps_nobody_from_interrupting() {
    let commands: [&[&str]; 4] = [
        &["vm", "exec", "-n", "demo", "--", "flood"],
        &["vm", "exec", "-n", "--json", "demo", "--", "flood"],
        &["vm", "run", "-n", "--rm", "--name", "new", "--", "flood"],
        &["vm", "run", "-n", "--rm", "--json", "--name", "new", "--", "flood"],
    ];
    for words in commands {
        let fake = demo();
        let mut child = fake.banger(words).spawn().unwrap();
        // And no more.
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 1]).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..3 {
            signal(&child, Signal::SIGINT);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(ends_within(&mut child, Duration::from_secs(5)), Some(130), "{words:?}");
        let removed = fake.state().calls.last().is_some_and(|call| call == "delete new");
        assert_eq!(removed, words.contains(&"--rm"), "{words:?}");
    }
}

#[test]
fn an_interruption_ends_the_wait_for_a_daemon_that_is_silent() {
    let fake = demo();
    for (words, said) in [
        (&["vm", "run", "-n", "--rm", "--name", "new", "--", "signal"][..], "remove it: banger vm delete new"),
        (&["vm", "exec", "-n", "demo", "--", "lost"], "the connection to the guest ended before the command did"),
    ] {
        let mut child = fake.banger(words).spawn().unwrap();
        let (line, _out) = first_line(&mut child);
        assert_eq!(line, "waiting\n");
        // As systemd keeps the socket of a daemon that cannot start.
        std::fs::rename(fake.socket(), fake.socket().with_extension("kept")).unwrap();
        let silent = UnixListener::bind(fake.socket()).unwrap();
        signal(&child, Signal::SIGTERM);
        let _held = silent.accept().unwrap();
        // One that comes at once is still meant for the command.
        signal(&child, Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(1500));
        let begun = Instant::now();
        signal(&child, Signal::SIGINT);
        let status = ends_within(&mut child, Duration::from_secs(5));
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(status == Some(1) && told.contains(said), "{words:?}: {status:?} {told}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::fs::rename(fake.socket().with_extension("kept"), fake.socket()).unwrap();
    }
}
