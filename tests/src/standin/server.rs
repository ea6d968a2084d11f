//! The API socket: a thread per connection reads requests, the main thread (`vmm`) answers them one
//! by one, as in Firecracker.

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use super::api::{self, Action};
use super::http::{self, HttpError, Response};
use super::vmm::Event;

/// `micro_http`'s `MAX_CONNECTIONS`.
const MAX_CONNECTIONS: usize = 10;

/// A parsed request and where its answer goes.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) action: Action,
    pub(super) reply: Sender<Response>,
}

/// Binds the API socket, which must not exist yet, and serves it in the background for as long as
/// the process lives.
pub(super) fn spawn(path: &Path, events: Sender<Event>) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    thread::Builder::new().name("fc_api".into()).spawn(move || accept(&listener, &events))?;
    Ok(())
}

fn accept(listener: &UnixListener, events: &Sender<Event>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if open.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            let body = r#"{ "error": "Too many open connections" }"#.to_owned();
            // The client is being turned away; that it has gone already changes nothing.
            let _ = http::write_response(&mut stream, &Response { status: 503, body: Some(body) });
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (events, count) = (events.clone(), Arc::clone(&open));
        thread::spawn(move || {
            if let Err(error) = serve(&stream, &events) {
                eprintln!("stand-in: API connection: {error}");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

fn serve(stream: &UnixStream, events: &Sender<Event>) -> io::Result<()> {
    let mut input = BufReader::new(stream);
    let mut output = stream;
    loop {
        let request = match http::read_request(&mut input) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(HttpError::Io(error)) => return Err(error),
            Err(HttpError::Malformed(text)) => {
                let body = serde_json::json!({ "error": text }).to_string();
                return http::write_response(&mut output, &Response { status: 400, body: Some(body) });
            }
        };
        let response = match api::parse(&request) {
            Ok(action) => {
                let (reply, answer) = mpsc::channel();
                let ended = |_| io::Error::other("the machine has ended");
                events.send(Event::Call(Call { action, reply })).map_err(|_| ended(()))?;
                answer.recv().map_err(|_| ended(()))?
            }
            Err(error) => api::fault(&error),
        };
        http::write_response(&mut output, &response)?;
    }
}
