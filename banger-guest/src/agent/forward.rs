//! Forwarded connections: a channel of the client becomes a connection made in the guest.
//!
//! One task per connection, started by the connection handler, which must not wait for a connect.

use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::duplex::Pressure;
use super::input::Pending;
use crate::hosts::{self, HOSTS, MAX_HOSTS};

const CHUNK: usize = 32 * 1024;
/// The longest name of a host (RFC 1035), bytes.
const MAX_NAME: usize = 253;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;
/// Of what the image's resolver says, bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// How long a look-up and a connect may take together; the kernel's own bound is minutes.
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
    let mut last = Err(io::ErrorKind::NotFound.into());
    for address in addresses(host).await {
        last = TcpStream::connect((address, port)).await;
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Addresses, `localhost`, the names of `/etc/hosts`, and others as the image's own resolver knows
/// them.
async fn addresses(host: &str) -> Vec<IpAddr> {
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    if !is_name(host) {
        return Vec::new();
    }
    let name = host.to_owned();
    let listed = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        let opened = File::open(HOSTS).and_then(|file| file.take(MAX_HOSTS).read_to_end(&mut text));
        opened.map(|_| hosts::addresses(&text, &name)).unwrap_or_default()
    });
    let listed = listed.await.unwrap_or_default();
    if listed.is_empty() { resolve(host).await } else { listed }
}

/// As in a URL, and no option of a program.
fn is_name(host: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    host.len() <= MAX_NAME && !host.starts_with('-') && host.bytes().all(is_part)
}

/// Asks getent(1). A static program cannot load the image's name service modules; that program of
/// the image does, and knows its resolver's settings.
async fn resolve(name: &str) -> Vec<IpAddr> {
    let mut command = tokio::process::Command::new("getent");
    command.args(["ahosts", name]).env("PATH", crate::launch::PATH).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Vec::new() };
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        let _ = output.take(MAX_ANSWER).read_to_end(&mut said).await;
    }
    let _ = child.wait().await;
    in_answer(&String::from_utf8_lossy(&said))
}

/// An address for each kind of socket, with the name behind the first one.
fn in_answer(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) && found.len() < MAX_ADDRESSES {
            found.push(address);
        }
    }
    found
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

    #[tokio::test]
    async fn hosts_are_addresses_or_names() {
        assert_eq!(addresses("localhost").await.len(), 2);
        assert_eq!(addresses("10.0.0.1").await, [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(addresses("::1").await.len(), 1);
        for odd in ["--help", "a b", "a/b", "a\nb", &"a".repeat(300)] {
            assert!(!is_name(odd) && addresses(odd).await.is_empty(), "{odd}");
        }
        assert!(["web", "db.alice.vm", "_sip.example.org", "xn--bcher-kva.example"].into_iter().all(is_name));
        // As this machine knows itself.
        let own = nix::unistd::gethostname().unwrap_or_default();
        let said = std::process::Command::new("getent").arg("ahosts").arg(&own).output();
        match said.map(|said| in_answer(&String::from_utf8_lossy(&said.stdout))) {
            Ok(known) if !known.is_empty() => assert!(!addresses(&own.to_string_lossy()).await.is_empty()),
            _ => eprintln!("skipped: this machine does not know its own name, or has no getent"),
        }
    }

    #[test]
    fn an_answer_has_each_address_once() {
        let text = "172.16.0.3      STREAM db.alice.vm\n172.16.0.3      DGRAM  \n172.16.0.3      RAW    \n\
                    fe80::1%eth0    STREAM\n2001:db8::1     STREAM\n\nnothing\n";
        let expected: [IpAddr; 2] = [[172, 16, 0, 3].into(), "2001:db8::1".parse().unwrap_or([0, 0, 0, 0].into())];
        assert_eq!(in_answer(text), expected);
        let many: String = (0..200).map(|number| format!("10.0.0.{number} STREAM\n")).collect();
        assert_eq!(in_answer(&many).len(), MAX_ADDRESSES);
    }
}
