//! The bytes of the helper's small files, each of which holds one value: the ledger's rows and the
//! records of COW files.
//!
//! A file is JSON, so that an administrator can read it: `{"crc32":"xxxxxxxx","record":{...}}`. The
//! sum is over the bytes of `record`. A file that does not parse, or whose sum differs, is damaged;
//! nobody guesses.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::borrow::Cow;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    crc32: Cow<'a, str>,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// The bytes of a file with this value.
///
/// # Errors
/// Only when the value cannot be JSON.
pub fn encode<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let record = serde_json::value::to_raw_value(value)?;
    let crc32 = Cow::Owned(format!("{:08x}", crc32(record.get().as_bytes())));
    let mut bytes = serde_json::to_vec(&Envelope { crc32, record: &record })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The value of a file; `None` when it is damaged.
#[must_use]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes.strip_suffix(b"\n")?).ok()?;
    let sum = format!("{:08x}", crc32(envelope.record.get().as_bytes()));
    if envelope.crc32 == sum { serde_json::from_str(envelope.record.get()).ok() } else { None }
}

/// CRC-32 of IEEE 802.3, bit by bit: the records are short.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_well_known_one() {
        // The check value that every description of this sum gives.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
