//! The metrics of all VMs for a program that collects them: Prometheus' text, as HTTP/1.1 on a
//! socket of its own. The mode and the group of that socket say who may ask
//! (bangerd-metrics.socket); the daemon asks for no more.
//!
//! Bounded, because a collector may be broken: few connections at a time, a short request, little
//! time, and numbers that are computed once a second at most. It changes nothing.

use super::{ACCEPT_PAUSE, Daemon};
use crate::vm::error::VmError;
use banger_policy::Peer;
use banger_policy::quota::UserLimits;
use banger_proto::metrics::{Numbers, User, Vms};
use banger_proto::model::JobState;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

/// Connections that are served at a time. Others wait in the socket's queue.
const AT_ONCE: usize = 4;
/// The longest head of a request, bytes. Collectors send less than 1 KiB.
const MAX_HEAD: usize = 8 << 10;
/// How long a client may take to ask, and how long to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long numbers are given again.
const FRESH: Duration = Duration::from_secs(1);
/// Jobs that are looked at in one step.
const JOBS: usize = 100;
/// The version of the text's format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves as long as the daemon runs.
pub(crate) fn serve(listener: UnixListener, daemon: Arc<Daemon>) {
    let source = Arc::new(Source { daemon, last: Mutex::default() });
    let places = Arc::new(Semaphore::new(AT_ONCE));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let source = Arc::clone(&source);
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &source).await {
                            tracing::debug!("metrics: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection for metrics: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

/// Where the numbers come from.
struct Source {
    daemon: Arc<Daemon>,
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Source {
    /// Who asks while numbers are computed gets the same ones.
    async fn text(&self) -> Result<Arc<str>, VmError> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = self.numbers().await?.metrics().into();
        *last = Some((Instant::now(), Arc::clone(&text)));
        Ok(text)
    }

    /// Everyone's, as an administrator would see it.
    async fn numbers(&self) -> Result<Numbers, VmError> {
        let asker = Peer { uid: 0, name: "root".into(), admin: true, limits: UserLimits::NONE };
        let (mut records, mut after) = (Vec::new(), None);
        loop {
            let page = self.daemon.vms.list(&asker, true, after).await?;
            records.extend(page.vms);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let (mut jobs_running, mut before) = (0, None);
        loop {
            let page = self.daemon.vms.ctx.jobs.list(&asker, before, JOBS);
            jobs_running += page.jobs.iter().filter(|job| matches!(job.state, JobState::Running)).count();
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        Ok(Numbers {
            daemon: self.daemon.info().await,
            vms: Vms::of(&records),
            jobs_running,
            users: User::all_of(&records),
        })
    }
}

async fn answer(mut stream: UnixStream, source: &Source) -> io::Result<()> {
    let head = timeout(PATIENCE, head(&mut stream)).await??;
    let reply = match asked(&head) {
        Asked::Metrics { body } => match source.text().await {
            Ok(text) => reply("200 OK", TEXT, &text, body),
            Err(error) => {
                tracing::warn!("cannot compute metrics: {}", crate::error::chain(&error));
                reply("503 Service Unavailable", "text/plain", "see: journalctl -u bangerd\n", body)
            }
        },
        Asked::OtherPath => reply("404 Not Found", "text/plain", "ask for /metrics\n", true),
        Asked::OtherMethod => reply("405 Method Not Allowed", "text/plain", "only GET and HEAD\n", true),
        Asked::NotHttp => reply("400 Bad Request", "text/plain", "this is no HTTP request\n", true),
    };
    timeout(PATIENCE, async {
        stream.write_all(reply.as_bytes()).await?;
        stream.shutdown().await
    })
    .await?
}

/// All up to the empty line; what is there of it when it is too long or ends before.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while head.len() < MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match from.read(&mut part).await? {
            0 => break,
            count => head.extend_from_slice(part.get(..count).unwrap_or_default()),
        }
    }
    Ok(head)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics { body: bool },
    OtherPath,
    OtherMethod,
    NotHttp,
}

/// The request line of RFC 9112, section 3. A query is of no interest.
fn asked(head: &[u8]) -> Asked {
    if !head.windows(4).any(|end| end == b"\r\n\r\n") {
        return Asked::NotHttp;
    }
    let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Asked::NotHttp;
    };
    if !version.starts_with("HTTP/1.") {
        return Asked::NotHttp;
    }
    match (method, target.split('?').next().unwrap_or_default()) {
        ("GET" | "HEAD", "/metrics") => Asked::Metrics { body: method == "GET" },
        ("GET" | "HEAD", _) => Asked::OtherPath,
        _ => Asked::OtherMethod,
    }
}

fn reply(status: &str, kind: &str, text: &str, body: bool) -> String {
    let shown = if body { text } else { "" };
    let length = text.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{shown}")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::vm::tests::World;

    #[test]
    fn only_one_page_is_there_and_what_is_no_request_is_none() {
        let get = Asked::Metrics { body: true };
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), get);
        assert_eq!(asked(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"), get);
        assert_eq!(asked(b"HEAD /metrics HTTP/1.1\r\n\r\n"), Asked::Metrics { body: false });
        assert_eq!(asked(b"GET /metrics/ HTTP/1.1\r\n\r\n"), Asked::OtherPath);
        assert_eq!(asked(b"POST /metrics HTTP/1.1\r\n\r\n"), Asked::OtherMethod);
        for bad in
            [&b""[..], b"GET /metrics HTTP/1.1\r\n", b"GET /metrics\r\n\r\n", b"\xff\xff\r\n\r\n", b"A B C D\r\n\r\n"]
        {
            assert_eq!(asked(bad), Asked::NotHttp, "{bad:?}");
        }
        assert!(reply("200 OK", TEXT, "abc", false).ends_with("Content-Length: 3\r\nConnection: close\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_request_is_read_as_far_as_it_is_bounded() {
        let long = vec![b'x'; 10 * MAX_HEAD];
        assert!(head(&mut long.as_slice()).await.unwrap().len() < 2 * MAX_HEAD);
        assert_eq!(head(&mut &b"GET"[..]).await.unwrap(), b"GET");
    }

    #[test]
    fn a_collector_gets_the_numbers_over_a_socket() {
        let world = World::new();
        let life = world.life();
        let args = crate::args::parse(std::iter::empty(), |_| None).unwrap();
        life.runtime.block_on(async {
            let daemon = Daemon::new(Arc::clone(&life.vms), Arc::clone(&life.store), &args);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("metrics.sock");
            serve(UnixListener::bind(&path).unwrap(), daemon);
            // Clients that ask for nothing take no place for long, and others get theirs meanwhile.
            let idle: Vec<_> = futures::future::join_all((1..AT_ONCE).map(|_| UnixStream::connect(&path))).await;
            for _ in 0..3 {
                let mut client = UnixStream::connect(&path).await.unwrap();
                client.write_all(b"GET /metrics HTTP/1.1\r\nHost: banger\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                assert!(answer.contains("\nbanger_vms{state=\"running\"} 0\n"), "{answer}");
            }
            drop(idle);
        });
    }
}
