//! Requests and answers, over HTTP/1.1, a connection each: an image is a handful of them.
//!
//! Called by [`super::endpoint`] and [`super::auth`]. It follows redirects, and decides who is told
//! a password: the host that was asked, and nobody to whom that host sends us.

use super::connect::Connector;
use super::fault::{Fault, Patience};
use super::url::Url;
use crate::error::explained;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Redirects of one request.
const MAX_REDIRECTS: usize = 5;

/// Asks.
pub(super) struct Http {
    pub(super) connector: Connector,
    pub(super) patience: Patience,
}

/// A question.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// For the first host only.
    pub(super) authorization: Option<HeaderValue>,
    /// Makes it a `POST` of a form.
    pub(super) form: Option<String>,
}

/// An answer, whose body is still to be read.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    idle: Duration,
    _connection: Connection,
}

/// Ends with its answer.
struct Connection {
    task: JoinHandle<()>,
    _sender: SendRequest<Full<Bytes>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Http {
    /// Follows redirects; gives the last answer, whatever its status.
    pub(super) async fn ask(&self, url: &Url, ask: &Ask) -> Result<Answer, Fault> {
        let mut at = url.clone();
        let mut authorization = ask.authorization.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.once(&at, ask, authorization.as_ref()).await;
            // Whoever asks names the host that was asked; it may be another one by now.
            let elsewhere =
                |fault: Fault| if at.origin() == url.origin() { fault } else { fault.context(at.authority()) };
            let answer = answer.map_err(elsewhere)?;
            let is_redirect = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            // A login is not sent on.
            if !is_redirect || ask.form.is_some() {
                return Ok(answer);
            }
            let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| at.join(location));
            let next = next.ok_or_else(|| Fault::never(anyhow::anyhow!("{at} leads to no usable address")))?;
            if !next.https && (at.https || !next.is_loopback()) {
                return Err(Fault::never(explained(
                    format!("{at} leads to {next}, which is not encrypted"),
                    "plain HTTP is used with a registry on this host only",
                )));
            }
            if next.origin() != at.origin() {
                authorization = None;
            }
            at = next;
        }
        Err(Fault::never(anyhow::anyhow!("{url} leads from one address to the next, without an end")))
    }

    async fn once(&self, url: &Url, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Answer, Fault> {
        let broken = |error: hyper::Error| Fault::soon(anyhow::Error::new(error).context("the connection was lost"));
        let stream = self.connector.open(url).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let task = tokio::spawn(async move { drop(connection.await) });
        let mut request = Request::builder().uri(&url.path).header(HOST, url.authority());
        request = request.header(USER_AGENT, concat!("banger/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let body = ask.form.clone().unwrap_or_default();
        let method = if ask.form.is_some() { Method::POST } else { Method::GET };
        let request = request.method(method).body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| Fault::never(error.into()))?;
        let Ok(answer) = timeout(self.patience.idle, sender.send_request(request)).await else {
            return Err(silent(self.patience.idle).silent());
        };
        let answer = answer.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let idle = self.patience.idle;
        let connection = Connection { task, _sender: sender };
        Ok(Answer { status: head.status, headers: head.headers, body, idle, _connection: connection })
    }
}

impl Answer {
    /// The next bytes of the body; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let Ok(frame) = timeout(self.idle, self.body.frame()).await else { return Err(silent(self.idle)) };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Fault::soon(anyhow::Error::new(error).context("the connection was lost")));
                }
                // What is no data is a trailer.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }

    /// The whole body, which is not longer than `most` bytes.
    pub(super) async fn whole(&mut self, most: usize) -> Result<Vec<u8>, Fault> {
        let mut whole = Vec::new();
        while let Some(data) = self.next().await? {
            if whole.len() + data.len() > most {
                return Err(Fault::never(anyhow::anyhow!("the answer is longer than {} KiB", most >> 10)));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }

    pub(super) fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn silent(idle: Duration) -> Fault {
    Fault::soon(anyhow::anyhow!("nothing arrived for {} s", idle.as_secs()))
}
