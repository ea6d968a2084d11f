//! `vm session`: what can be typed.

use super::{Json, With};
use banger_policy::vm::RestartPolicy;
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Session {
    /// Start a command in the background; print its session's name
    Start(Start),
    /// List the sessions of a VM, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// The VM
        vm: String,
        #[command(flatten)]
        json: Json,
    },
    /// Show one session
    Show {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        json: Json,
    },
    /// Print what a session wrote
    Logs(Logs),
    /// Write to a session's standard input: the text, the file, or our own standard input
    Send(Send),
    /// See what a session writes from now on, and type into it; `~.` at the beginning of a line
    /// detaches
    Attach(One),
    /// Ask sessions to end, and end them after ten seconds
    Stop(Several),
    /// Send a signal to sessions
    Kill {
        #[command(flatten)]
        several: Several,
        /// Its name or number
        #[arg(long, short, default_value = "KILL")]
        signal: String,
    },
    /// Wait until a session ends; its exit status is ours
    Wait(One),
    /// Forget sessions that have ended, and what they wrote
    #[command(visible_alias = "delete")]
    Rm(Several),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// The VM
    pub(crate) vm: String,
    /// The session's name or id
    pub(crate) session: String,
}

#[derive(Debug, Args)]
pub(crate) struct Several {
    /// The VM
    pub(crate) vm: String,
    /// The sessions' names or ids
    #[arg(required = true, value_name = "SESSION")]
    pub(crate) sessions: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Its name, unique among the sessions that run [default: generated]
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) name: Option<String>,
    /// Its standard input: none, or a pipe for `send` and `attach`
    #[arg(long, value_name = "KIND", default_value = "none")]
    pub(crate) stdin: Stdin,
    /// Give it a terminal, which is its input as well
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Start it again when it ends, and with the VM: no or always
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub(crate) restart: RestartPolicy,
    #[command(flatten)]
    pub(crate) with: With,
    /// The VM
    pub(crate) vm: String,
    /// The command [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stdin {
    Pipe,
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) one: One,
    /// Only this one, which then goes to standard output [default: both, as they were written]
    #[arg(long, value_name = "STREAM")]
    pub(crate) stream: Option<Stream>,
    /// Go on until the session ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) tail: Option<u64>,
    /// Begin each line with the time at which it was written, by the guest's clock
    #[arg(long)]
    pub(crate) times: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    #[command(flatten)]
    pub(crate) one: One,
    /// The bytes, to which nothing is added [default: standard input]
    #[arg(conflicts_with = "file", allow_hyphen_values = true)]
    pub(crate) text: Option<OsString>,
    /// The file with the bytes
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Then close the session's standard input
    #[arg(long)]
    pub(crate) eof: bool,
}
