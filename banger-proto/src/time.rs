//! Time on the wire and in JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// UTC in whole seconds: a number on the wire and in the database, RFC 3339 in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From seconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        // RFC 3339 ends with the year 9999, and so do we: a number beyond it could not be written.
        Self(seconds.min(253_402_300_799))
    }

    /// The host's clock; 1970 when the clock is before that.
    #[must_use]
    pub fn now() -> Self {
        Self::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn unix(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self::from_unix);
        }
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(D::Error::custom)?;
        Ok(Self::from_unix(time.duration_since(UNIX_EPOCH).map_err(D::Error::custom)?.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn json_is_rfc_3339_in_utc() {
        let time = Timestamp::from_unix(1_763_632_800);
        assert_eq!(serde_json::to_string(&time).unwrap(), r#""2025-11-20T10:00:00Z""#);
        assert_eq!(serde_json::from_str::<Timestamp>(r#""2025-11-20T10:00:00Z""#).unwrap(), time);
        assert!(serde_json::from_str::<Timestamp>(r#""yesterday""#).is_err());
        assert_eq!(Timestamp::from_unix(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }
}
