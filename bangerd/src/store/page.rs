//! Lists of images and kernels in pages that fit a frame, counted in bytes: what is in an entry was
//! chosen by whoever made it, and no entry may keep the others from being listed.

use super::stored::Named;
use banger_proto::model::{StoreKey, StorePage};
use banger_proto::transport::DAEMON_LIMITS;
use banger_proto::wire::encoded_bytes;
use serde::Serialize;

/// The largest page, bytes: a frame without what stands around it.
const PAGE: usize = DAEMON_LIMITS.max_frame - 1024;

/// The entries behind `after`, as many as fit.
pub(crate) fn of<T: Named + Serialize>(all: Vec<T>, after: Option<&StoreKey>) -> StorePage<T> {
    let mut keyed: Vec<(StoreKey, T)> = all.into_iter().map(|one| (key(&one), one)).collect();
    keyed.retain(|(key, _)| after.is_none_or(|after| key > after));
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut bytes = 0_usize;
    let count = keyed.iter().take_while(|(_, one)| {
        bytes = bytes.saturating_add(encoded_bytes(one));
        bytes <= PAGE
    });
    // One entry at least, so that a list ends. None is larger than a page: what is stored is
    // bounded (see the tests).
    let count = count.count().max(1);
    let next = (keyed.len() > count).then(|| keyed.get(count - 1).map(|(key, _)| key.clone())).flatten();
    StorePage { entries: keyed.into_iter().take(count).map(|(_, one)| one).collect(), next }
}

fn key<T: Named>(one: &T) -> StoreKey {
    let entry = one.entry();
    StoreKey { owner: entry.owner.uid, owner_name: entry.owner.name.to_string(), name: entry.name.to_owned() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_image::boot::kernel::{MAX_MODULE_NAME, MAX_MODULES};
    use banger_policy::Digest;
    use banger_proto::model::KernelRecord;
    use banger_proto::time::Timestamp;

    /// The largest that an import lets in.
    fn kernel(owner: u32, number: usize) -> KernelRecord {
        KernelRecord {
            id: Digest::from_bytes([7; 32]).unwrap(),
            name: format!("k{number}{}", "x".repeat(50)).parse().unwrap(),
            owner,
            owner_name: "u".repeat(32),
            shared: true,
            version: "6.12".repeat(16),
            modules: vec!["m".repeat(MAX_MODULE_NAME + 6); MAX_MODULES],
            size_bytes: 1,
            created_at: Timestamp::now(),
        }
    }

    #[test]
    fn the_largest_entries_in_the_largest_number_are_listed_whole() {
        let all: Vec<KernelRecord> =
            (0..300_u16).map(|number| kernel(u32::from(number % 7), usize::from(number))).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = of(all.clone(), after.as_ref());
            assert!(!page.entries.is_empty() && encoded_bytes(&page) <= DAEMON_LIMITS.max_frame);
            seen.extend(page.entries);
            assert!(seen.len() <= all.len(), "pages without an end");
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), all.len());
        assert!(seen.iter().map(key).is_sorted());
    }

    #[test]
    fn what_goes_between_two_pages_breaks_nothing() {
        let all: Vec<KernelRecord> = (0..40).map(|number| kernel(1, number)).collect();
        let first = of(all.clone(), None);
        let next = first.next.unwrap();
        let left: Vec<KernelRecord> = all.into_iter().filter(|one| one.name.as_str() != next.name).collect();
        let mut behind: Vec<StoreKey> = left.iter().map(key).filter(|key| *key > next).collect();
        behind.sort();
        let seen: Vec<StoreKey> = of(left, Some(&next)).entries.iter().map(key).collect();
        assert!(!seen.is_empty() && behind.starts_with(&seen), "the page begins where the one before ended");
    }
}
