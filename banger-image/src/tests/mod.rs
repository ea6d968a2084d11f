//! Tests of the whole way from an archive to ext4; those of single steps stand in their files.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and skips aloud")]

mod configuration;
mod containers;
mod dialects;
mod ext4;
mod hostile;
mod kinds;
mod lenient;
pub(crate) mod maker;
mod model;
mod oci;
