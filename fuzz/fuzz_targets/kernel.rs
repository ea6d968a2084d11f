//! Any bytes as what `kernel import` sends: refused, or a kernel. The tar, a bzImage or an ELF file
//! in it, the list of modules.
#![no_main]

use banger_fuzz::{import_of, judged};
use banger_image::boot::kernel::import;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    import_of("kernel", bytes, |source, folder, progress| judged(import(source, folder, progress)));
});
