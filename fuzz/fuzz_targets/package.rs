//! Any bytes as a distribution's package (.deb, .rpm) that `kernel import` sends: refused, or a
//! kernel with its modules.
#![no_main]

use banger_fuzz::{import_of, judged};
use banger_image::boot::kernel::import;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "package/0001", bytes).expect("in memory");
    let whole = archive.into_inner().expect("in memory");
    import_of("package", &whole, |source, folder, progress| judged(import(source, folder, progress)));
});
