//! Any bytes as a frame to the helper: refused, or a value that encodes to the same value again.
#![no_main]

use banger_proto::helper::HelperRequest;
use banger_proto::transport::HELPER_LIMITS as LIMITS;
use banger_proto::wire::{ToServer, decode, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = decode::<ToServer<HelperRequest>>(bytes, LIMITS.max_frame) else { return };
    let again = encode(&frame, LIMITS.max_frame).expect("what was decoded can be encoded");
    let twice = decode::<ToServer<HelperRequest>>(&again, LIMITS.max_frame).expect("and decoded again");
    assert_eq!(encode(&twice, LIMITS.max_frame).expect("as before"), again);
});
