//! Which address index a new VM gets. Called within the transaction that writes the VM's row.

use banger_policy::net::{AddressIndex, Network};

/// The lowest index that nobody has; `taken` is sorted. Low numbers are reused first, so that
/// addresses stay few and a network can be made smaller. `None`: all are taken.
pub(crate) fn lowest_free(taken: &[u32], network: Network) -> Option<AddressIndex> {
    let free = (1_u32..).find(|index| taken.binary_search(index).is_err())?;
    network.index(free).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn gaps_are_filled_first_and_the_end_is_an_end() {
        let network = Network::new(Ipv4Addr::new(10, 0, 0, 1), 29).unwrap();
        let next = |taken: &[u32]| lowest_free(taken, network).map(AddressIndex::get);
        assert_eq!(next(&[]), Some(1));
        assert_eq!(next(&[1, 2, 4]), Some(3));
        assert_eq!(next(&[2, 3]), Some(1));
        assert_eq!(next(&[1, 2, 3, 4]), Some(5));
        assert_eq!(next(&[1, 2, 3, 4, 5]), None);
        // A lease of a network that was larger is not ours to give, and does not hide a free one.
        assert_eq!(next(&[1, 200]), Some(2));
    }
}
