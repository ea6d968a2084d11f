//! The user's logins, as docker keeps them: `auths`, `credHelpers` and `credsStore` of
//! `~/.docker/config.json`.
//!
//! Nothing is written there; `docker login`, `podman login` and the like do that.

use crate::error::explained;
use anyhow::Context as _;
use banger_policy::json::AnyCase;
use data_encoding::BASE64;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// The file, bytes; docker's own has some hundred.
const MAX_FILE: u64 = 1 << 20;
/// What a helper says, bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// A helper may ask the user for a passphrase.
const HELPER: Duration = Duration::from_secs(60);
/// The name that the user's login for docker.io is kept under.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for a token (docker's "identity token").
    Refresh(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

/// What was found for a registry.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) login: Option<Login>,
    /// Where it was found, or why none was: for messages.
    pub(super) source: String,
}

/// `null` is written for everything that is not there.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: Option<BTreeMap<String, AnyCase<Entry>>>,
    #[serde(rename = "credhelpers")]
    helpers: Option<BTreeMap<String, Option<String>>>,
    #[serde(rename = "credsstore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Default, Deserialize)]
struct Answer {
    username: String,
    secret: String,
}

/// Where the user's docker keeps its configuration.
pub(super) fn config_file() -> Option<PathBuf> {
    let own = std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let folder =
        own.or_else(|| Some(PathBuf::from(std::env::var_os("HOME").filter(|path| !path.is_empty())?).join(".docker")));
    Some(folder?.join("config.json"))
}

/// The login for a repository of a registry (`host` or `host:port`). A helper that fails is not the
/// end: most images want no login.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) async fn find(file: Option<&Path>, registry: &str, repository: &str) -> anyhow::Result<Found> {
    let Some(file) = file else { return Ok(none("there is no HOME to look for ~/.docker/config.json in")) };
    let shown = file.display();
    let Some(config) = read(file)? else { return Ok(none(&format!("there is no {shown}"))) };
    let key = if registry == "docker.io" { DOCKER_KEY } else { registry };
    let named = |name: &'_ Option<String>| name.clone().filter(|name| !name.is_empty());
    let helpers = config.helpers.unwrap_or_default();
    let helper = helpers.get(registry).or_else(|| helpers.get(key)).and_then(named);
    let mut why = format!("{shown} has none for {registry}");
    if let Some((name, of)) =
        helper.map(|name| (name, "credHelpers")).or(named(&config.store).map(|name| (name, "credsStore")))
    {
        let source = format!("docker-credential-{name} ({of} of {shown})");
        match ask_helper(&name, key).await {
            Ok(Some(login)) => return Ok(Found { login: Some(login), source }),
            Ok(None) => why = format!("{source} has none for {registry}"),
            Err(error) => why = format!("{source} failed: {error:#}"),
        }
    }
    Ok(match chosen(&config.auths.unwrap_or_default(), key, repository) {
        Some(login) => Found { login: Some(login), source: format!("auths of {shown}") },
        None => none(&why),
    })
}

fn none(why: &str) -> Found {
    Found { login: None, source: why.to_owned() }
}

fn read(file: &Path) -> anyhow::Result<Option<Config>> {
    let what = || format!("cannot read {}", file.display());
    let opened = match File::open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(what),
    };
    let mut text = String::new();
    opened.take(MAX_FILE).read_to_string(&mut text).with_context(what)?;
    // As `touch` makes it.
    if text.trim().is_empty() {
        return Ok(Some(Config::default()));
    }
    serde_json::from_str::<AnyCase<Config>>(&text)
        .map(|AnyCase(config)| Some(config))
        .map_err(|error| explained(error.to_string(), "docker and podman write this file; mend it or move it away"))
        .with_context(what)
}

/// The login of the entry that is called as docker calls it today, else of the one that comes
/// nearest: podman gives parts of a registry entries of their own, and keys were addresses once,
/// which are still about. An entry without a login stands there beside `credsStore`.
fn chosen(auths: &BTreeMap<String, AnyCase<Entry>>, key: &str, repository: &str) -> Option<Login> {
    let nearness = |name: &str| {
        let (_, part) = split(name);
        let is_above = repository.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (name == key, if is_above { part.len() } else { 0 }, part.is_empty())
    };
    let known = auths.iter().filter(|(name, _)| split(name).0 == split(key).0);
    let logins = known.filter_map(|(name, AnyCase(entry))| Some((nearness(name), login(entry)?)));
    // Of two that are equally near the first counts.
    let first = logins.reduce(|best, other| if other.0 > best.0 { other } else { best });
    first.map(|(_, login)| login)
}

/// Host and path of a key.
fn split(key: &str) -> (&str, &str) {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // Other names that the host of docker.io has.
    let host = if matches!(host, "docker.io" | "registry-1.docker.io") { "index.docker.io" } else { host };
    (host, path.trim_end_matches('/'))
}

fn login(entry: &Entry) -> Option<Login> {
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let (auth, token) = (word(&entry.auth), word(&entry.identitytoken));
    if !token.is_empty() {
        return Some(Login::Refresh(token));
    }
    let (user, password) = if auth.is_empty() {
        (word(&entry.username), word(&entry.password))
    } else {
        let text = String::from_utf8(BASE64.decode(auth.trim().as_bytes()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        (user.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    (!user.is_empty()).then_some(Login::Password { user, password })
}

/// `docker-credential-NAME get`: the registry on standard input, JSON on standard output.
/// Source: github.com/docker/docker-credential-helpers, `credentials/credentials.go`.
async fn ask_helper(name: &str, key: &str) -> anyhow::Result<Option<Login>> {
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        anyhow::bail!("its name is not that of a program");
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    // What it says on standard error may be for the user, who may be asked for a passphrase there.
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("it is not on PATH"),
        _ => error.into(),
    })?;
    let talk = async {
        if let Some(mut to) = child.stdin.take() {
            // One that has ended already says why by its status.
            drop(to.write_all(format!("{key}\n").as_bytes()).await);
        }
        let mut said = Vec::new();
        if let Some(from) = child.stdout.take() {
            from.take(MAX_ANSWER).read_to_end(&mut said).await?;
        }
        anyhow::Ok((child.wait().await?, said))
    };
    let (status, said) =
        timeout(HELPER, talk).await.map_err(|_| anyhow::anyhow!("no answer within {} s", HELPER.as_secs()))??;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        anyhow::bail!("{status}: {}", said.trim().chars().take(200).collect::<String>());
    }
    // What it said is not quoted: it has the secret in it.
    let AnyCase(Answer { username, secret }) =
        serde_json::from_slice(&said).map_err(|_| anyhow::anyhow!("it answered no JSON"))?;
    Ok(Some(if username == "<token>" {
        Login::Refresh(secret)
    } else {
        Login::Password { user: username, password: secret }
    }))
}
