//! One registry, or one mirror of it, and one repository there: the requests of the distribution
//! protocol, with a login where it is asked for. Source: OCI distribution specification v1.1,
//! "Pull".

use super::auth::{self, Challenge};
use super::credentials::{self, Found};
use super::fault::{Again, Fault, Patience};
use super::http::{Answer, Ask, Http};
use super::url::Url;
use crate::error::explained;
use hyper::StatusCode;
use hyper::header::{ACCEPT, HeaderValue, RANGE, RETRY_AFTER};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};

/// What a registry says of an error, bytes.
const MAX_ERROR: usize = 64 * 1024;
/// Of which a message quotes so many characters.
const QUOTED: usize = 200;

/// Where a repository is.
pub(super) struct Endpoint {
    http: Arc<Http>,
    base: Url,
    /// What users call it; their login is kept under this name.
    name: String,
    repository: String,
    docker_config: Option<PathBuf>,
    found: OnceCell<Found>,
    /// What the last challenge was answered with.
    authorization: Mutex<Option<HeaderValue>>,
    /// It has not answered, or not with what was asked for, as often as it was asked.
    given_up: AtomicBool,
}

/// An endpoint whose turn it is to be asked.
pub(super) struct Turn<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) patience: Patience,
    /// Whether what it says of a failure is for the user: one that was given up before is not.
    pub(super) counts: bool,
}

/// The endpoints in the order in which they are asked. An image has many blobs, and a mirror that
/// swallows packets would be waited for with each of them: the next endpoint is asked after the
/// first silence, and one that was given up comes last.
pub(super) fn turns<'a>(endpoints: &'a [Endpoint], patience: &Patience) -> Vec<Turn<'a>> {
    let (last, first): (Vec<&Endpoint>, Vec<&Endpoint>) =
        endpoints.iter().partition(|endpoint| endpoint.given_up.load(Ordering::Relaxed));
    // Behind it there is nobody to hope for.
    let hope = if first.is_empty() { last.len() } else { first.len() };
    let turn = |(number, endpoint): (usize, &'a Endpoint)| {
        let patience = if number == hope { *patience } else { Patience { silent: 1, ..*patience } };
        Turn { endpoint, patience, counts: number <= hope }
    };
    (1..).zip(first.into_iter().chain(last)).map(turn).collect()
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<RegistryError>,
}

#[derive(Deserialize)]
struct RegistryError {
    #[serde(default)]
    message: String,
}

impl Endpoint {
    pub(super) fn new(
        http: Arc<Http>,
        base: Url,
        name: &str,
        repository: &str,
        docker_config: Option<PathBuf>,
    ) -> Self {
        Self {
            http,
            base,
            name: name.to_owned(),
            repository: repository.to_owned(),
            docker_config,
            found: OnceCell::new(),
            authorization: Mutex::new(None),
            given_up: AtomicBool::new(false),
        }
    }

    /// How its last question ended.
    pub(super) fn ended(&self, fault: Option<&Fault>) {
        let given_up = fault.is_some_and(|fault| fault.silent || fault.again != Again::Never);
        self.given_up.store(given_up, Ordering::Relaxed);
    }

    /// What users call it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Asks for `manifests/...` or `blobs/...`. The answer is a success, 404 or 416; everything
    /// else is a fault.
    pub(super) async fn get(&self, what: &str, accept: &str, from: u64) -> Result<Answer, Fault> {
        self.get_here(what, accept, from).await.map_err(|fault| fault.context(self.name.clone()))
    }

    async fn get_here(&self, what: &str, accept: &str, from: u64) -> Result<Answer, Fault> {
        let prefix = self.base.path.trim_end_matches('/');
        let url = self.base.with_path(format!("{prefix}/v2/{}/{what}", self.repository));
        let accept = HeaderValue::from_str(accept).map_err(|error| Fault::never(error.into()))?;
        let mut ask = Ask { headers: vec![(ACCEPT, accept)], ..Ask::default() };
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).map_err(|error| Fault::never(error.into()))?;
            ask.headers.push((RANGE, range));
        }
        ask.authorization = self.authorization.lock().await.clone();
        let mut answer = self.http.ask(&url, &ask).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            let wanted = Challenge::of(&answer.headers);
            let Some(challenge) = wanted else { return Err(self.denied(answer).await) };
            match self.authorize(&challenge, ask.authorization.as_ref()).await? {
                Some(value) => ask.authorization = Some(value),
                None => return Err(self.denied(answer).await),
            }
            answer = self.http.ask(&url, &ask).await?;
        }
        let status = answer.status;
        match status.as_u16() {
            200 | 206 | 404 | 416 => Ok(answer),
            401 | 403 => Err(self.denied(answer).await),
            429 => {
                let after = answer.header(RETRY_AFTER).and_then(|text| text.trim().parse().ok());
                let again = after.map_or(Again::Soon, |seconds| Again::After(Duration::from_secs(seconds)));
                let when = after.map_or_else(String::new, |seconds| format!(", for {seconds} s"));
                let error = explained(
                    format!("it wants fewer requests (429){when}{}", quote(answer).await),
                    "try again later; many registries allow more to who has logged in (docker login)",
                );
                Err(Fault { again, ..Fault::soon(error) })
            }
            500..=599 | 408 => Err(Fault::soon(anyhow::anyhow!("it answered {status}{}", quote(answer).await))),
            _ => Err(Fault::never(anyhow::anyhow!("it answered {status}{}", quote(answer).await))),
        }
    }

    /// Answers a challenge, unless another request has done so since `refused` was sent.
    async fn authorize(
        &self,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let mut known = self.authorization.lock().await;
        if known.is_some() && known.as_ref() != refused {
            return Ok(known.clone());
        }
        let found = self.login().await.map_err(Fault::never)?;
        let answer = auth::answer(&self.http, &self.base, &self.repository, challenge, found).await?;
        known.clone_from(&answer);
        Ok(answer)
    }

    async fn login(&self) -> anyhow::Result<&Found> {
        let find = || credentials::find(self.docker_config.as_deref(), &self.name, &self.repository);
        self.found.get_or_try_init(find).await
    }

    /// Registries answer so for what does not exist, too: who may not see it shall not learn that
    /// it is there.
    async fn denied(&self, answer: Answer) -> Fault {
        let status = answer.status.as_u16();
        let said = quote(answer).await;
        let found = match self.login().await {
            Ok(found) => found,
            Err(error) => return Fault::never(error),
        };
        let (login, hint) = if found.login.is_some() {
            (
                format!("the login is from {}", found.source),
                format!(
                    "check the name, and that this login may pull it; log in again with: docker login {}",
                    self.name
                ),
            )
        } else {
            (
                format!("no login was sent: {}", found.source),
                format!(
                    "check the name; if it is private, log in first: docker login {0}, or podman login --compat-auth-file ~/.docker/config.json {0}",
                    self.name
                ),
            )
        };
        let message =
            format!("it does not let us have {}, or has no such repository ({status}{said}); {login}", self.repository);
        Fault::never(explained(message, hint))
    }
}

/// What the registry says itself.
async fn quote(mut answer: Answer) -> String {
    let Ok(text) = answer.whole(MAX_ERROR).await else { return String::new() };
    let Ok(said) = serde_json::from_slice::<Errors>(&text) else { return String::new() };
    match said.errors.into_iter().next() {
        Some(error) if !error.message.is_empty() => {
            let quoted: String = error.message.chars().filter(|c| !c.is_control()).take(QUOTED).collect();
            format!(": {quoted}")
        }
        _ => String::new(),
    }
}
