//! `banger mcp`.

use crate::interrupt::Interrupts;
use crate::output::note;
use crate::{mcp, output, signals};
use anyhow::Context as _;
use std::io::IsTerminal as _;
use tokio::signal::unix::SignalKind;

pub(super) async fn run() -> anyhow::Result<u8> {
    let mut interrupts = Interrupts::listen()?;
    // Tools are interrupted by this signal. Ignored, they would inherit that; a handler they do not
    // (execve(2)).
    let _taken = signals::take(SignalKind::interrupt())?;
    // Before an upgrade can replace it: what is at this path then speaks to the daemon of its own
    // version.
    let program = std::env::current_exe().context("cannot find this program")?;
    if std::io::stdin().is_terminal() {
        note("banger mcp speaks with a program, not with a person: name it to your agent as an MCP server");
    }
    mcp::serve(program, tokio::io::stdin(), output::protocol(), async move { interrupts.next().await }).await
}
