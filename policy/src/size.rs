//! Sizes as users write them: `512M`, `8G`, `1000B`; a bare number is MiB.

use crate::limits::MAX_DISK_BYTES;
use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Why a text is not a size. Each message quotes the input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Nothing but spaces.
    #[error("{0:?} is not a size: write a number with B, K, M or G, such as 512M or 8G")]
    Empty(String),
    /// Not a whole number before the suffix.
    #[error("{0:?} is not a size: the number must be whole and positive, such as 512M or 8G")]
    Number(String),
    /// Something else than B, K, M, G, KiB, MiB, GiB.
    #[error("{0:?} is not a size: the suffix must be B, K, M or G (KiB, MiB, GiB)")]
    Suffix(String),
    /// Zero.
    #[error("{0:?} is not a size: it must be greater than zero")]
    Zero(String),
    /// Over 128 GiB, or more than fits 64 bits.
    #[error("{0:?} is too large: the largest size is 128G")]
    TooLarge(String),
}

/// A size in bytes: 1 to 128 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// # Errors
    /// [`SizeError::Zero`] or [`SizeError::TooLarge`].
    pub fn from_bytes(bytes: u64) -> Result<Self, SizeError> {
        match bytes {
            0 => Err(SizeError::Zero("0".to_owned())),
            1..=MAX_DISK_BYTES => Ok(Self(bytes)),
            _ => Err(SizeError::TooLarge(format!("{bytes}B"))),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// In MiB, rounded down.
    #[must_use]
    pub fn mib(self) -> u64 {
        self.0 / MIB
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(input: &str) -> Result<Self, SizeError> {
        let quoted = || input.to_owned();
        let text = input.trim().to_ascii_lowercase();
        if text.is_empty() {
            return Err(SizeError::Empty(quoted()));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at_checked(digits).unwrap_or((&text, ""));
        if number.is_empty() {
            return Err(SizeError::Number(quoted()));
        }
        let unit = match suffix {
            "b" => 1,
            "k" | "kib" => KIB,
            "" | "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            _ if suffix.starts_with(['.', ',']) => return Err(SizeError::Number(quoted())),
            _ => return Err(SizeError::Suffix(quoted())),
        };
        // Only digits are left, so the one way to fail is a number that does not fit.
        let number: u64 = number.parse().map_err(|_| SizeError::TooLarge(quoted()))?;
        let bytes = number.checked_mul(unit).ok_or_else(|| SizeError::TooLarge(quoted()))?;
        match Self::from_bytes(bytes) {
            Err(SizeError::Zero(_)) => Err(SizeError::Zero(quoted())),
            Err(_) => Err(SizeError::TooLarge(quoted())),
            good => good,
        }
    }
}

impl fmt::Display for ByteSize {
    /// Exact: the largest of G, M and K that divides the size, else bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, letter) in [(GIB, 'G'), (MIB, 'M'), (KIB, 'K')] {
            if self.0.is_multiple_of(unit) {
                return write!(f, "{}{letter}", self.0.checked_div(unit).unwrap_or(0));
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<ByteSize>().unwrap().bytes()
    }

    #[test]
    fn every_spelling() {
        assert_eq!(bytes("1000B"), 1000);
        assert_eq!(bytes("4k"), 4096);
        assert_eq!(bytes("4KiB"), 4096);
        assert_eq!(bytes("512"), 512 << 20);
        assert_eq!(bytes(" 512mib "), 512 << 20);
        assert_eq!(bytes("8G"), 8 << 30);
        assert_eq!(bytes("128G"), 128 << 30);
    }

    #[test]
    fn each_refusal_quotes_the_input() {
        for (bad, want) in [
            ("", SizeError::Empty(String::new())),
            ("  ", SizeError::Empty("  ".into())),
            ("-1G", SizeError::Number("-1G".into())),
            ("+1G", SizeError::Number("+1G".into())),
            ("1.5G", SizeError::Number("1.5G".into())),
            ("G", SizeError::Number("G".into())),
            ("5T", SizeError::Suffix("5T".into())),
            ("5 G", SizeError::Suffix("5 G".into())),
            ("5GB", SizeError::Suffix("5GB".into())),
            ("0", SizeError::Zero("0".into())),
            ("0G", SizeError::Zero("0G".into())),
            ("129G", SizeError::TooLarge("129G".into())),
            ("18446744073709551615G", SizeError::TooLarge("18446744073709551615G".into())),
            ("99999999999999999999", SizeError::TooLarge("99999999999999999999".into())),
        ] {
            let error = bad.parse::<ByteSize>().unwrap_err();
            assert_eq!(error, want);
            assert!(error.to_string().starts_with(&format!("{bad:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_what_was_formatted_gives_the_size_back(bytes in 1..=MAX_DISK_BYTES) {
            let size = ByteSize::from_bytes(bytes).unwrap();
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn whole_units_too(n in 1_u64..=128, shift in prop::sample::select(vec![0, 10, 20, 30])) {
            let size = ByteSize::from_bytes(n << shift).unwrap();
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn any_text_gives_an_answer(text in ".*") {
            if let Ok(size) = text.parse::<ByteSize>() {
                prop_assert!((1..=MAX_DISK_BYTES).contains(&size.bytes()));
            }
        }
    }
}
