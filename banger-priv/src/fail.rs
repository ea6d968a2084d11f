//! Points at which a test kills the helper: between every two steps that must not be left half done.
//! Without the cargo feature `failpoints` this is nothing at all.

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;

    static POINT: OnceLock<String> = OnceLock::new();

    /// Reads `BANGER_PRIV_FAIL`, before the environment is cleared.
    pub(crate) fn arm() {
        if let Ok(point) = std::env::var("BANGER_PRIV_FAIL") {
            drop(POINT.set(point));
        }
    }

    /// Says that the point was reached, then dies as by SIGKILL: nothing is undone.
    pub(crate) fn point(name: &'static str) {
        if POINT.get().is_some_and(|wanted| wanted == name) {
            crate::log::record(crate::log::Level::Critical, &format!("failpoint={name} reached"));
            let me = rustix::process::getpid();
            drop(rustix::process::kill_process(me, rustix::process::Signal::KILL));
        }
    }
}

#[cfg(feature = "failpoints")]
pub(crate) use armed::{arm, point};

#[cfg(not(feature = "failpoints"))]
pub(crate) fn arm() {}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn point(_: &'static str) {}
