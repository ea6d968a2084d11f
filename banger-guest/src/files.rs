//! This program as a command of the guest: packs and unpacks for the command line on the host.
//!
//! Started by the agent as the command's user and in its folder, for a command whose first word is
//! [`banger_files::COMMAND`].

use std::ffi::OsString;
use std::io::{BufReader, BufWriter, Write as _, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

/// As `banger` sends its frames.
const BUFFER: usize = 64 * 1024;

pub(crate) fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let mut input = BufReader::with_capacity(BUFFER, stdin().lock());
    let mut output = BufWriter::with_capacity(BUFFER, stdout().lock());
    match banger_files::program::run(&words, &home, &mut input, &mut output) {
        Ok(lines) => {
            lines.iter().for_each(|line| drop(writeln!(stderr(), "{line}")));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}
