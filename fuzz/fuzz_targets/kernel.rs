//! Any bytes as what `kernel import` sends: refused, or a kernel. The tar, a bzImage or an ELF file
//! in it, the list of modules.
#![no_main]

use banger_fuzz::import_of;
use banger_image::boot::kernel::import;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    import_of("kernel", bytes, |source, folder, progress| drop(import(source, folder, progress)));
});
