//! Layers over layers, through a tree to an ext4: refused, or an ext4, whose bytes are the same the
//! second time, and whose seed becomes a work disk.
#![no_main]

use banger_fuzz::{hasher, import_of, is_ext4, judged, stack};
use banger_image::work_disk::{self, WorkDisk};
use banger_image::{Limits, import};
use std::fs::File;
use std::io::Read as _;

/// Bytes that the image may hold, and of the work disk.
const MOST: u64 = 128 << 20;
/// One length of input in so many is imported twice: comparing takes longer than importing.
const TWICE: usize = 128;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let archive = stack::archive(bytes);
    let limits = Limits { entries: 20_000, expanded_bytes: 16 << 20, ..Limits::for_build_size(MOST) };
    let once = || {
        import_of("stack", &archive, |source, folder, progress| {
            let imported = judged(import(source, folder, MOST, None, limits, &hasher(), progress))?;
            is_ext4(&imported.rootfs_path, imported.build_size);
            let seed = Some(File::open(&imported.seed_path).expect("a seed"));
            let disk = folder.join("work.ext4");
            work_disk::create(WorkDisk { size: MOST, seed, uuid: [7; 16] }, &disk, progress)
                .expect("what an import keeps of /root becomes a work disk");
            is_ext4(&disk, MOST);
            Some((File::open(imported.rootfs_path).expect("as before"), imported.build_size))
        })
    };
    let Some((mut first, size)) = once() else { return };
    if bytes.len() % TWICE != TWICE / 2 {
        return;
    }
    let (mut second, _) = once().expect("it was imported before");
    let (mut ours, mut again) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..size).step_by(ours.len()) {
        let length = ours.len().min(usize::try_from(size - at).expect("small"));
        first.read_exact(&mut ours[..length]).expect("readable");
        second.read_exact(&mut again[..length]).expect("readable");
        assert!(ours == again, "the same layers make another file system near byte {at}");
    }
});
