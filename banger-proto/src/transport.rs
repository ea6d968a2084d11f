//! tarpc over our own frames on a unix stream: hello, bounded frames, clamped deadlines,
//! cancellation.
//!
//! tarpc's stock transport is not used: a client's deadline crosses it as a `Duration`, and one
//! frame with a deadline beyond about two years panics the server.

use crate::wire::{HELLO_BYTES, Hello, NotServed, Purpose, ToClient, ToServer, WireError, decode, encode};
use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt, future::ready};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::time::{Duration, Instant};
use tarpc::{ClientMessage, Request, Response, ServerError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// How long a client may take to say hello.
const CLIENT_HELLO: Duration = Duration::from_secs(5);
/// How long a server may: the connection may be what starts it (socket activation), on a host under
/// load.
const SERVER_HELLO: Duration = Duration::from_secs(60);

/// The limits of one service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest frame in either direction, bytes.
    pub max_frame: usize,
    /// The longest time a call may stay in flight, whatever the client asks for.
    pub max_timeout: Duration,
    /// Calls in flight on one connection.
    pub max_in_flight: usize,
}

/// Limits of the daemon's service. A `watch` waits up to 30 s for news.
pub const DAEMON_LIMITS: Limits =
    Limits { max_frame: 64 * 1024, max_timeout: Duration::from_secs(60), max_in_flight: 32 };

/// Limits of the helper's service. The slowest operation reserves a COW file of 128 GiB.
pub const HELPER_LIMITS: Limits =
    Limits { max_frame: 16 * 1024, max_timeout: Duration::from_secs(60), max_in_flight: 64 };

/// Says hello as a server: reads the client's, answers ours whatever it was, so that an older
/// client can print both versions.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after five seconds, else what the client did wrong; close the
/// connection.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<Hello> {
    let theirs = read_hello(stream, CLIENT_HELLO).await?;
    let purpose = theirs.as_ref().map_or(Purpose::Calls, |hello| hello.purpose);
    stream.write_all(&Hello::ours(purpose).encode()).await?;
    Ok(theirs?)
}

/// Says hello as a client.
///
/// # Errors
/// As [`accept`]; the error of another version is a sentence for the user.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, purpose: Purpose) -> io::Result<Hello> {
    stream.write_all(&Hello::ours(purpose).encode()).await?;
    Ok(read_hello(stream, SERVER_HELLO).await??)
}

async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S, limit: Duration) -> io::Result<Result<Hello, WireError>> {
    let mut bytes = [0; HELLO_BYTES];
    match tokio::time::timeout(limit, stream.read_exact(&mut bytes)).await {
        Ok(read) => read.map(|_| Hello::decode(&bytes)),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the other side did not say hello within {} s", limit.as_secs()),
        )),
    }
}

fn framed<S: AsyncRead + AsyncWrite>(stream: S, limits: Limits) -> Framed<S, LengthDelimitedCodec> {
    LengthDelimitedCodec::builder().max_frame_length(limits.max_frame).new_framed(stream)
}

/// The server's half of a connection that has said hello.
pub fn server<S, Req, Resp>(
    stream: S,
    limits: Limits,
) -> impl Stream<Item = io::Result<ClientMessage<Req>>> + Sink<Response<Resp>, Error = io::Error>
where
    S: AsyncRead + AsyncWrite,
    Req: DeserializeOwned,
    Resp: Serialize,
{
    framed(stream, limits)
        .map(move |frame| {
            Ok(match decode(&frame?, limits.max_frame)? {
                ToServer::Call { id, timeout_ms, body } => {
                    let wanted = Duration::from_millis(timeout_ms.into());
                    let mut context = tarpc::context::Context::current();
                    context.deadline = Instant::now() + wanted.min(limits.max_timeout);
                    ClientMessage::Request(Request { context, id, message: body })
                }
                ToServer::Cancel { id } => ClientMessage::Cancel { trace_context: Default::default(), request_id: id },
            })
        })
        .with(move |reply: Response<Resp>| {
            let id = reply.request_id;
            let body = reply.message.map_err(|_| NotServed::Busy);
            let whole = encode(&ToClient { id, body }, limits.max_frame);
            // A reply too long for a frame fails its own call; the connection and the other calls
            // live on.
            let failed = ToClient::<Resp> { id, body: Err(NotServed::TooLong) };
            let frame = whole.or_else(|_| encode(&failed, limits.max_frame));
            ready(frame.map(Bytes::from).map_err(io::Error::from))
        })
}

/// The client's half of a connection that has said hello. A call that was not taken up fails with
/// [`io::ErrorKind::WouldBlock`], one whose answer does not fit a frame with
/// [`io::ErrorKind::InvalidData`].
pub fn client<S, Req, Resp>(
    stream: S,
    limits: Limits,
) -> impl Stream<Item = io::Result<Response<Resp>>> + Sink<ClientMessage<Req>, Error = io::Error>
where
    S: AsyncRead + AsyncWrite,
    Req: Serialize,
    Resp: DeserializeOwned,
{
    framed(stream, limits)
        .map(move |frame| {
            let reply: ToClient<Resp> = decode(&frame?, limits.max_frame)?;
            let refused = |why: NotServed| {
                let kind = match why {
                    NotServed::Busy => io::ErrorKind::WouldBlock,
                    NotServed::TooLong => io::ErrorKind::InvalidData,
                };
                ServerError::new(kind, why.to_string())
            };
            Ok(Response { request_id: reply.id, message: reply.body.map_err(refused) })
        })
        .with(move |message: ClientMessage<Req>| {
            let wire = match message {
                ClientMessage::Request(request) => {
                    let left = request.context.deadline.saturating_duration_since(Instant::now());
                    let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                    Ok(ToServer::Call { id: request.id, timeout_ms, body: request.message })
                }
                ClientMessage::Cancel { request_id, .. } => Ok(ToServer::Cancel { id: request_id }),
                _ => Err(io::Error::other("tarpc sent a message of an unknown kind")),
            };
            ready(wire.and_then(|wire| Ok(Bytes::from(encode(&wire, limits.max_frame)?))))
        })
}
