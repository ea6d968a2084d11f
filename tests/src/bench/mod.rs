//! `banger-bench`: what the Makefile calls on the build machine. It builds the product, boots the
//! host VM with it, runs suites there and adds up.

mod budgets;
mod checks;
mod fuzz;
mod here;
mod images;
mod interrupt;
mod lanes;
mod layers;
mod main;
mod packages;
mod product;
mod session;
mod shown;
mod tally;

pub use main::main;
