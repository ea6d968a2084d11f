//! The connection to `banger-priv`: made when needed, made again when lost. Its operations are repeatable, so a
//! call whose connection broke is sent once more over the next one.

use super::{Link, PrivilegedError};
use banger_proto::helper::{HelperRequest, HelperResponse};
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::{Purpose, WireError};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tarpc::client::{Channel, Config, RpcError};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// How long a helper that is being restarted is waited for.
const RECONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A socket that is not there at all is not coming back by a restart: systemd holds it in between.
const ABSENT_LIMIT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(100);
/// How long one operation may take; the slowest reserves a COW file.
const CALL_LIMIT: Duration = Duration::from_secs(55);

type Calls = Channel<HelperRequest, HelperResponse>;

#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    channel: Mutex<Option<Calls>>,
    /// Since when the helper has been of another release. An upgrade restarts one after the other: that is waited
    /// for once, and not by each call.
    differs: std::sync::Mutex<Option<Instant>>,
}

/// Is it the helper's hello that does not fit?
fn is_other_release(error: &io::Error) -> bool {
    let hello = error.get_ref().and_then(|source| source.downcast_ref::<WireError>());
    matches!(hello, Some(WireError::Version { .. }))
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), channel: Mutex::new(None), differs: std::sync::Mutex::default() }
    }

    async fn channel(&self) -> io::Result<Calls> {
        let mut channel = self.channel.lock().await;
        if let Some(open) = channel.as_ref() {
            return Ok(open.clone());
        }
        let mut stream = UnixStream::connect(&self.socket).await?;
        let hello = transport::connect(&mut stream, Purpose::Calls).await;
        let other = hello.as_ref().is_err_and(is_other_release);
        let mut differs = self.differs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *differs = other.then(|| differs.unwrap_or_else(Instant::now));
        drop(differs);
        hello?;
        let open = tarpc::client::new(Config::default(), transport::client(stream, HELPER_LIMITS)).spawn();
        Ok(channel.insert(open).clone())
    }

    fn differs_for(&self) -> Duration {
        let differs = self.differs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        differs.map_or(Duration::ZERO, |since| since.elapsed())
    }

    async fn call(
        &self,
        request: &(dyn Fn() -> HelperRequest + Send + Sync),
        operation: &'static str,
    ) -> Result<HelperResponse, PrivilegedError> {
        let began = Instant::now();
        loop {
            let source = match self.channel().await {
                Err(error) => error,
                Ok(channel) => {
                    let mut context = tarpc::context::current();
                    context.deadline = Instant::now() + CALL_LIMIT;
                    match channel.call(context, request()).await {
                        Ok(response) => return Ok(response),
                        Err(RpcError::DeadlineExceeded) => return Err(PrivilegedError::TimedOut { operation }),
                        // Too many calls in flight on this connection: it is alive, and soon there is room.
                        Err(RpcError::Server(error)) => io::Error::new(error.kind, error.detail),
                        Err(error) => {
                            *self.channel.lock().await = None;
                            io::Error::other(error)
                        }
                    }
                }
            };
            let limit = if source.kind() == io::ErrorKind::NotFound { ABSENT_LIMIT } else { RECONNECT_LIMIT };
            if is_other_release(&source) {
                if self.differs_for().max(began.elapsed()) > limit {
                    return Err(PrivilegedError::OtherRelease { source });
                }
            } else if began.elapsed() > limit {
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
    use banger_proto::wire::{HELLO_BYTES, Hello, PROTOCOL_VERSION};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn another_version_is_told_apart_and_forgotten_when_it_is_ours_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("priv.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
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
        let client = Client::new(&socket);
        assert!(client.channel().await.is_err_and(|error| is_other_release(&error)));
        let since = *client.differs.lock().unwrap();
        assert!(since.is_some());
        assert!(client.channel().await.is_err());
        assert_eq!(*client.differs.lock().unwrap(), since, "counted from the first time");
        client.channel().await.unwrap();
        assert_eq!(*client.differs.lock().unwrap(), None);
        drop(helper.await.unwrap());
        assert!(!is_other_release(&io::ErrorKind::InvalidData.into()));
    }
}
