//! The scenario runner: what `banger-suite` does, as root, inside the host VM.
//!
//! A suite is a file in [`scenarios`] with one function per scenario; the runner puts an inventory
//! before and after each, times it, and reports. A scenario talks to the product as a user would,
//! through [`Scene`]: as alice, bob or carol, without sudo.

mod command;
mod guests;
mod list;
mod main;
mod peer;
mod product;
mod recording;
mod report;
mod runner;
mod sample;
mod scenarios;
mod scene;
mod vmm;
mod watch;

pub use command::{Finished, Run};
pub use list::{Outcome, Reboot, Scenario, Setup, Suite, all, find};
pub use main::main;
pub use report::{Report, Result as ScenarioResult, Verdict};
pub use runner::REBOOT_STATUS;
pub use sample::Random;
pub use scenarios::CAST;
pub use scene::{Scene, Surroundings};
