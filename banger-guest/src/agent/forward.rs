//! Forwarded connections: a channel of the client becomes a connection made in the guest.
//!
//! One task per connection, started by the connection handler, which must not wait for a connect.

use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::duplex::Pressure;
use super::input::Pending;

const CHUNK: usize = 32 * 1024;
/// How long a connect may take; the kernel's own bound is minutes.
const CONNECT: Duration = Duration::from_secs(15);

/// Connects to a port as seen from the guest.
pub(super) async fn tcp(channel: Channel<Msg>, host: String, port: u32, reply: ChannelOpenHandle, pressure: Pressure) {
    let connected = tokio::time::timeout(CONNECT, connect(&host, port)).await;
    let Ok(Ok(stream)) = connected else {
        reply.reject(ChannelOpenFailure::ConnectFailed).await;
        return;
    };
    let _ = stream.set_nodelay(true);
    reply.accept().await;
    relay(channel, stream, pressure).await;
}

/// Connects to a Unix socket of the guest.
pub(super) async fn unix(channel: Channel<Msg>, path: String, reply: ChannelOpenHandle, pressure: Pressure) {
    let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, UnixStream::connect(path)).await else {
        reply.reject(ChannelOpenFailure::ConnectFailed).await;
        return;
    };
    reply.accept().await;
    relay(channel, stream, pressure).await;
}

async fn connect(host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut last = Err(io::ErrorKind::InvalidInput.into());
    for address in addresses(host) {
        last = TcpStream::connect((address, port)).await;
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Addresses and `localhost`. Other names are not looked up: a static program has no resolver of
/// the image's, and the client can name the address.
fn addresses(host: &str) -> Vec<IpAddr> {
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    host.parse().into_iter().collect()
}

/// Both ways until both ends have ended, or the channel closes.
pub(super) async fn relay(
    channel: Channel<Msg>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    pressure: Pressure,
) {
    let (mut reader, writer) = tokio::io::split(stream);
    let (mut from_client, to_client) = channel.split();
    let mut input = Pending::new(writer, pressure);
    let output = async {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            if !reader.read_buf(&mut chunk).await.is_ok_and(|count| count > 0) {
                break;
            }
            if to_client.data_bytes(chunk).await.is_err() {
                break;
            }
        }
        let _ = to_client.eof().await;
    };
    let mut output = std::pin::pin!(output);
    let mut sent = false;
    let mut received = false;
    while !(sent && received) {
        tokio::select! {
            message = from_client.wait() => match message {
                Some(ChannelMsg::Data { data }) => if input.push(&data).is_err() { break },
                Some(ChannelMsg::Eof) => input.finish(),
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            },
            () = input.write_some(), if input.has_work() => received = input.is_closed(),
            () = &mut output, if !sent => sent = true,
        }
    }
    let _ = to_client.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_localhost() {
        assert_eq!(addresses("localhost").len(), 2);
        assert_eq!(addresses("10.0.0.1"), [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(addresses("::1").len(), 1);
        assert!(addresses("example.org").is_empty());
    }
}
