//! What a user calls an image: `debian`, `ghcr.io/acme/tool:v1`, `localhost:5000/x@sha256:...`.
//!
//! The rules are docker's (`reference/` of github.com/distribution/reference), so that a name means
//! the same image to both.

use crate::error::explained;
use banger_policy::Digest;
use std::fmt;

/// The registry of names without one.
const DOCKER: &str = "docker.io";
/// Repository names, bytes (docker's limit).
const MAX_NAME: usize = 255;
/// Tags, bytes (OCI distribution specification, "Pulling manifests").
const MAX_TAG: usize = 128;

/// A checked reference, in its long form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `host` or `host:port`, as users and docker's configuration write it.
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// # Errors
    /// With the rule that the text breaks.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let bad = |why: &str| explained(format!("{text:?} is not the name of an image in a registry: {why}"), EXAMPLE);
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(explained(format!("{text:?} begins with {scheme}://"), format!("write it as: {rest}")));
        }
        let (text, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => {
                let digest = digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
                (name, Some(digest.ok_or_else(|| bad("a digest is sha256: and 64 characters of 0-9 and a-f"))?))
            }
        };
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DOCKER, text),
        };
        // A colon before the last slash belongs to a port.
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let registry = if registry == "index.docker.io" { DOCKER } else { registry };
        let is_official = registry == DOCKER && !repository.contains('/');
        let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
        if !is_host(registry) {
            return Err(bad("what is before the first / is not a host name with an optional port"));
        }
        if repository.len() > MAX_NAME || !repository.split('/').all(is_component) {
            return Err(bad("names are of a-z, 0-9, and single '.', '_', '-' between them; '/' separates them"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag is 1 to 128 characters of a-z, A-Z, 0-9, '_', '.' and '-', not beginning with '.' or '-'",
            ));
        }
        let tag = tag.or(digest.is_none().then_some("latest")).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Does a text say which registry it means, so that nothing short can be meant by it?
    pub(crate) fn names_registry(text: &str) -> bool {
        text.split_once('/').is_some_and(|(first, _)| is_registry(first))
    }

    /// The same image by its digest, as a user types it.
    pub(super) fn pinned(&self, digest: Digest) -> String {
        format!("{}/{}@sha256:{digest}", self.registry, self.repository)
    }

    /// `host` or `host:port`.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What stands behind `manifests/` in a request: the digest counts when there is one.
    pub(super) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }
}

const EXAMPLE: &str = "such as: debian:13, ghcr.io/acme/tool:v1, localhost:5000/tool";

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@sha256:{digest}"),
            (None, tag) => write!(f, ":{}", tag.as_deref().unwrap_or_default()),
        }
    }
}

/// Docker takes what is before the first slash for a registry when it looks like a host, or cannot
/// be part of a repository.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port.strip_prefix(':').or(port.is_empty().then_some("443")))
        }
        None => registry.split_once(':').map_or((registry, Some("443")), |(host, port)| (host, Some(port))),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= MAX_NAME
        && host.split('.').all(is_label)
        && port.and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port > 0)
}

fn is_component(name: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let edges = name.bytes().next().is_some_and(is_word) && name.bytes().next_back().is_some_and(is_word);
    let plain = name.bytes().all(|c| is_word(c) || matches!(c, b'.' | b'_' | b'-'));
    // One dot, one or two underscores, or any number of hyphens separate words.
    let separators = name
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|c| c == b'-'));
    edges && plain && separators
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.starts_with(is_word)
        && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn names_mean_what_they_mean_to_docker() {
        let digest = "0123456789abcdef".repeat(4);
        for (text, long) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:13", "docker.io/library/debian:13".to_owned()),
            ("acme/tool", "docker.io/acme/tool:latest".to_owned()),
            ("index.docker.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("docker.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("ghcr.io/acme/tool:v1.2", "ghcr.io/acme/tool:v1.2".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x/y", "localhost:5000/x/y:latest".to_owned()),
            ("127.0.0.1:5000/x:a_B.c-d", "127.0.0.1:5000/x:a_B.c-d".to_owned()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".to_owned()),
            ("Host/x", "Host/x:latest".to_owned()),
            ("a__b/c---d.e", "docker.io/a__b/c---d.e:latest".to_owned()),
            (&format!("debian@sha256:{digest}"), format!("docker.io/library/debian@sha256:{digest}")),
            (&format!("debian:13@sha256:{digest}"), format!("docker.io/library/debian@sha256:{digest}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), long, "{text}");
            assert_eq!(Reference::parse(&long).unwrap().to_string(), long, "{text}");
        }
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        let long = "x".repeat(256);
        for text in [
            "",
            "/",
            "Debian",
            "debian:",
            "debian:-x",
            "debian@sha256:00",
            "debian@md5:00",
            "a//b",
            "../x",
            "a/../b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "x:5000:6000/y",
            "h.x:0/y",
            "h.x:99999/y",
            "h.x:/y",
            "a b",
            "a\nb",
            "ä",
            "https://h.x/y",
            "docker://debian",
            "h.x/a?b",
            "h.x/a#b",
            "h_x.y/z",
            "u@h.x/z",
            &long,
            &format!("debian:{}", "t".repeat(129)),
            "debian@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
