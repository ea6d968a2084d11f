//! What must stay free on the host's disk: one rule for everything that is made there, decided
//! before it is made. The helper asks for COW files; the daemon asks for work disks, uploads,
//! imports and copies of its database.
//!
//! What is free is what an unprivileged user may still take (statvfs(3): `f_bavail`). Root could
//! take blocks beyond that, so a call that succeeds says nothing.

use crate::limits::HOST_RESERVE_BYTES;

/// The reserve would be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} MiB, of the host's disk {} MiB are free, and {} MiB of them are a reserve for what runs",
    .needed.div_ceil(MIB), .free / MIB, HOST_RESERVE_BYTES / MIB
)]
pub struct Short {
    /// What the new thing takes, bytes.
    pub needed: u64,
    /// What is free, bytes.
    pub free: u64,
}

const MIB: u64 = 1 << 20;

/// May `needed` bytes be taken of `free`?
///
/// # Errors
/// [`Short`] when less than the reserve would be left.
pub fn check(needed: u64, free: u64) -> Result<(), Short> {
    match free.checked_sub(needed) {
        Some(left) if left >= HOST_RESERVE_BYTES => Ok(()),
        _ => Err(Short { needed, free }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_stays_to_the_byte() {
        for needed in [0, 1, 4096, 128 << 30] {
            assert_eq!(check(needed, needed + HOST_RESERVE_BYTES), Ok(()));
            let free = needed + HOST_RESERVE_BYTES - 1;
            assert_eq!(check(needed, free), Err(Short { needed, free }));
        }
        assert!(check(u64::MAX, u64::MAX).is_err() && check(1, 0).is_err());
    }

    #[test]
    fn a_refusal_has_all_three_numbers() {
        let text = Short { needed: (8 << 30) + 1, free: 3 << 30 }.to_string();
        for number in ["8193 MiB", "3072 MiB", "512 MiB"] {
            assert!(text.contains(number), "{text}");
        }
    }
}
