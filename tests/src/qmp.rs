//! QEMU's machine protocol over a socket: commands one at a time, and events. The stand-in runs its
//! guests through it, the bench keeps a booted host VM. Source: `docs/interop/qmp-spec.rst` of
//! QEMU.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

/// Longest wait for an answer: QEMU loads firmware, kernel and KVM before the first one, on a bench
/// without KVM of its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
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
pub(crate) struct Monitor {
    stream: UnixStream,
    answers: Receiver<Result<Value, String>>,
}

impl Monitor {
    /// Takes our end of the connection, and leaves QEMU ready for commands. `on_event` hears of
    /// every event by its name and data; false means that nobody listens any more.
    pub(crate) fn open(
        stream: UnixStream,
        on_event: impl FnMut(&str, &Value) -> bool + Send + 'static,
    ) -> Result<Self, QmpError> {
        let (answer, answers) = mpsc::channel();
        let input = BufReader::new(stream.try_clone()?);
        thread::spawn(move || read(input, &answer, on_event));
        let mut monitor = Self { stream, answers };
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs one command and waits for its answer.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
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

fn read(
    input: BufReader<UnixStream>,
    answers: &Sender<Result<Value, String>>,
    mut on_event: impl FnMut(&str, &Value) -> bool,
) {
    for line in input.lines() {
        let Ok(line) = line else { return };
        let delivered = match serde_json::from_str(&line) {
            Ok(Message::Greeting { .. }) => true,
            Ok(Message::Answer { value }) => answers.send(Ok(value)).is_ok(),
            Ok(Message::Error { error }) => answers.send(Err(error.desc)).is_ok(),
            Ok(Message::Event { event, data }) => on_event(&event, &data),
            Err(error) => {
                eprintln!("QEMU said {line:?}: {error}");
                true
            }
        };
        if !delivered {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_errors_and_events_are_told_apart() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let (events, inbox) = mpsc::channel();
        qemu.write_all(
            b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"timestamp\": {}, \"event\": \"RESUME\"}\r\n\
              {\"return\": {}}\r\n\
              {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}, \"timestamp\": {}}\r\n\
              {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
        )
        .unwrap();
        let mut monitor =
            Monitor::open(ours, move |event, data| events.send((event.to_owned(), data.clone())).is_ok()).unwrap();
        assert!(matches!(monitor.execute("cont", &json!({})), Err(QmpError::Refused(_, reason)) if reason == "no"));
        assert_eq!(inbox.recv().unwrap().0, "RESUME");
        let (event, data) = inbox.recv().unwrap();
        assert_eq!((event.as_str(), &data["reason"]), ("SHUTDOWN", &json!("guest-reset")));
        drop(qemu);
        assert!(monitor.execute("stop", &json!({})).is_err());
    }
}
