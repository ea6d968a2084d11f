//! From a registry's challenge to the header that it wants to see: a token, or the password itself.
//!
//! Source: distribution.github.io/distribution, "Token Authentication Specification" and its OAuth2
//! companion; RFC 9110 section 11.6.

use super::credentials::{Found, Login};
use super::fault::Fault;
use super::http::{Ask, Http};
use super::url::Url;
use crate::error::explained;
use data_encoding::BASE64;
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A token server's answer, bytes; real tokens have some kilobytes.
const MAX_ANSWER: usize = 256 * 1024;
/// What a challenge may make us send back, bytes.
const MAX_WORD: usize = 2048;

/// What a registry wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// The one that we can answer, a token before a password. Each header is one challenge.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let all: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter_map(Self::parse)
            .collect();
        let bearer = all.iter().find(|challenge| **challenge != Self::Basic);
        bearer.or(all.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut words = parameters(rest);
        words.retain(|_, value| value.len() <= MAX_WORD);
        let realm = words.remove("realm")?;
        Some(Self::Bearer { realm, service: words.remove("service"), scope: words.remove("scope") })
    }
}

/// `name=value` and `name="value"`, separated by commas, which may stand in a quoted value.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| matches!(c, ' ' | ',' | '\t')).is_some() {}
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| !matches!(c, '=' | ',')) {
            name.push(c.to_ascii_lowercase());
        }
        if rest.next_if_eq(&'=').is_none() {
            if rest.peek().is_none() {
                return found;
            }
            continue;
        }
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(c) = rest.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(rest.next()),
                    c => value.push(c),
                }
            }
        } else {
            while let Some(c) = rest.next_if(|c| !matches!(c, ',' | ' ' | '\t')) {
                value.push(c);
            }
        }
        found.entry(name.trim().to_owned()).or_insert(value);
    }
}

/// The value of `Authorization`; `None` when there is no login and one is wanted.
pub(super) async fn answer(
    http: &Http,
    registry: &Url,
    repository: &str,
    challenge: &Challenge,
    found: &Found,
) -> Result<Option<HeaderValue>, Fault> {
    match (challenge, &found.login) {
        (Challenge::Basic, Some(Login::Password { user, password })) => {
            let text = BASE64.encode(format!("{user}:{password}").as_bytes());
            secret(&format!("Basic {text}")).map(Some)
        }
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service, scope }, login) => {
            let ours = format!("repository:{repository}:pull");
            let scope = scope.as_deref().unwrap_or(&ours);
            let realm = usable(registry, realm).map_err(Fault::never)?;
            let token = token(http, &realm, service.as_deref(), scope, login.as_ref());
            let token = token.await.map_err(|fault| fault.context(format!("cannot get a token from {realm}")))?;
            token.map(|token| secret(&format!("Bearer {token}"))).transpose()
        }
    }
}

/// Where a registry sends us for a token may be another host, and docker sends the registry's
/// password there: who has the registry's certificate could ask for the password outright. But it
/// goes nowhere unencrypted, unless registry and token server are on this host; and a registry
/// elsewhere does not send us to this host.
fn usable(registry: &Url, realm: &str) -> anyhow::Result<Url> {
    let shown: String = realm.chars().filter(|c| !c.is_control()).take(200).collect();
    let bad = |why: &str| explained(format!("the registry sends us to {shown:?} for a token, {why}"), "");
    let url = Url::parse(realm).ok_or_else(|| bad("which is not an address"))?;
    let both_here = registry.is_loopback() && url.is_loopback();
    if !url.https && !both_here {
        return Err(bad("where a password would go unencrypted"));
    }
    if url.is_loopback() && !registry.is_loopback() {
        return Err(bad("which is on this host"));
    }
    Ok(url)
}

async fn token(
    http: &Http,
    realm: &Url,
    service: Option<&str>,
    scope: &str,
    login: Option<&Login>,
) -> Result<Option<String>, Fault> {
    let mut query = vec![("scope", scope)];
    query.extend(service.map(|service| ("service", service)));
    let (url, ask) = match login {
        Some(Login::Refresh(token)) => {
            query.extend([("grant_type", "refresh_token"), ("client_id", "banger"), ("refresh_token", token.as_str())]);
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            let headers = vec![(HeaderName::from_static("content-type"), kind)];
            (realm.clone(), Ask { headers, form: Some(encode(&query)), ..Ask::default() })
        }
        login => {
            let mut authorization = None;
            if let Some(Login::Password { user, password }) = login {
                query.push(("account", user));
                let text = BASE64.encode(format!("{user}:{password}").as_bytes());
                authorization = Some(secret(&format!("Basic {text}"))?);
            }
            let separator = if realm.path.contains('?') { '&' } else { '?' };
            let path = format!("{}{separator}{}", realm.path, encode(&query));
            (realm.with_path(path), Ask { authorization, ..Ask::default() })
        }
    };
    let mut answer = http.ask(&url, &ask).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Ok(None),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Fault::soon(anyhow::anyhow!("it answered {status}")));
        }
        status => return Err(Fault::never(anyhow::anyhow!("it answered {status}"))),
    }
    let text = answer.whole(MAX_ANSWER).await?;
    let token: Token =
        serde_json::from_slice(&text).map_err(|_| Fault::never(anyhow::anyhow!("it answered no JSON")))?;
    let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
    token.map(Some).ok_or_else(|| Fault::never(anyhow::anyhow!("there is no token in its answer")))
}

/// A header that is not printed.
fn secret(text: &str) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Fault::never(anyhow::anyhow!("the login or token has characters that cannot be sent")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `application/x-www-form-urlencoded`, with nothing left to guess.
fn encode(pairs: &[(&str, &str)]) -> String {
    let word = |text: &str| {
        text.bytes().fold(String::new(), |mut encoded, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
                _ => encoded += &format!("%{byte:02X}"),
            }
            encoded
        })
    };
    pairs.iter().map(|(name, value)| format!("{}={}", word(name), word(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn of(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let text = |text: &str| text.to_owned();
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(text), scope: scope.map(text) })
        };
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let parsed =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/x:pull,push"));
        assert_eq!(of(&[docker]), parsed);
        assert_eq!(of(&["Basic realm=\"x\"", docker]), parsed);
        assert_eq!(of(&["basic"]), Some(Challenge::Basic));
        assert_eq!(of(&["bearer  Realm=https://x/t , service=\"a\\\"b\""]), bearer("https://x/t", Some("a\"b"), None));
        for none in
            [&[][..], &["Negotiate"], &["Bearer"], &["Bearer realm"], &["Bearer ,,,=,\"=\""], &["Bearer service=\"x"]]
        {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_password_goes_nowhere_unencrypted() {
        let (here, there) = ("http://127.0.0.1:5000/", "https://registry.example/");
        for (registry, realm, good) in [
            (there, "https://auth.example/token", true),
            (there, "http://auth.example/token", false),
            (there, "http://registry.example/token", false),
            (there, "https://127.0.0.1/token", false),
            (there, "http://localhost/token", false),
            (here, "http://localhost:5001/token", true),
            (here, "http://auth.example/token", false),
            (here, "https://auth.example/token", true),
            (here, "file:///etc/passwd", false),
            (here, "https://u:p@auth.example/", false),
            (here, "\u{1b}[2J", false),
        ] {
            assert_eq!(usable(&Url::parse(registry).unwrap(), realm).is_ok(), good, "{registry} {realm}");
        }
    }

    #[test]
    fn hostile_words_stay_in_their_place() {
        assert_eq!(encode(&[("scope", "a b&c=d\r\nX: y%ü")]), "scope=a%20b%26c%3Dd%0D%0AX%3A%20y%25%C3%BC");
        assert!(secret("Bearer a\r\nX: y").is_err());
    }
}
