//! The test bench: `banger-bench` on the build machine makes and boots the host VM ([`hostvm`]).

pub mod hostvm;
