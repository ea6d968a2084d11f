//! Points at which a test kills the helper: between every two steps that must not be left half
//! done. Without the cargo feature `failpoints` the compiler removes all of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Which point is the last, counted from the start of the process; 0: none.
static LAST: OnceLock<u32> = OnceLock::new();
static PASSED: AtomicU32 = AtomicU32::new(0);

/// Reads `BANGER_PRIV_FAIL`, before the environment is cleared.
pub(crate) fn arm() {
    if cfg!(feature = "failpoints") {
        let last = std::env::var("BANGER_PRIV_FAIL").ok().and_then(|text| text.parse().ok());
        last.map(|last| LAST.get_or_init(|| last));
    }
}

/// Says that the point was reached; at the last one it then dies as by SIGKILL: nothing is undone.
pub(crate) fn point(name: &'static str) {
    let Some(last) = LAST.get().filter(|_| cfg!(feature = "failpoints")) else { return };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    crate::log::record(crate::log::Level::Debug, &format!("failpoint={passed} name={name}"));
    if passed == *last {
        // The confined helper may not even ask for this signal, and is killed for having tried.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
