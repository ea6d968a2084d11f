//! QEMU's machine protocol over a socket pair: commands one at a time, and the one event that matters, the guest's own end.
//! Called by `vmm`. Source: `docs/interop/qmp-spec.rst` and `qapi/run-state.json` of QEMU.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::vmm::Event;

/// Longest wait for an answer: QEMU loads firmware, kernel and KVM before the first one, on a bench without KVM of its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU has ended; its own message is on stderr")]
    Ended,
    #[error("QEMU did not answer `{0}`")]
    Timeout(String),
    #[error("QEMU refused `{0}`: {1}")]
    Refused(String, String),
    #[error("writing to QEMU: {0}")]
    Io(#[from] io::Error),
}

/// One line from QEMU.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _qmp: Value,
    },
    Answer {
        #[serde(rename = "return")]
        value: Value,
    },
    Error {
        error: Failure,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

/// The monitor of one QEMU.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: UnixStream,
    answers: Receiver<Result<Value, String>>,
}

impl Monitor {
    /// Takes our end of the socket pair; events go to `events` from now on.
    pub(super) fn new(stream: UnixStream, events: Sender<Event>) -> io::Result<Self> {
        let (answer, answers) = mpsc::channel();
        let input = BufReader::new(stream.try_clone()?);
        thread::spawn(move || read(input, &answer, &events));
        Ok(Self { stream, answers })
    }

    /// Runs one command and waits for its answer.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream.write_all(line.as_bytes())?;
        match self.answers.recv_timeout(ANSWER_TIMEOUT) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(reason)) => Err(QmpError::Refused(command.to_owned(), reason)),
            Err(RecvTimeoutError::Timeout) => Err(QmpError::Timeout(command.to_owned())),
            Err(RecvTimeoutError::Disconnected) => Err(QmpError::Ended),
        }
    }
}

fn read(input: BufReader<UnixStream>, answers: &Sender<Result<Value, String>>, events: &Sender<Event>) {
    for line in input.lines() {
        let Ok(line) = line else { return };
        let delivered = match serde_json::from_str(&line) {
            Ok(Message::Greeting { .. }) => true,
            Ok(Message::Answer { value }) => answers.send(Ok(value)).is_ok(),
            Ok(Message::Error { error }) => answers.send(Err(error.desc)).is_ok(),
            Ok(Message::Event { event, data }) => match shutdown_reason(&event, &data) {
                Some(reason) => events.send(Event::GuestEnded(reason)).is_ok(),
                None => true,
            },
            Err(error) => {
                eprintln!("stand-in: QEMU said {line:?}: {error}");
                true
            }
        };
        if !delivered {
            return;
        }
    }
}

fn shutdown_reason(event: &str, data: &Value) -> Option<String> {
    (event == "SHUTDOWN").then(|| data.get("reason").and_then(Value::as_str).unwrap_or("unknown").to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failing test says where")]
mod tests {
    use super::*;

    #[test]
    fn answers_errors_and_the_guests_end_are_told_apart() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let (events, inbox) = mpsc::channel();
        let mut monitor = Monitor::new(ours, events).unwrap();
        qemu.write_all(
            b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"timestamp\": {}, \"event\": \"RESUME\"}\r\n\
              {\"return\": {}}\r\n\
              {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}, \"timestamp\": {}}\r\n\
              {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
        )
        .unwrap();
        assert_eq!(monitor.execute("qmp_capabilities", &json!({})).unwrap(), json!({}));
        assert!(matches!(monitor.execute("cont", &json!({})), Err(QmpError::Refused(_, reason)) if reason == "no"));
        assert!(matches!(inbox.recv().unwrap(), Event::GuestEnded(reason) if reason == "guest-reset"));
        drop(qemu);
        assert!(monitor.execute("stop", &json!({})).is_err());
    }
}
