//! Addresses of registries, token servers and blobs: `http` and `https` only, and never with a
//! password in them.

use hyper::Uri;
use std::fmt;
use std::net::IpAddr;

/// An address, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// With the query; begins with a slash.
    pub(super) path: String,
}

impl Url {
    /// `None` for what is no absolute address of these schemes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        // What is before an @ would be taken for the host by a reader of the message.
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return None;
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { https, host, port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }), path })
    }

    /// Where a redirect from here leads (RFC 9110 section 10.2.2): an absolute address, or a path
    /// of the same host.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            // Through the parser, so that no control character gets into a request.
            return Self::parse(&format!("{}{location}", self.origin()));
        }
        Self::parse(location)
    }

    /// The same host with another path.
    pub(super) fn with_path(&self, path: String) -> Self {
        Self { path, ..self.clone() }
    }

    /// Scheme, host and port: what a browser calls an origin.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }

    /// For the header `Host`: the port is named when it is not the scheme's.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.https { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

impl fmt::Display for Url {
    /// Without the query, which may be a secret: storage behind a registry signs its addresses
    /// there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path.split('?').next().unwrap_or_default())
    }
}

/// This host itself, as docker sees it: plain HTTP goes nowhere else.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn addresses_and_redirects() {
        let url = Url::parse("https://Registry.example:444/v2/x?sig=secret").unwrap();
        assert_eq!(
            (url.https, url.host.as_str(), url.port, url.path.as_str()),
            (true, "registry.example", 444, "/v2/x?sig=secret")
        );
        assert_eq!(url.to_string(), "https://registry.example:444/v2/x");
        assert_eq!(url.join("/y").unwrap().to_string(), "https://registry.example:444/y");
        assert_eq!(url.join("http://[::1]:5/z?q").unwrap().authority(), "[::1]:5");
        assert!(url.join("http://[::1]:5/z").unwrap().is_loopback());
        for bad in
            ["//other.example/x", "ftp://x/y", "file:///etc/passwd", "https://u:p@x/y", "/a\r\nX: y", "", "https:///x"]
        {
            assert_eq!(url.join(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_this_host_is_loopback() {
        for (host, is) in
            [("localhost", true), ("127.9.9.9", true), ("::1", true), ("localhost.example", false), ("10.0.0.1", false)]
        {
            assert_eq!(is_loopback(host), is, "{host}");
        }
    }
}
