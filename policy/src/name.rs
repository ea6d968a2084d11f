//! Names that users choose. They are never normalised: what was typed is what is stored, or it is
//! refused.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not a name; the message quotes the text and says the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A VM's name.
    #[error("{0:?} is not a VM name: 1 to 63 characters of a-z, 0-9 and -, no - at either end")]
    Vm(String),
    /// An image's or a kernel's name.
    #[error(
        "{0:?} is not a name for an image or a kernel: 1 to 128 characters of a-z, A-Z, 0-9, '.', '_', '-', '+', '~', ':' and '/' (an image's also '@'), beginning and ending with a letter or digit, without '..' or '//'"
    )]
    Store(String),
}

/// The name of a VM, which is also a DNS label: 1-63 of `[a-z0-9-]`, no hyphen at an edge
/// (RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl FromStr for VmName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = (1..=63).contains(&text.len())
            && text.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good { Ok(Self(text.to_owned())) } else { Err(NameError::Vm(text.to_owned())) }
    }
}

/// The names of images and kernels share one grammar: a reference, a catalogue name or a kernel's
/// release (Debian's have a `+`) is legal as it is.
macro_rules! store_name {
    ($(#[$doc:meta])* $name:ident, $signs:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
                let good = (1..=128).contains(&text.len())
                    && text.bytes().all(|c| c.is_ascii_alphanumeric() || $signs.contains(&c))
                    && edge(text.chars().next())
                    && edge(text.chars().next_back())
                    && !text.contains("..")
                    && !text.contains("//");
                if good { Ok(Self(text.to_owned())) } else { Err(NameError::Store(text.to_owned())) }
            }
        }
    };
}

store_name!(
    /// The name of an image in the store. A reference may have a digest, behind an `@`.
    ImageName,
    b"._-+~:/@"
);
store_name!(
    /// The name of a kernel in the store.
    KernelName,
    b"._-+~:/"
);

/// What every name type offers beside parsing.
macro_rules! text_newtype {
    ($($name:ident)*) => {$(
        impl $name {
            /// The name as typed.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )*};
}

text_newtype!(VmName ImageName KernelName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_names() {
        for good in ["a", "0", "demo", "a-b", "a--b", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ä", " a", "a\n", "a/b", &"x".repeat(64)] {
            assert_eq!(bad.parse::<VmName>(), Err(NameError::Vm(bad.to_owned())), "{bad:?}");
        }
    }

    #[test]
    fn image_names() {
        for good in ["debian", "debian:13", "ghcr.io/acme/tool:v1.2", "6.12.48+deb13-cloud-amd64", "debian@sha256:00ff"]
        {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", "/etc", "../x", "a/../b", "a//b", "a b", "a\n", "a-", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
        assert!("6.12@x".parse::<KernelName>().is_err());
    }
}
