//! `completion`: a script for the user's shell, from the same tree that is parsed.

use crate::cli::Cli;
use crate::output::print;
use clap::CommandFactory as _;

pub(super) fn run(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "banger", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(0)
}
