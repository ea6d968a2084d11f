//! Connections: TCP, through a proxy where there is one, and TLS inside.

use super::fault::{Again, Fault, Patience};
use super::proxy::{Proxies, Proxy};
use super::tls;
use super::url::Url;
use crate::error::explained;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError, InvalidMessage};

/// A proxy's answer to `CONNECT`, bytes.
const MAX_ANSWER: usize = 16 * 1024;
/// How long a registry on this host may take to show that it does not speak TLS.
const PROBE: Duration = Duration::from_secs(3);

/// How long an address has before the next one is tried as well (RFC 8305, "Connection Attempt
/// Delay"); as Go has it.
const HEAD_START: Duration = Duration::from_millis(300);

/// A connection of whatever layers.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Makes connections.
pub(super) struct Connector {
    proxies: Proxies,
    /// Read when it is first needed: a plain registry on this host needs no certificates.
    tls: OnceLock<Arc<ClientConfig>>,
    patience: Patience,
}

impl Connector {
    pub(super) fn new(proxies: Proxies, patience: Patience) -> Self {
        Self { proxies, tls: OnceLock::new(), patience }
    }

    #[cfg(test)]
    pub(super) fn trusting(self, config: Arc<ClientConfig>) -> Self {
        drop(self.tls.set(config));
        self
    }

    /// # Errors
    /// With the host, and why.
    pub(super) async fn open(&self, url: &Url) -> Result<Box<dyn Wire>, Fault> {
        let connected = timeout(self.patience.connect, self.layers(url)).await;
        let connected = connected.unwrap_or_else(|_| {
            let time = self.patience.connect.as_secs();
            Err(Fault::soon(explained(format!("no connection within {time} s"), NETWORK)))
        });
        connected.map_err(Fault::silent)
    }

    async fn layers(&self, url: &Url) -> Result<Box<dyn Wire>, Fault> {
        let stream: Box<dyn Wire> = match self.proxies.towards(url).map_err(Fault::never)? {
            None => Box::new(tcp(url).await?),
            Some(proxy) => {
                let through = |fault: Fault| fault.context(format!("through the proxy {}", proxy.url.authority()));
                let stream: Box<dyn Wire> = Box::new(tcp(&proxy.url).await.map_err(through)?);
                let stream = if proxy.url.https { self.secure(&proxy.url, stream).await } else { Ok(stream) };
                tunnel(stream.map_err(through)?, proxy, url).await.map_err(through)?
            }
        };
        if url.https { self.secure(url, stream).await } else { Ok(stream) }
    }

    async fn secure(&self, url: &Url, stream: Box<dyn Wire>) -> Result<Box<dyn Wire>, Fault> {
        match self.handshake(url, stream).await? {
            Ok(stream) => Ok(stream),
            Err(error) => Err(of_tls(&error, url)),
        }
    }

    /// The inner error is the handshake's.
    async fn handshake(&self, url: &Url, stream: Box<dyn Wire>) -> Result<io::Result<Box<dyn Wire>>, Fault> {
        let config = match self.tls.get() {
            Some(config) => Arc::clone(config),
            None => {
                let config = tls::config().map_err(Fault::never)?;
                Arc::clone(self.tls.get_or_init(|| config))
            }
        };
        let name = ServerName::try_from(url.host.clone()).map_err(|error| Fault::never(error.into()))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        Ok(stream.map(|stream| -> Box<dyn Wire> { Box::new(stream) }))
    }

    /// Does a registry on this host speak plain HTTP? As docker does, TLS is tried first. Without a
    /// port in its name, each has a port of its own.
    pub(super) async fn is_plain(&self, secure: &Url, plain: &Url) -> Result<bool, Fault> {
        let stream: Box<dyn Wire> = match tcp(secure).await {
            Ok(stream) => Box::new(stream),
            Err(_) if secure.port != plain.port => return Ok(true),
            Err(fault) => return Err(fault),
        };
        match timeout(PROBE, self.handshake(secure, stream)).await {
            // A certificate that we do not believe comes from somebody who speaks TLS.
            Ok(Ok(Err(error))) => Ok(distrusted(&error).is_none()),
            Ok(Ok(Ok(_))) => Ok(false),
            // Without any certificate authorities there is no TLS to ask for.
            Ok(Err(_)) | Err(_) => Ok(true),
        }
    }
}

const NETWORK: &str = "check the network, and HTTPS_PROXY and NO_PROXY where a proxy is needed";

async fn tcp(url: &Url) -> Result<TcpStream, Fault> {
    let addresses = tokio::net::lookup_host((url.host.as_str(), url.port)).await.map_err(|error| {
        // On a host without a network every attempt says so, and a name with a mistake in it has no
        // address ever.
        let error = explained(format!("cannot find {}: {error}", url.host), NETWORK);
        Fault { again: Again::Once, ..Fault::soon(error) }
    })?;
    let stream = first_of(addresses.collect()).await.map_err(|error| {
        // Nobody listens there, which a moment does not change.
        let again = if error.kind() == io::ErrorKind::ConnectionRefused { Again::Never } else { Again::Soon };
        Fault { again, ..Fault::soon(explained(format!("cannot connect: {error}"), NETWORK)) }
    })?;
    // Requests are small and answers are waited for.
    drop(stream.set_nodelay(true));
    Ok(stream)
}

/// A connection to the first of a host's addresses that answers (RFC 8305): a network may swallow
/// what goes to one of them, IPv6 above all.
pub(super) async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = by_turns(addresses).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    loop {
        attempts.extend(waiting.next().map(TcpStream::connect));
        let ended = tokio::select! {
            ended = attempts.next() => ended,
            () = sleep(HEAD_START), if waiting.len() > 0 => continue,
        };
        match ended {
            Some(Ok(stream)) => return Ok(stream),
            // What a host itself has said counts for more than that there is no way to it.
            Some(Err(error)) if failed.is_none() || error.kind() == io::ErrorKind::ConnectionRefused => {
                failed = Some(error);
            }
            Some(Err(_)) => {}
            None => return Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
        }
    }
}

/// The addresses in their order, but of the two families by turns.
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_of_first =
        |address: &SocketAddr| addresses.first().is_some_and(|first| first.is_ipv6() == address.is_ipv6());
    let (one, other): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses.iter().copied().partition(is_of_first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut all = Vec::with_capacity(addresses.len());
    while all.len() < addresses.len() {
        all.extend(one.next());
        all.extend(other.next());
    }
    all
}

fn distrusted(error: &io::Error) -> Option<String> {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(TlsError::InvalidCertificate(why)) => Some(why.to_string()),
        _ => None,
    }
}

fn of_tls(error: &io::Error, url: &Url) -> Fault {
    if let Some(why) = distrusted(error) {
        let hint = format!("for an authority of your own, set {} to its certificate (PEM)", tls::VARIABLE);
        return Fault::never(explained(format!("its certificate is not trusted: {why}"), hint));
    }
    let of_rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    if let Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) = of_rustls {
        let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
        let hint = format!(
            "plain HTTP is used with a registry on this host only. Make it one, and pull localhost:5000/...:\n\
             ssh -N -L 5000:{host}:{port} HOST\n\
             or let skopeo fetch the image:\n\
             skopeo copy --src-tls-verify=false docker://{host}:{port}/... oci-archive:image.tar\n\
             banger image import image.tar --name NAME",
            port = url.port
        );
        return Fault::never(explained("it does not speak TLS, but plain HTTP or something else", hint));
    }
    let again = if of_rustls.is_some() { Again::Never } else { Again::Soon };
    let hint = format!("check this host's clock, {}, and HTTPS_PROXY where a proxy is needed", tls::VARIABLE);
    Fault { again, ..Fault::soon(explained(format!("TLS: {error}"), hint)) }
}

async fn tunnel(mut stream: Box<dyn Wire>, proxy: &Proxy, url: &Url) -> Result<Box<dyn Wire>, Fault> {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let place = format!("{host}:{}", url.port);
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n").into_bytes();
    if let Some(value) = &proxy.authorization {
        request.extend(b"Proxy-Authorization: ");
        request.extend(value.as_bytes());
        request.extend(b"\r\n");
    }
    request.extend(b"\r\n");
    let lost = |error: io::Error| Fault::soon(anyhow::Error::new(error));
    stream.write_all(&request).await.map_err(lost)?;
    // A byte at a time: what comes behind the answer is not ours to take.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            return Err(Fault::never(anyhow::anyhow!("its answer has no end")));
        }
        answer.push(stream.read_u8().await.map_err(lost)?);
    }
    let text = String::from_utf8_lossy(&answer);
    let line = text.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(stream),
        Some("407") => Err(Fault::never(explained(
            "it wants a login",
            "such as: HTTPS_PROXY=http://USER:PASSWORD@proxy.example:3128",
        ))),
        _ => Err(Fault::never(anyhow::anyhow!("it refused: {}", line.chars().take(100).collect::<String>()))),
    }
}
