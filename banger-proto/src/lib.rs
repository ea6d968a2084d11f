//! The wire of banger.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod guest;
