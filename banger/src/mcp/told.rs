//! What a command says with `--json`, gathered for a tool: outputs bounded, everything else as it
//! came.

use serde_json::{Map, Value, json};

use super::child::Sink;
use super::kept::Kept;

/// The longest line, bytes: one piece of output with every byte escaped. Our own program writes no
/// longer one.
const MAX_LINE: usize = 2 << 20;
/// Events beside output: the stages of a run are some dozens.
const MAX_EVENTS: usize = 1000;

/// Gathers `vm run --json` and `vm exec --json`.
#[derive(Debug, Default)]
pub(super) struct Told {
    line: Vec<u8>,
    out: Kept,
    err: Kept,
    events: Vec<Map<String, Value>>,
}

impl Sink for Told {
    fn take(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if let Ok(event) = serde_json::from_slice(&line) {
                    self.event(event);
                }
            }
        }
        self.line.len() <= MAX_LINE && self.events.len() <= MAX_EVENTS
    }
}

impl Told {
    fn event(&mut self, event: Map<String, Value>) {
        if event.get("event").and_then(Value::as_str) != Some("output") {
            self.events.push(event);
            return;
        }
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let bytes = match (text("text"), text("base64")) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(text)) => data_encoding::BASE64.decode(text.as_bytes()).unwrap_or_default(),
            (None, None) => return,
        };
        if text("stream") == Some("stderr") { self.err.push(&bytes) } else { self.out.push(&bytes) }
    }

    fn find(&self, name: &str) -> Option<&Map<String, Value>> {
        self.events.iter().rfind(|event| event.get("event").and_then(Value::as_str) == Some(name))
    }

    /// Whether the command has said how it ended.
    pub(super) fn has_ended(&self) -> bool {
        self.find("exit").is_some()
    }

    /// The message and the hint of an error, when there was one.
    pub(super) fn error(&self) -> Option<String> {
        let error = self.find("error")?;
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
        Some([text("message"), text("hint")].join("\n").trim_end().to_owned())
    }

    /// What the model sees.
    pub(super) fn value(&self) -> Value {
        let mut value = Map::new();
        if let Some(vm) = self.find("ready").and_then(|ready| ready.get("vm")) {
            let of = |path: &str| vm.pointer(path).cloned().unwrap_or_default();
            let shown = json!({ "id": of("/id"), "name": of("/name"), "state": of("/state"), "image": of("/image_name"),
                "network": of("/network/mode"), "guest_ip": of("/runtime/guest_ip") });
            value.insert("vm".to_owned(), shown);
        }
        let mut copy = |event: &str, from: &str, to: &str| {
            if let Some(found) = self.find(event).and_then(|event| event.get(from)).filter(|found| !found.is_null()) {
                value.insert(to.to_owned(), found.clone());
            }
        };
        copy("workspace", "guest_path", "workspace");
        copy("session", "session", "session");
        copy("exit", "status", "exit_status");
        copy("exit", "signal", "signal");
        copy("exit", "reason", "not_started");
        copy("deleted", "vm", "deleted");
        for (name, kept) in [("stdout", &self.out), ("stderr", &self.err)] {
            if self.find("exit").is_some() || !kept.text().is_empty() {
                value.insert(name.to_owned(), kept.text().into());
            }
            if kept.left_out() > 0 {
                value.insert(format!("{name}_bytes_left_out"), kept.left_out().into());
            }
        }
        let warnings = self.events.iter().filter(|event| event.get("event").and_then(Value::as_str) == Some("warning"));
        let warnings: Vec<Value> = warnings.filter_map(|event| event.get("message").cloned()).collect();
        if !warnings.is_empty() {
            value.insert("warnings".to_owned(), warnings.into());
        }
        Value::Object(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[Value]) -> Told {
        let mut told = Told::default();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        // In pieces that end anywhere.
        for piece in text.as_bytes().chunks(7) {
            assert!(told.take(piece));
        }
        told
    }

    #[test]
    fn a_run_is_told_in_one_value() {
        let vm = json!({ "id": "ab", "name": "new", "state": "running", "image_name": "debian",
            "network": { "mode": "public", "allow": [] }, "runtime": { "guest_ip": "172.16.0.2" }, "spec": {} });
        let value = told(&[
            json!({ "event": "stage", "job": 1, "name": "spec", "took_ms": 1, "detail": "" }),
            json!({ "event": "warning", "message": "look out" }),
            json!({ "event": "ready", "vm": vm, "took_ms": 5 }),
            json!({ "event": "output", "stream": "stdout", "text": "one ", "base64": null }),
            json!({ "event": "output", "stream": "stderr", "text": "err", "base64": null }),
            json!({ "event": "output", "stream": "stdout", "text": null, "base64": "dHdv/w==" }),
            json!({ "event": "exit", "status": 137, "signal": 9, "reason": null }),
        ])
        .value();
        let vm = json!({ "id": "ab", "name": "new", "state": "running", "image": "debian", "network": "public",
            "guest_ip": "172.16.0.2" });
        let expected = json!({ "vm": vm, "exit_status": 137, "signal": 9, "stdout": "one two\u{fffd}", "stderr": "err",
            "warnings": ["look out"] });
        assert_eq!(value, expected);
    }

    #[test]
    fn a_long_output_is_cut_and_says_so() {
        let piece = json!({ "event": "output", "stream": "stdout", "text": "x".repeat(60_000), "base64": null });
        let value = told(&[piece.clone(), piece.clone(), piece]).value();
        assert_eq!(value.get("stdout_bytes_left_out"), Some(&(180_000 - 65_536).into()));
    }

    #[test]
    fn an_error_is_its_message_and_what_to_do() {
        let error =
            json!({ "event": "error", "code": "not_found", "message": "no VM x", "hint": "see: banger vm list" });
        assert_eq!(told(&[error]).error().as_deref(), Some("no VM x\nsee: banger vm list"));
        assert_eq!(told(&[]).error(), None);
    }

    #[test]
    fn lines_have_a_bound() {
        let mut told = Told::default();
        assert!(told.take(&vec![b'x'; MAX_LINE]) && !told.take(b"x"));
    }
}
