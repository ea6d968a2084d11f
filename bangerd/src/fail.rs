//! Points at which the bench stops the daemon to kill something: one after each step whose effect
//! outlives this process (a row, a call of the helper, a file, a cgroup, a process, a word to the
//! guest). The crates below call theirs through the hook of [`banger_vmm::fail`].
//!
//! Only with the feature `failpoints`, which no package has; without it everything here is empty. A
//! point is called where the effect is had, so that a new caller brings its points with it. The
//! bench speaks through the folder `failpoints` of the state folder, while a daemon runs:
//!
//! - `plan`: a word of its own, and on a second line, when something shall stop, a point's name and
//!   which time it is passed since the plan was made;
//! - `passed`: every point that is passed under a plan, one a line, and whether a process of a VM
//!   lived then;
//! - `reached`: made by the point that was wanted, which then waits until it is removed, or until
//!   it is killed.

use banger_vmm::cgroup::Cgroups;
use std::path::Path;

/// From now on points look for a plan.
pub(crate) fn arm(state: &Path, cgroups: &Cgroups) {
    #[cfg(feature = "failpoints")]
    armed::arm(state, cgroups);
    #[cfg(not(feature = "failpoints"))]
    let _ = (state, cgroups);
}

/// A step was done: `area` is what it was done to.
pub(crate) fn point(area: &str, step: &str) {
    #[cfg(feature = "failpoints")]
    armed::point(&format!("{area}: {step}"));
    #[cfg(not(feature = "failpoints"))]
    let _ = (area, step);
}

/// The function in which a closure stands, for naming a point after it.
pub(crate) fn function_around<F>(_closure: &F) -> &'static str {
    let name = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(feature = "failpoints")]
mod armed {
    use super::{Cgroups, Path};
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io::{self, Write as _};
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::{Duration, Instant};

    /// A bench that has gone away does not stop the daemon for ever.
    const LONGEST_STOP: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(5);

    static BENCH: OnceLock<(PathBuf, Cgroups)> = OnceLock::new();
    /// The plan, and how often each point was passed under it.
    static PASSED: Mutex<(String, BTreeMap<String, u32>)> = Mutex::new((String::new(), BTreeMap::new()));

    pub(super) fn arm(state: &Path, cgroups: &Cgroups) {
        BENCH.get_or_init(|| (state.join("failpoints"), cgroups.clone()));
        banger_vmm::fail::set_hook(super::point);
    }

    pub(super) fn point(name: &str) {
        let Some((folder, cgroups)) = BENCH.get() else { return };
        let Ok(plan) = fs::read_to_string(folder.join("plan")) else { return };
        let this = format!("{name}\t{}", count(name, &plan));
        if let Err(error) = pass(folder, &this, cgroups, plan.lines().nth(1)) {
            tracing::error!("the point {this}: {error}");
        }
    }

    fn count(name: &str, plan: &str) -> u32 {
        let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.0 != plan {
            *passed = (plan.to_owned(), BTreeMap::new());
        }
        let count = passed.1.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn pass(folder: &Path, this: &str, cgroups: &Cgroups, wanted: Option<&str>) -> io::Result<()> {
        let lives = cgroups.all().iter().any(|(owner, vm)| cgroups.vm(*owner, vm).populated().unwrap_or(false));
        let line = format!("{this}\t{}\n", if lives { "process" } else { "no process" });
        File::options().create(true).append(true).open(folder.join("passed"))?.write_all(line.as_bytes())?;
        if wanted != Some(this) {
            return Ok(());
        }
        let reached = folder.join("reached");
        // Under its name when it is whole: the bench kills as soon as it sees it.
        let unfinished = folder.join("reached.new");
        let mut file = File::create(&unfinished)?;
        write!(file, "{this}\t{}", std::process::id())?;
        file.sync_all()?;
        fs::rename(&unfinished, &reached)?;
        let began = Instant::now();
        while reached.exists() && began.elapsed() < LONGEST_STOP {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> &'static str {
        let closure = || || ();
        function_around(&closure())
    }

    #[test]
    fn a_point_is_named_after_its_function() {
        assert_eq!(here(), "here");
    }
}
