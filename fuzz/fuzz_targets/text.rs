//! What users type: sizes format to what they parse to, ids and names are kept exactly.
#![no_main]

use banger_policy::{ByteSize, ImageName, VmId, VmName};
use banger_proto::wire::{HELLO_BYTES, Hello};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(hello) = <&[u8; HELLO_BYTES]>::try_from(bytes) {
        if let Ok(decoded) = Hello::decode(hello) {
            assert_eq!(&decoded.encode(), hello);
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
    }
    if let Ok(id) = text.parse::<VmId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(name) = text.parse::<VmName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.as_str(), text);
    }
});
