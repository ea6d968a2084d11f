//! What a user says about a VM's network: the mode, the list of destinations, the private network.
//! Checked here for the command line and for the daemon; `reach` is what comes of it.

use crate::name::VmName;
use crate::reach::{Malformed, Mode, NOT_PUBLIC, Protocol, Range, Target, UnknownMode, number};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The most entries of one VM's list.
pub const MAX_ENTRIES: usize = 64;
/// The longest name of a host (RFC 1035).
const MAX_HOST: usize = 253;
/// What stands for "in no private network" where a name is expected.
pub const NO_NETWORK: &str = "none";

/// The name of a host, as a resolver takes it: labels of letters, digits, `-` and `_`, and the last
/// one begins with a letter, so that no name is ever read as a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// In lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = text.rsplit('.').next().unwrap_or_default();
        let good =
            text.len() <= MAX_HOST && text.split('.').all(label) && last.starts_with(|c: char| c.is_ascii_alphabetic());
        good.then(|| Self(text.to_ascii_lowercase()))
    }
}

/// Where an entry of a list leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To these addresses.
    Range(Range),
    /// To those that this name has at the time.
    Name(HostName),
}

/// An entry of a list: `ADDRESS[/PREFIX]` or a name, then perhaps `:PORT` for TCP and UDP alike, or
/// `:PORT/tcp`, `:PORT/udp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entry {
    /// Where to.
    pub place: Place,
    /// At which port alone.
    pub port: Option<(u16, Option<Protocol>)>,
}

impl Entry {
    /// What it lets a guest reach, when it leads to `range`.
    pub fn targets(&self, range: Range) -> impl Iterator<Item = Target> + use<> {
        let services = match self.port {
            None => vec![None],
            Some((port, Some(protocol))) => vec![Some((protocol, port))],
            Some((port, None)) => Protocol::ALL.map(|protocol| Some((protocol, port))).to_vec(),
        };
        services.into_iter().map(move |service| Target { range, service })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Range(range) => range.fmt(f)?,
            Place::Name(name) => f.write_str(name.as_str())?,
        }
        match self.port {
            None => Ok(()),
            Some((port, None)) => write!(f, ":{port}"),
            Some((port, Some(protocol))) => write!(f, ":{port}/{}", protocol.as_str()),
        }
    }
}

impl From<Entry> for String {
    fn from(entry: Entry) -> Self {
        entry.to_string()
    }
}

impl TryFrom<String> for Entry {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl FromStr for Entry {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = || Malformed::new(text);
        let (place, port) = match text.split_once(':') {
            None => (text, None),
            Some((place, port)) => (place, Some(port_of(port).ok_or_else(wrong)?)),
        };
        if let Some(name) = HostName::parse(place) {
            return Ok(Self { place: Place::Name(name), port });
        }
        let range: Range = place.parse()?;
        if never_reached(range) {
            let why = "is never reached by a guest: loopback, link-local and multicast addresses and what is reserved";
            return Err(Malformed::because(text, why));
        }
        Ok(Self { place: Place::Range(range), port })
    }
}

fn port_of(text: &str) -> Option<(u16, Option<Protocol>)> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((port, word)) => (port, Some(Protocol::ALL.into_iter().find(|known| known.as_str() == word)?)),
    };
    let port = number(port).filter(|port| *port != 0)?;
    Some((port, protocol))
}

/// What no kernel routes, and what the firewall lets nobody reach.
fn never_reached(range: Range) -> bool {
    let unroutable = |network: Ipv4Addr| matches!(network.octets(), [0 | 127 | 224, ..] | [169, 254, ..]);
    let ranges = NOT_PUBLIC.into_iter().filter(|(network, _)| unroutable(*network));
    ranges.filter_map(|(network, prefix)| Range::new(network, prefix)).any(|never| never.covers(range))
}

/// A VM's network, as its owner wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNetwork {
    /// How far the guest reaches.
    pub mode: Mode,
    /// With [`Mode::Allow`]: to these.
    #[serde(default)]
    pub allow: Vec<Entry>,
    /// The private network of its owner's that it is in.
    #[serde(default)]
    pub private: Option<VmName>,
}

/// Raw words for a change of it; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// How far the guest reaches. `None` with a list: [`Mode::Allow`].
    pub mode: Option<Mode>,
    /// The whole list, in place of the one that is there.
    pub allow: Option<Vec<String>>,
    /// The name of the private network, or [`NO_NETWORK`].
    pub private: Option<String>,
}

/// Why a network cannot be as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// A word that is no mode.
    #[error(transparent)]
    Mode(#[from] UnknownMode),
    /// An entry of the list.
    #[error(transparent)]
    Entry(#[from] Malformed),
    /// A list in another mode.
    #[error("a list of destinations goes with the network mode allow, not with {0}")]
    ListElsewhere(Mode),
    /// The mode without a list.
    #[error("the network mode allow needs a list of destinations")]
    NoList,
    /// Too many entries.
    #[error("a list has {MAX_ENTRIES} destinations at the most, not {0}")]
    TooMany(usize),
    /// Not a name.
    #[error("{0:?} is not the name of a private network: 1 to 63 characters of a-z, 0-9 and -, no - at either end")]
    Private(String),
}

impl VmNetwork {
    /// In this mode alone.
    #[must_use]
    pub fn of(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// The same with a change.
    ///
    /// # Errors
    /// [`NetworkError`] for the first word that is not possible.
    pub fn changed(&self, request: &NetworkRequest) -> Result<Self, NetworkError> {
        let list = request.allow.as_deref();
        let mode = request.mode.unwrap_or(if list.is_some() { Mode::Allow } else { self.mode });
        let allow = match list {
            Some(_) if mode != Mode::Allow => return Err(NetworkError::ListElsewhere(mode)),
            Some(words) => entries(words)?,
            None if mode == Mode::Allow => self.allow.clone(),
            None => Vec::new(),
        };
        if mode == Mode::Allow && allow.is_empty() {
            return Err(NetworkError::NoList);
        }
        let private = match request.private.as_deref() {
            None => self.private.clone(),
            Some(NO_NETWORK) => None,
            Some(name) => {
                let text = || name.chars().take(80).collect();
                Some(name.parse().map_err(|_| NetworkError::Private(text()))?)
            }
        };
        Ok(Self { mode, allow, private })
    }

    /// The names in its list, each once.
    #[must_use]
    pub fn names(&self) -> Vec<&HostName> {
        let mut names = Vec::new();
        for entry in &self.allow {
            if let Place::Name(name) = &entry.place {
                names.push(name);
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn entries(words: &[String]) -> Result<Vec<Entry>, NetworkError> {
    if words.len() > MAX_ENTRIES {
        return Err(NetworkError::TooMany(words.len()));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for word in words {
        let entry = word.parse()?;
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Entry {
        text.parse().unwrap()
    }

    #[test]
    fn entries_are_addresses_or_names_perhaps_with_a_port() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.5", "10.0.0.5/32"),
            ("10.0.0.5:443", "10.0.0.5/32:443"),
            ("10.0.0.5:53/udp", "10.0.0.5/32:53/udp"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("Registry.Example.org:443/tcp", "registry.example.org:443/tcp"),
            ("build", "build"),
            ("_srv.a-b.example", "_srv.a-b.example"),
        ] {
            assert_eq!(entry(text).to_string(), shown);
            assert_eq!(entry(shown), entry(text), "the shown form is read back");
        }
        for text in [
            "",
            ":",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.5:0",
            "10.0.0.5:65536",
            "10.0.0.5:08",
            "10.0.0.5:",
            "10.0.0.5:1/sctp",
            "10.0.0.5:1:2",
            "2001:db8::1",
            "::1",
            "1.2.3",
            "0x7f.1",
            "1",
            "a..b",
            "-a.b",
            "a-.b",
            "a.1",
            "a b",
            "a\n",
            "ä.org",
            "*.example.org",
            ".org",
            "org.",
            "example.org/8",
            "127.0.0.1",
            "127.0.0.0/8",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            &format!("{}.org", "a".repeat(64)),
            &"a.".repeat(127),
        ] {
            assert!(text.parse::<Entry>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_port_without_a_protocol_is_both() {
        let texts = |text: &str| {
            let entry = entry(text);
            let Place::Range(range) = entry.place else { panic!("{text}") };
            entry.targets(range).map(|target| target.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(texts("1.1.1.1"), ["1.1.1.1/32"]);
        assert_eq!(texts("1.1.1.1:53/udp"), ["1.1.1.1/32:53/udp"]);
        assert_eq!(texts("1.1.1.1:53"), ["1.1.1.1/32:53/tcp", "1.1.1.1/32:53/udp"]);
    }

    #[test]
    fn a_change_says_the_whole_list_and_leaves_the_rest() {
        let words = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        let none = NetworkRequest::default;
        let list = NetworkRequest { allow: words(&["10.0.0.5", "example.org", "10.0.0.5/32"]), ..none() };
        let allowed = VmNetwork::default().changed(&list).unwrap();
        assert_eq!((allowed.mode, allowed.allow.len()), (Mode::Allow, 2), "a list says the mode, twice is once");
        assert_eq!(allowed.names().len(), 1);
        assert_eq!(allowed.changed(&none()), Ok(allowed.clone()));
        let mode = |mode| NetworkRequest { mode: Some(mode), ..none() };
        assert_eq!(allowed.changed(&mode(Mode::Allow)), Ok(allowed.clone()));
        assert_eq!(allowed.changed(&mode(Mode::Public)), Ok(VmNetwork::of(Mode::Public)), "no list is kept aside");
        assert_eq!(VmNetwork::default().changed(&mode(Mode::Allow)), Err(NetworkError::NoList));
        assert_eq!(allowed.changed(&NetworkRequest { allow: words(&[]), ..none() }), Err(NetworkError::NoList));
        let both = NetworkRequest { mode: Some(Mode::Nat), ..list };
        assert_eq!(allowed.changed(&both), Err(NetworkError::ListElsewhere(Mode::Nat)));
        let many = NetworkRequest { allow: Some(vec!["10.0.0.5".to_owned(); 65]), ..none() };
        assert_eq!(allowed.changed(&many), Err(NetworkError::TooMany(65)));
        let private = |name: &str| NetworkRequest { private: Some(name.to_owned()), ..none() };
        let joined = allowed.changed(&private("lab")).unwrap();
        assert_eq!(joined.private, "lab".parse().ok());
        assert_eq!(joined.allow, allowed.allow);
        assert_eq!(joined.changed(&private("none")), Ok(allowed.clone()));
        assert!(matches!(allowed.changed(&private("L a b")), Err(NetworkError::Private(_))));
    }
}
