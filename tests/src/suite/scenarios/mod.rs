//! The suites, a file each: a `SUITE` and a function per scenario.

pub(super) mod bad_input;
pub(super) mod commands;
pub(super) mod confinement;
pub(super) mod crash;
pub(super) mod crowd;
pub(super) mod demo;
pub(super) mod faults;
pub(super) mod helper_kills;
pub(super) mod hostile_agent;
pub(super) mod hostile_client;
pub(super) mod hostile_vmm;
pub(super) mod images;
pub(super) mod install;
pub(super) mod inventory_control;
pub(super) mod lifecycle;
pub(super) mod owners;
pub(super) mod packets;
pub(super) mod root_disk;
pub(super) mod services;
pub(super) mod sessions;
pub(super) mod stops;
pub(super) mod timings;
pub(super) mod two_users;
pub(super) mod undo;
pub(super) mod using;
pub(super) mod workspace;
