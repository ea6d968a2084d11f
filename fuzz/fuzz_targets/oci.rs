//! The documents of an image: indexes, manifests and configurations, as a layout has them and as
//! `docker save` has written them. Refused, or an image whose configuration can be kept.
#![no_main]

use banger_fuzz::{documents, hasher, import_of, is_ext4, judged};
use banger_image::{Limits, import};

/// Bytes that the image may hold.
const MOST: u64 = 128 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (reference, archive) = documents::archive(bytes);
    let limits = Limits { entries: 1000, expanded_bytes: 4 << 20, ..Limits::for_build_size(MOST) };
    import_of("oci", &archive, |source, folder, progress| {
        let imported = import(source, folder, MOST, reference.as_deref(), limits, &hasher(), progress);
        let Some(imported) = judged(imported) else { return };
        imported.config.check().expect("what is kept fits");
        is_ext4(&imported.rootfs_path, imported.build_size);
    });
});
