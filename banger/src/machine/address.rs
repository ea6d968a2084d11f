//! `ssh://[user@]machine[:port]`, checked. `ssh` gets its parts as words of their own, and some
//! configurations hand a machine's name to a shell: so only what names consist of is let through.

use crate::error::explained;
use std::fmt;
use std::str::FromStr;

/// The longest name of a machine (RFC 1035), and more than the longest of a user.
const MAX_NAME: usize = 253;

/// Another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    user: Option<String>,
    machine: String,
    port: Option<u16>,
}

impl Address {
    /// For `ssh`: none of them can be taken for an option.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(user) = &self.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        words.extend(["--".to_owned(), self.machine.clone()]);
        words
    }

    /// What a person types after `ssh` to reach it.
    pub(super) fn shown(&self) -> String {
        let port = self.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        format!("{port}{user}{}", self.machine)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.machine.contains(':') {
            true => write!(f, "[{}]", self.machine)?,
            false => f.write_str(&self.machine)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        parse(text).ok_or_else(|| {
            let shown: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).take(80).collect();
            explained(format!("{shown:?} is no address of a machine"), "such as: ssh://alice@host.example:2222")
        })
    }
}

fn parse(text: &str) -> Option<Address> {
    let rest = text.strip_prefix("ssh://")?;
    let (user, rest) = match rest.split_once('@') {
        Some((user, rest)) => (Some(name(user, "._-+")?), rest),
        None => (None, rest),
    };
    let (machine, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address.to_owned(), port)
        }
        None => {
            let end = rest.find(':').unwrap_or(rest.len());
            let (machine, port) = rest.split_at(end);
            (name(machine, "._-")?, port)
        }
    };
    let port = match port {
        "" => None,
        port => Some(port.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?),
    };
    Some(Address { user, machine, port })
}

/// Begins with a letter or a digit, or `_`: never with what begins an option.
fn name(text: &str, more: &str) -> Option<String> {
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let all = text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    (begins && all && text.len() <= MAX_NAME).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn addresses_come_back_and_are_words_of_ssh() {
        for text in ["ssh://host", "ssh://alice@host.example:2222", "ssh://[fe80::1]:22", "ssh://a_b@10.0.0.1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let address: Address = "ssh://alice@host:2222".parse().unwrap();
        assert_eq!(address.words(), ["-l", "alice", "-p", "2222", "--", "host"]);
        assert_eq!(address.shown(), "-p 2222 alice@host");
    }

    #[test]
    fn no_name_becomes_an_option_or_a_word_of_a_shell() {
        for bad in [
            "host",
            "ssh://",
            "ssh://-oProxyCommand=sh",
            "ssh://-l@host",
            "ssh://a@-oProxyCommand=sh",
            "ssh://host:0",
            "ssh://host:70000",
            "ssh://host:22x",
            "ssh://host/path",
            "ssh://ho st",
            "ssh://host\n",
            "ssh://$(id)",
            "ssh://a'b@host",
            "ssh://[x]",
            "ssh://[::1",
            "ssh://a@b@c",
            "tcp://host",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
        let long = format!("ssh://{}", "a".repeat(300));
        assert!(long.parse::<Address>().is_err());
        let said = "ssh://a\u{1b}[2J".parse::<Address>().unwrap_err().to_string();
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
}
