//! Any bytes as a frame to the daemon: refused, or a value that encodes to the same value again.
#![no_main]

use banger_proto::daemon::DaemonRequest;
use banger_proto::transport::DAEMON_LIMITS as LIMITS;
use banger_proto::wire::{ToServer, decode, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = decode::<ToServer<DaemonRequest>>(bytes, LIMITS.max_frame) else { return };
    let again = encode(&frame, LIMITS.max_frame).expect("what was decoded can be encoded");
    let twice = decode::<ToServer<DaemonRequest>>(&again, LIMITS.max_frame).expect("and decoded again");
    assert_eq!(encode(&twice, LIMITS.max_frame).expect("as before"), again);
});
