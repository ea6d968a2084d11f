//! A registry on loopback that behaves as badly as a test wants it to.

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A request, as far as tests look at it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) authorization: Option<String>,
    pub(super) range: Option<u64>,
    /// The body of a `POST`.
    pub(super) form: String,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Whole(Vec<u8>),
    /// Says that it is so long, and ends after these bytes.
    Cut(Vec<u8>, usize),
    /// Says that it is so long, and is silent after these bytes.
    Stalled(Vec<u8>, usize),
    /// Never ends.
    Endless,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

pub(super) fn reply(status: u16, body: &[u8]) -> Reply {
    Reply { status, headers: Vec::new(), body: Body::Whole(body.to_vec()) }
}

impl Reply {
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Bytes, from where the request wants them.
pub(super) fn ranged(seen: &Seen, bytes: &[u8]) -> Reply {
    match seen.range {
        None => reply(200, bytes),
        Some(from) if from < bytes.len() as u64 => {
            let part = &bytes[usize::try_from(from).unwrap()..];
            reply(206, part).header("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
        }
        Some(_) => reply(416, b""),
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

#[derive(Clone)]
pub(super) struct Server {
    /// `127.0.0.1:PORT`.
    pub(super) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Answers until the test's runtime ends.
    pub(super) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, seen: Arc::default() };
        let (serving, handler): (_, Arc<Handler>) = (server.clone(), Arc::new(handler));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().talk(stream, Arc::clone(&handler)));
            }
        });
        server
    }

    /// One request on one connection, whatever is below it.
    pub(super) async fn talk<T: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut stream: T,
        handler: Arc<Handler>,
    ) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
            // A TLS handshake: who speaks only plain HTTP hangs up.
            if head == [0x16] {
                return None;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let header = |name: &str| {
            let wanted = format!("{name}: ");
            head.lines().find_map(|line| {
                line.to_ascii_lowercase().starts_with(&wanted).then(|| line[wanted.len()..].to_owned())
            })
        };
        let length = header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut form = vec![0; length];
        stream.read_exact(&mut form).await.ok()?;
        let seen = Seen {
            path: head.split(' ').nth(1).unwrap().to_owned(),
            authorization: header("authorization"),
            range: header("range").map(|range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap()),
            form: String::from_utf8(form).unwrap(),
        };
        self.seen.lock().unwrap().push(seen.clone());
        let Reply { status, headers, body } = handler(&seen);
        let length = match &body {
            Body::Whole(bytes) => bytes.len(),
            Body::Cut(_, length) | Body::Stalled(_, length) => *length,
            Body::Endless => usize::MAX >> 1,
        };
        let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
        match body {
            Body::Whole(bytes) | Body::Cut(bytes, _) => stream.write_all(&bytes).await.ok()?,
            Body::Stalled(bytes, _) => {
                stream.write_all(&bytes).await.ok()?;
                stream.flush().await.ok()?;
                std::future::pending::<()>().await;
            }
            Body::Endless => loop {
                stream.write_all(&[b' '; 65536]).await.ok()?;
            },
        }
        stream.shutdown().await.ok()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had this in their path.
    pub(super) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }
}
