//! Which proxy leads to a host: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in small letters as
//! well, as curl and Go read them.

use super::url::{Url, is_loopback};
use crate::error::explained;
use data_encoding::BASE64;
use hyper::header::HeaderValue;
use std::net::IpAddr;

/// A proxy that opens tunnels (`CONNECT`, RFC 9110 section 9.3.6).
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub(super) url: Url,
    /// The value of `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

/// What the environment says of proxies.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies {
    /// Or why it cannot be used, which stops nothing that needs none.
    proxy: Option<Result<Proxy, Unusable>>,
    except: Vec<String>,
}

/// A proxy that we cannot use: what is wrong, and what to do.
#[derive(Clone, Debug)]
struct Unusable {
    why: String,
    hint: &'static str,
}

impl Proxies {
    pub(super) fn of_environment() -> Self {
        let variable = |names: &[&'static str]| {
            names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(|v| (*name, v)))
        };
        let proxy = variable(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]);
        let except = variable(&["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default();
        Self::new(proxy.as_ref().map(|(name, value)| (*name, value.as_str())), &except)
    }

    /// The name of the variable is for messages.
    pub(super) fn new(proxy: Option<(&str, &str)>, except: &str) -> Self {
        let proxy = proxy.map(|(name, value)| parse(name, value));
        let except =
            except.split([',', ' ']).map(|word| word.trim().to_ascii_lowercase()).filter(|word| !word.is_empty());
        Self { proxy, except: except.collect() }
    }

    /// `None`: the host is reached directly.
    ///
    /// # Errors
    /// For a proxy that we cannot use.
    pub(super) fn towards(&self, url: &Url) -> anyhow::Result<Option<&Proxy>> {
        if is_loopback(&url.host) || self.except.iter().any(|word| covers(word, &url.host, url.port)) {
            return Ok(None);
        }
        match &self.proxy {
            None => Ok(None),
            Some(Ok(proxy)) => Ok(Some(proxy)),
            Some(Err(Unusable { why, hint })) => Err(explained(why.clone(), *hint)),
        }
    }
}

fn parse(name: &str, value: &str) -> Result<Proxy, Unusable> {
    // The value may hold a password and is not quoted.
    let bad = |why: &str| Unusable {
        why: format!("{name} {why}"),
        hint: "such as: HTTPS_PROXY=http://proxy.example:3128; NO_PROXY names hosts that need none",
    };
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    if !matches!(scheme, "http" | "https") {
        return Err(bad(&format!("names a proxy of the kind {scheme}, and banger uses http and https proxies")));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let (login, place) = authority.rsplit_once('@').map_or((None, authority), |(login, place)| (Some(login), place));
    let url = Url::parse(&format!("{scheme}://{place}/")).ok_or_else(|| bad("is not the address of a proxy"))?;
    let authorization = login.map(|login| {
        let login = decode(login).ok_or_else(|| bad("has a login that is not percent-encoded as it must be"))?;
        let value = HeaderValue::from_str(&format!("Basic {}", BASE64.encode(&login)));
        let mut value = value.map_err(|_| bad("has a login that is too long"))?;
        value.set_sensitive(true);
        Ok(value)
    });
    Ok(Proxy { url, authorization: authorization.transpose()? })
}

/// Percent-encoding (RFC 3986 section 2.1) undone.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    Some(decoded)
}

/// Does a word of `NO_PROXY` mean the host? A domain means what is below it, too; an address may
/// have a prefix length.
fn covers(word: &str, host: &str, port: u16) -> bool {
    if word == "*" {
        return true;
    }
    if let (Ok(host), Some((net, bits))) = (host.parse::<IpAddr>(), word.split_once('/')) {
        return net.parse().is_ok_and(|net| bits.parse().is_ok_and(|bits| is_within(host, net, bits)));
    }
    let (word, wanted) = match word.rsplit_once(':') {
        Some((name, number)) if !name.contains(':') => (name, Some(number)),
        _ => (word, None),
    };
    if wanted.is_some_and(|wanted| wanted.parse() != Ok(port)) {
        return false;
    }
    let word = word.strip_prefix("*.").or(word.strip_prefix('.')).unwrap_or(word);
    host == word || host.strip_suffix(word).is_some_and(|rest| rest.ends_with('.') && host.parse::<IpAddr>().is_err())
}

fn is_within(host: IpAddr, net: IpAddr, bits: u32) -> bool {
    let same = |one: u128, other: u128, width: u32| {
        bits <= width && (bits == 0 || (one >> (width - bits)) == (other >> (width - bits)))
    };
    match (host, net) {
        (IpAddr::V4(host), IpAddr::V4(net)) => same(u32::from(host).into(), u32::from(net).into(), 32),
        (IpAddr::V6(host), IpAddr::V6(net)) => same(host.into(), net.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn what_goes_through_a_proxy() {
        let except = "internal.example, .corp,10.0.0.0/8,192.168.1.1,host.x:8443,fd00::/8";
        let proxies = Proxies::new(Some(("HTTPS_PROXY", "http://u%40x:p@proxy.example:3128")), except);
        for (url, proxied) in [
            ("https://registry-1.docker.io/", true),
            ("https://internal.example/", false),
            ("https://a.internal.example/", false),
            ("https://notinternal.example/", true),
            ("https://a.b.corp/", false),
            ("https://10.9.8.7/", false),
            ("https://11.0.0.1/", true),
            ("https://192.168.1.1:5000/", false),
            ("https://host.x:8443/", false),
            ("https://host.x/", true),
            ("https://[fd00::1]/", false),
            ("https://127.0.0.1:5000/", false),
            ("http://localhost:5000/", false),
        ] {
            assert_eq!(proxies.towards(&Url::parse(url).unwrap()).unwrap().is_some(), proxied, "{url}");
        }
        let proxy = proxies.proxy.unwrap().unwrap();
        assert_eq!(proxy.url.authority(), "proxy.example:3128");
        assert_eq!(proxy.authorization.unwrap().to_str().unwrap(), format!("Basic {}", BASE64.encode(b"u@x:p")));
        let elsewhere = Url::parse("https://x.y/").unwrap();
        assert!(Proxies::new(Some(("X", "p:3128")), "*").towards(&elsewhere).unwrap().is_none());
        let socks = Proxies::new(Some(("ALL_PROXY", "socks5://u:secret@p:1")), "internal.example");
        let secret = socks.towards(&elsewhere).unwrap_err();
        assert!(!secret.to_string().contains("secret") && secret.to_string().contains("socks5"), "{secret}");
        for url in ["https://127.0.0.1:5000/", "https://internal.example/"] {
            assert!(socks.towards(&Url::parse(url).unwrap()).unwrap().is_none(), "{url}");
        }
    }
}
