//! Steps whose effect outlives this process (a cgroup, a VMM, a word to a guest), named for the
//! test bench, which stops the daemon at each of them to kill something.
//!
//! Only with the feature `failpoints`, which no package has; without it everything here is empty.
//! The daemon sets the hook; crates below it call [`point`].

/// Called with the area and the step: `("cgroup", "made")`.
pub type Hook = fn(&str, &str);

#[cfg(feature = "failpoints")]
static HOOK: std::sync::OnceLock<Hook> = std::sync::OnceLock::new();

/// Calls `hook` at each point from now on. The first hook stays.
pub fn set_hook(hook: Hook) {
    #[cfg(feature = "failpoints")]
    HOOK.get_or_init(|| hook);
    #[cfg(not(feature = "failpoints"))]
    let _ = hook;
}

/// A step is done: `area` is what it was done to.
pub fn point(area: &str, step: &str) {
    #[cfg(feature = "failpoints")]
    if let Some(hook) = HOOK.get() {
        hook(area, step);
    }
    #[cfg(not(feature = "failpoints"))]
    let _ = (area, step);
}
