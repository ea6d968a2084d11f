//! Names for VMs that nobody named.

use banger_policy::{VmId, VmName};

const FIRST: [&str; 32] = [
    "amber", "bold", "brave", "bright", "calm", "clear", "clever", "crisp", "eager", "fair", "fleet", "fond", "gentle",
    "glad", "golden", "keen", "kind", "light", "lively", "lucky", "mellow", "merry", "mild", "neat", "noble", "plain",
    "proud", "quick", "quiet", "sharp", "swift", "warm",
];
const SECOND: [&str; 32] = [
    "alder", "aspen", "badger", "beech", "birch", "cedar", "crane", "dove", "elm", "falcon", "fern", "finch", "fox",
    "hare", "hazel", "heron", "ibex", "lark", "linden", "lynx", "maple", "marten", "moss", "oak", "otter", "owl",
    "pine", "raven", "robin", "rowan", "swan", "wren",
];

/// A name from an id's bytes, such as `quick-otter`; from the third attempt on with a number, so
/// that it comes to an end however many VMs there are.
pub(super) fn generated(id: &VmId, attempt: usize) -> Option<VmName> {
    let mut bytes = id.as_bytes().iter().copied().map(usize::from).skip(attempt * 3);
    let (first, second, number) = (bytes.next()?, bytes.next()?, bytes.next()?);
    let words = (FIRST.get(first % FIRST.len())?, SECOND.get(second % SECOND.len())?);
    let name =
        if attempt < 2 { format!("{}-{}", words.0, words.1) } else { format!("{}-{}-{number}", words.0, words.1) };
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn ten_attempts_give_ten_valid_names() {
        let id = VmId::from_bytes(std::array::from_fn(|at| u8::try_from(at * 7 + 1).unwrap())).unwrap();
        let names: Vec<_> = (0..10).map(|attempt| generated(&id, attempt).unwrap()).collect();
        assert!(names.iter().all(|name| name.as_str().contains('-')));
        assert_eq!(generated(&id, 11), None);
    }
}
