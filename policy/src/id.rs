//! Ids and every name that is derived from one.
//!
//! The helper derives all kernel names from a [`VmId`] itself, so that no name crosses the wire.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 64 characters of `[0-9a-f]`.
    #[error("an id is 64 characters of 0-9 and a-f")]
    Form,
    /// All zeros: never given out, so that a forgotten field is never a VM.
    #[error("an id is never all zeros")]
    Zero,
}

/// 32 bytes in lower-case hexadecimal; binary on the wire, hex in JSON, the database and paths.
macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// # Errors
            /// [`IdError::Zero`] when all bytes are zero.
            pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, IdError> {
                if bytes == [0; 32] { Err(IdError::Zero) } else { Ok(Self(bytes)) }
            }

            /// The 32 bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::from_bytes(parse_hex(text).ok_or(IdError::Form)?)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    Self::from_bytes(<[u8; 32]>::deserialize(deserializer)?).map_err(D::Error::custom)
                }
            }
        }
    };
}

hex_id!(
    /// The id of a VM: 32 random bytes.
    VmId
);
hex_id!(
    /// SHA-256 of an image's or a kernel's content: the name of its folder.
    Digest
);

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn parse_mark(mark: &str, separator: char) -> Option<(VmId, u64)> {
    let (vm, generation) = mark.split_once(separator)?;
    Some((vm.parse().ok()?, u64::from_str_radix(generation, 16).ok()?))
}

/// The root file system in an image's folder: what the daemon puts there is what the helper opens.
pub const ROOTFS_FILE: &str = "rootfs.ext4";

/// The prefix of every link and dm device that banger makes.
pub const DEVICE_PREFIX: &str = "bgr-";

impl VmId {
    /// The tap's name: `bgr-` and ten characters of base32 (RFC 4648, lower case) from the id's
    /// first 50 bits. 14 bytes, one less than `IFNAMSIZ` (linux/if.h) leaves.
    #[must_use]
    pub fn tap_name(&self) -> String {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let bits = self.0.iter().take(7).fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
        let mut name = String::from(DEVICE_PREFIX);
        for group in 0..10_u32 {
            // 56 bits were read; the highest group of five starts at bit 51.
            let shift = 51_u32.saturating_sub(group.saturating_mul(5));
            let index = usize::try_from((bits >> shift) & 31).unwrap_or(0);
            name.push(char::from(ALPHABET.get(index).copied().unwrap_or(b'a')));
        }
        name
    }

    /// The dm device's name: 68 bytes of `DM_NAME_LEN` = 128 (linux/dm-ioctl.h).
    #[must_use]
    pub fn dm_name(&self) -> String {
        format!("{DEVICE_PREFIX}{self}")
    }

    /// The dm device's UUID, which only root can set and nobody can change afterwards. At most 92
    /// bytes of `DM_UUID_LEN` = 129.
    #[must_use]
    pub fn dm_uuid(&self, generation: u64) -> String {
        format!("BANGER-{self}-{generation:016x}")
    }

    /// The tap's alias (`IFLA_IFALIAS`), writable with `CAP_NET_ADMIN` only: the mark that a tap is
    /// ours.
    #[must_use]
    pub fn tap_alias(&self, generation: u64) -> String {
        format!("banger:1:{self}:{generation:016x}")
    }

    /// The VM and the generation of which this is exactly the alias.
    #[must_use]
    pub fn from_tap_alias(alias: &str) -> Option<(Self, u64)> {
        let (vm, generation) = parse_mark(alias.strip_prefix("banger:1:")?, ':')?;
        (vm.tap_alias(generation) == alias).then_some((vm, generation))
    }

    /// The VM and the generation of which this is exactly the UUID.
    #[must_use]
    pub fn from_dm_uuid(uuid: &str) -> Option<(Self, u64)> {
        let (vm, generation) = parse_mark(uuid.strip_prefix("BANGER-")?, '-')?;
        (vm.dm_uuid(generation) == uuid).then_some((vm, generation))
    }

    /// The first 16 characters, for unix socket paths, which have 108 bytes in all (unix(7)).
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(16).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(first: u8) -> VmId {
        let mut bytes = [0x5a; 32];
        bytes[0] = first;
        VmId::from_bytes(bytes).unwrap()
    }

    #[test]
    fn derived_names_fit_their_kernel_limits() {
        let vm = id(0xff);
        assert_eq!(vm.tap_name().len(), 14);
        assert!(vm.tap_name().strip_prefix("bgr-").unwrap().bytes().all(|c| matches!(c, b'a'..=b'z' | b'2'..=b'7')));
        assert!(vm.dm_name().len() < 128);
        assert!(vm.dm_uuid(u64::MAX).len() < 129);
        assert!(vm.tap_alias(u64::MAX).len() < 256);
        assert_ne!(id(0).tap_name(), id(1).tap_name());
        assert_ne!(id(0x80).tap_name(), id(0).tap_name());
    }

    #[test]
    fn the_tap_name_is_base32_of_the_first_fifty_bits() {
        let vm = VmId::from_bytes({
            let mut bytes = [0xff; 32];
            bytes[..7].copy_from_slice(&[0, 1, 2, 3, 4, 5, 6]);
            bytes
        })
        .unwrap();
        // Oracle: `printf '\0\1\2\3\4\5\6' | base32 | tr A-Z a-z | head -c 10`
        assert_eq!(vm.tap_name(), "bgr-aaaqeayeau");
    }

    #[test]
    fn only_whole_marks_are_read_back() {
        let vm = id(9);
        assert_eq!(VmId::from_tap_alias(&vm.tap_alias(77)), Some((vm, 77)));
        assert_eq!(VmId::from_dm_uuid(&vm.dm_uuid(u64::MAX)), Some((vm, u64::MAX)));
        for mark in [
            "banger:1:bridge",
            "banger:1:",
            "",
            &format!("banger:1:{vm}:4d"),
            &format!("banger:1:{vm}:+00000000000004d"),
        ] {
            assert_eq!(VmId::from_tap_alias(mark), None, "{mark}");
        }
        for mark in ["BANGER-", "BANGER-foreign", &vm.tap_alias(1), &format!("BANGER-{vm}-1")] {
            assert_eq!(VmId::from_dm_uuid(mark), None, "{mark}");
        }
    }

    #[test]
    fn zero_and_malformed_ids_are_refused() {
        assert_eq!("0".repeat(64).parse::<VmId>(), Err(IdError::Zero));
        for bad in ["", "ab", &"g".repeat(64), &"A".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            assert_eq!(bad.parse::<VmId>(), Err(IdError::Form), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(bytes in any::<[u8; 32]>().prop_filter("zero", |b| b != &[0; 32])) {
            let vm = VmId::from_bytes(bytes).unwrap();
            prop_assert_eq!(vm.to_string().parse::<VmId>().unwrap(), vm);
            let json = serde_json::to_string(&vm).unwrap();
            prop_assert_eq!(serde_json::from_str::<VmId>(&json).unwrap(), vm);
        }
    }
}
