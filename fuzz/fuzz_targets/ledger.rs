//! Any bytes as a file of the helper's ledger or as a COW file's record: damaged, or a value that
//! is written as a file which reads the same.
#![no_main]

use banger_policy::helper::holding::{Cow, Row};
use banger_priv::record::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

fn reads_the_same<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Some(value) = decode::<T>(bytes) else { return };
    let written = encode(&value).expect("what was read can be written");
    assert_eq!(decode::<T>(&written), Some(value));
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    reads_the_same::<Row>(bytes);
    reads_the_same::<Cow>(bytes);
    // Random bytes never have the right sum: the value itself is read as well.
    let Ok(row) = serde_json::from_slice::<Row>(bytes) else { return };
    let written = encode(&row).expect("a row can be written");
    assert_eq!(decode::<Row>(&written), Some(row));
});
