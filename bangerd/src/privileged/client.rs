//! The connection to `banger-priv`: made when needed, made again when lost. Its operations are
//! repeatable, so a call whose connection broke is sent once more over the next one. What comes of
//! an attempt to connect holds for all who waited for it.

use super::{Link, PrivilegedError};
use banger_proto::helper::{HelperRequest, HelperResponse};
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::{Purpose, WireError};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tarpc::client::{Channel, Config, RpcError};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// How long a helper that is being restarted is waited for, from the first failure on.
const RECONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A socket that is not there at all is not coming back by a restart: systemd holds it in between.
const ABSENT_LIMIT: Duration = Duration::from_millis(500);
/// systemd kills a helper that hangs after 40 s (`WatchdogSec=`), and the next one recovers before
/// it takes up who waits at the socket: both have room in this. Less than the transport's own
/// limit, which would count otherwise.
const HELLO_LIMIT: Duration = Duration::from_secs(55);
/// The same for one that was silent the last time: it had its chance to be killed and to come back,
/// and a job asks it several times.
const HELLO_AGAIN_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// How long one operation may take; the slowest reserves a COW file.
const CALL_LIMIT: Duration = Duration::from_secs(55);

type Calls = Channel<HelperRequest, HelperResponse>;

#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    hello_limit: Duration,
    hello_again_limit: Duration,
    reconnect_limit: Duration,
    /// Held by the caller that connects; the others wait here for what comes of it.
    turn: Mutex<()>,
    /// Apart from the turn: a call that failed gives up its channel without waiting for somebody's
    /// hello.
    state: std::sync::Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With its number: one that broke is given up by each call that used it, and the next one may
    /// be there by then.
    open: Option<(u64, Calls)>,
    /// The number of the last channel.
    made: u64,
    /// When and why there was no connection the last time.
    failed: Option<(Instant, io::Error)>,
    /// It hung the last time that it was asked something.
    silent: bool,
    /// Since when the helper has been of another release. An upgrade restarts one after the other:
    /// that is waited for once, and not by each call.
    differs: Option<Instant>,
}

impl State {
    /// What a caller that has waited since then need not find out itself.
    fn outcome(&self, since: Instant) -> Option<io::Result<(u64, Calls)>> {
        let failed = self.failed.as_ref().filter(|(at, _)| *at >= since);
        self.open.clone().map(Ok).or_else(|| failed.map(|(_, error)| Err(copied(error))))
    }
}

fn hello_error(error: &io::Error) -> Option<&WireError> {
    error.get_ref().and_then(|source| source.downcast_ref())
}

/// Is it the helper's hello that does not fit?
fn is_other_release(error: &io::Error) -> bool {
    matches!(hello_error(error), Some(WireError::Version { .. }))
}

/// For each of those who waited: an [`io::Error`] cannot be cloned.
fn copied(error: &io::Error) -> io::Error {
    match (hello_error(error), error.raw_os_error()) {
        (Some(hello), _) => hello.clone().into(),
        (None, Some(errno)) => io::Error::from_raw_os_error(errno),
        (None, None) => io::Error::new(error.kind(), error.to_string()),
    }
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            hello_limit: HELLO_LIMIT,
            hello_again_limit: HELLO_AGAIN_LIMIT,
            reconnect_limit: RECONNECT_LIMIT,
            turn: Mutex::default(),
            state: std::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn channel(&self) -> io::Result<(u64, Calls)> {
        let since = Instant::now();
        let _turn = self.turn.lock().await;
        if let Some(outcome) = self.state().outcome(since) {
            return outcome;
        }
        let connected = self.connect().await;
        let mut state = self.state();
        match connected {
            Ok(calls) => {
                state.made += 1;
                let open = (state.made, calls);
                Ok(state.open.insert(open).clone())
            }
            Err(error) => {
                state.failed = Some((Instant::now(), copied(&error)));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> io::Result<Calls> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let limit = if self.state().silent { self.hello_again_limit } else { self.hello_limit };
        let hello = tokio::time::timeout(limit, transport::connect(&mut stream, Purpose::Calls)).await;
        let silent = hello.is_err();
        let hello = hello.unwrap_or_else(|_| {
            let silent = format!("it did not say hello within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, silent))
        });
        let other = hello.as_ref().is_err_and(is_other_release);
        let mut state = self.state();
        state.silent = silent;
        state.differs = other.then(|| state.differs.unwrap_or_else(Instant::now));
        drop(state);
        hello?;
        Ok(tarpc::client::new(Config::default(), transport::client(stream, HELPER_LIMITS)).spawn())
    }

    /// Gives up a channel that broke, if it is still the one in use.
    fn give_up(&self, number: u64) {
        self.state().open.take_if(|(open, _)| *open == number);
    }

    fn differs_for(&self) -> Duration {
        self.state().differs.map_or(Duration::ZERO, |since| since.elapsed())
    }

    async fn call(
        &self,
        request: &(dyn Fn() -> HelperRequest + Send + Sync),
        operation: &'static str,
    ) -> Result<HelperResponse, PrivilegedError> {
        // Not from the beginning on: a call may have been in flight for longer when its connection
        // breaks.
        let mut first_failure = None;
        loop {
            let source = match self.channel().await {
                Err(error) => error,
                Ok((number, channel)) => {
                    let mut context = tarpc::context::current();
                    context.deadline = Instant::now() + CALL_LIMIT;
                    match channel.call(context, request()).await {
                        Ok(response) => return Ok(response),
                        Err(RpcError::DeadlineExceeded) => {
                            // Whoever asks next finds out by a hello, which takes less long.
                            self.give_up(number);
                            self.state().silent = true;
                            return Err(PrivilegedError::TimedOut { operation });
                        }
                        // Asked again, it would give the same answer.
                        Err(RpcError::Server(error)) if error.kind == io::ErrorKind::InvalidData => {
                            return Err(PrivilegedError::Confused);
                        }
                        // Too many calls in flight on this connection: it is alive, and soon there
                        // is room.
                        Err(RpcError::Server(error)) => io::Error::new(error.kind, error.detail),
                        Err(error) => {
                            self.give_up(number);
                            io::Error::other(error)
                        }
                    }
                }
            };
            let failing = first_failure.get_or_insert_with(Instant::now).elapsed();
            let limit = match source.kind() {
                io::ErrorKind::NotFound => ABSENT_LIMIT,
                // No hello: that wait was long enough for any restart.
                io::ErrorKind::TimedOut => Duration::ZERO,
                _ => self.reconnect_limit,
            };
            if is_other_release(&source) {
                if self.differs_for().max(failing) >= limit {
                    return Err(PrivilegedError::OtherRelease { source });
                }
            } else if failing >= limit {
                return Err(PrivilegedError::Unreachable { socket: self.socket.clone(), source });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Link for Client {
    fn exchange<'a>(
        &'a self,
        request: &'a (dyn Fn() -> HelperRequest + Send + Sync),
        operation: &'static str,
    ) -> BoxFuture<'a, Result<HelperResponse, PrivilegedError>> {
        self.call(request, operation).boxed()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::helper::HelperError;
    use banger_proto::wire::{HELLO_BYTES, Hello, PROTOCOL_VERSION};
    use futures::{SinkExt as _, StreamExt as _};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tarpc::{ClientMessage, Response};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    fn listening() -> (tempfile::TempDir, UnixListener, Client) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("priv.sock");
        (folder, UnixListener::bind(&socket).unwrap(), Client::new(&socket))
    }

    /// The next connection, greeted.
    async fn greeted(listener: &UnixListener) -> UnixStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        transport::accept(&mut stream).await.unwrap();
        stream
    }

    fn list() -> HelperRequest {
        HelperRequest::List { after: None }
    }

    #[tokio::test]
    async fn another_version_is_told_apart_and_forgotten_when_it_is_ours_again() {
        let (_folder, listener, client) = listening();
        let helper = tokio::spawn(async move {
            let mut kept = Vec::new();
            for version in [PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 1, PROTOCOL_VERSION] {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
                let hello = Hello { version, ..Hello::ours(Purpose::Calls) };
                stream.write_all(&hello.encode()).await.unwrap();
                kept.push(stream);
            }
            kept
        });
        assert!(client.channel().await.is_err_and(|error| is_other_release(&error)));
        let since = client.state().differs;
        assert!(since.is_some());
        assert!(client.channel().await.is_err());
        assert_eq!(client.state().differs, since, "counted from the first time");
        client.channel().await.unwrap();
        assert_eq!(client.state().differs, None);
        drop(helper.await.unwrap());
        assert!(!is_other_release(&io::ErrorKind::InvalidData.into()));
    }

    #[tokio::test]
    async fn who_waits_for_a_silent_helper_at_once_waits_once() {
        let (_folder, listener, mut client) = listening();
        client.hello_limit = Duration::from_millis(300);
        client.hello_again_limit = Duration::from_millis(20);
        let met = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&met);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            loop {
                kept.push(listener.accept().await.unwrap());
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        let silent_for = |answer, limit: &str| match answer {
            Err(PrivilegedError::Unreachable { source, .. }) => {
                source.kind() == io::ErrorKind::TimedOut && source.to_string().ends_with(limit)
            }
            _ => false,
        };
        let silent = |answer| silent_for(answer, " 300ms");
        let answers = tokio::join!(client.call(&list, "1"), client.call(&list, "2"), client.call(&list, "3"));
        assert!(silent(answers.0) && silent(answers.1) && silent(answers.2));
        assert_eq!(met.load(Ordering::Relaxed), 1, "one attempt for all three, and none after it");
        assert!(silent_for(client.call(&list, "4").await, " 20ms"), "who comes later asks anew, and not for as long");
        assert_eq!(met.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn one_that_says_hello_again_has_all_the_time_again() {
        let (_folder, listener, mut client) = listening();
        client.hello_limit = Duration::from_millis(100);
        let helper = tokio::spawn(async move {
            let silent = listener.accept().await.unwrap();
            (silent, greeted(&listener).await)
        });
        assert!(client.channel().await.is_err());
        assert!(client.state().silent);
        client.channel().await.unwrap();
        assert!(!client.state().silent);
        drop(helper.await.unwrap());
    }

    #[test]
    fn who_waited_hears_the_same() {
        let version = WireError::Version { theirs: 7, build: "0.7".to_owned() };
        let errors = [
            version.into(),
            io::Error::from_raw_os_error(nix::libc::ENOENT),
            io::Error::new(io::ErrorKind::TimedOut, "late"),
            io::ErrorKind::UnexpectedEof.into(),
        ];
        for error in errors {
            let copy = copied(&error);
            assert_eq!((copy.kind(), copy.to_string()), (error.kind(), error.to_string()));
            assert_eq!(is_other_release(&copy), is_other_release(&error));
        }
    }

    #[tokio::test]
    async fn a_call_that_fails_late_gives_up_its_own_channel_only() {
        let (_folder, listener, client) = listening();
        let helper = tokio::spawn(async move { (greeted(&listener).await, greeted(&listener).await) });
        let (first, _) = client.channel().await.unwrap();
        client.give_up(first);
        let (second, _) = client.channel().await.unwrap();
        assert_ne!(first, second);
        client.give_up(first);
        assert_eq!(client.state().open.as_ref().map(|(number, _)| *number), Some(second));
        client.give_up(second);
        assert!(client.state().open.is_none());
        drop(helper.await.unwrap());
    }

    #[tokio::test]
    async fn a_call_whose_connection_breaks_late_is_sent_again() {
        let (_folder, listener, mut client) = listening();
        client.reconnect_limit = Duration::from_millis(50);
        let helper = tokio::spawn(async move {
            let serve = transport::server::<UnixStream, HelperRequest, HelperResponse>;
            let mut first = serve(greeted(&listener).await, HELPER_LIMITS);
            first.next().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(first);
            let mut second = serve(greeted(&listener).await, HELPER_LIMITS);
            let Some(Ok(ClientMessage::Request(request))) = second.next().await else { return false };
            let message = Ok(HelperResponse::List(Err(HelperError::Busy)));
            second.send(Response { request_id: request.id, message }).await.unwrap();
            // Stays open until the client has read it.
            matches!(request.message, HelperRequest::List { after: None }) && second.next().await.is_none()
        });
        let answer = client.call(&list, "list").await;
        assert!(matches!(answer, Ok(HelperResponse::List(Err(HelperError::Busy)))));
        drop(client);
        assert!(helper.await.unwrap());
    }
}
