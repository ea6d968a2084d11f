//! The test bench. `banger-bench` on the build machine makes and boots the host VM ([`hostvm`]);
//! inside it `banger-suite` runs the scenarios ([`suite`]) between two looks at the whole host
//! ([`inventory`]). The stand-in VMM ([`standin`]) serves where no Firecracker is given;
//! [`hostile`] is a VMM that attacks its host, and [`hostile_agent`] a guest that attacks the
//! daemon.

pub mod bench;
#[cfg(test)]
mod claims;
pub mod hostile;
pub mod hostile_agent;
pub mod hostvm;
pub mod inventory;
#[cfg(test)]
mod prose;
mod qmp;
pub mod standin;
pub mod suite;
