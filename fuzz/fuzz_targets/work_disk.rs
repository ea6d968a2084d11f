//! Any bytes as the seed of a work disk: refused, or an ext4.
#![no_main]

use banger_fuzz::{import_of, is_ext4, judged};
use banger_image::work_disk::{WorkDisk, create};

/// Bytes of the disk.
const SIZE: u64 = 128 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    import_of("work-disk", bytes, |seed, folder, progress| {
        let path = folder.join("work.ext4");
        let disk = WorkDisk { size: SIZE, seed: Some(seed), uuid: [7; 16] };
        if judged(create(disk, &path, progress)).is_some() {
            is_ext4(&path, SIZE);
        }
    });
});
