//! Any bytes as what `image register` sends: refused, or stored as they are, up to the end of the
//! file system and with zeros behind it.
#![no_main]

use banger_fuzz::{import_of, judged};
use banger_image::register;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    import_of("registered", bytes, |source, folder, progress| {
        let Some(made) = judged(register(source, folder, progress)) else { return };
        let length = u64::try_from(bytes.len()).expect("short input");
        let seen = banger_policy::rootfs::examine(bytes, length).expect("what was taken is a root disk");
        let end = usize::try_from(seen.bytes).expect("inside the input");
        assert!(made.build_size >= seen.bytes && end <= bytes.len());
        let mut stored = vec![1; end + 8192];
        let file = File::open(made.rootfs_path).expect("what was made is there");
        file.read_exact_at(&mut stored, 0).expect("the length of the largest disk");
        assert_eq!(&stored[..end], &bytes[..end]);
        assert!(stored[end..].iter().all(|byte| *byte == 0), "what is behind the file system is kept");
    });
});
