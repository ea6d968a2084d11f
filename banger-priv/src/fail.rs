//! Points at which a test kills the helper: between every two steps that must not be left half done.
//! Without the cargo feature `failpoints` the compiler removes all of it.

use std::sync::OnceLock;

static POINT: OnceLock<String> = OnceLock::new();

/// Reads `BANGER_PRIV_FAIL`, before the environment is cleared.
pub(crate) fn arm() {
    if cfg!(feature = "failpoints") {
        drop(std::env::var("BANGER_PRIV_FAIL").map(|point| POINT.set(point)));
    }
}

/// Says that the point was reached, then dies as by SIGKILL: nothing is undone.
pub(crate) fn point(name: &'static str) {
    if cfg!(feature = "failpoints") && POINT.get().is_some_and(|wanted| wanted == name) {
        crate::log::record(crate::log::Level::Critical, &format!("failpoint={name} reached"));
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
