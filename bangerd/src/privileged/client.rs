//! The connection to `banger-priv`: made when needed, made again when lost. Its operations are repeatable, so a
//! call whose connection broke is sent once more over the next one.

use super::{Link, PrivilegedError};
use banger_proto::helper::{HelperRequest, HelperResponse};
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::Purpose;
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
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), channel: Mutex::new(None) }
    }

    async fn channel(&self) -> io::Result<Calls> {
        let mut channel = self.channel.lock().await;
        if let Some(open) = channel.as_ref() {
            return Ok(open.clone());
        }
        let mut stream = UnixStream::connect(&self.socket).await?;
        transport::connect(&mut stream, Purpose::Calls).await?;
        let open = tarpc::client::new(Config::default(), transport::client(stream, HELPER_LIMITS)).spawn();
        Ok(channel.insert(open).clone())
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
            if began.elapsed() > limit {
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
