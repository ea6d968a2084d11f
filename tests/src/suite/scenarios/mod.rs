//! The suites, a file each: a `SUITE` and a function per scenario.

pub(super) mod install;
pub(super) mod inventory_control;
