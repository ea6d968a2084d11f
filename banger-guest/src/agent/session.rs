//! A running command on a session channel: bytes both ways, signals, the end.
//!
//! One task per command, started by the connection handler. It always listens to its channel, so a
//! command that reads or writes nothing never holds up others of the same connection.

use banger_proto::signal;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

use super::command::Abandoned;
use super::duplex::Pressure;
use super::exec::{self, Output, Request, Started};
use super::input::Pending;
use super::pty;
use super::server::{Running, Shared};

/// Bytes of output that are read at once: one SSH packet.
const CHUNK: usize = 32 * 1024;
/// Data of this type is standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;
/// For a command of which the kernel says neither status nor signal.
const UNKNOWN: u32 = 255;

/// Serves the channel until its command has ended. One whose client has gone is hung up, as by
/// sshd(8), and may go on.
pub(super) async fn run(
    channel: Channel<Msg>,
    handle: Handle,
    request: Request,
    shared: Arc<Shared>,
    pressure: Pressure,
) {
    let (from_client, to_client) = channel.split();
    // Looking users up and executing programs wait for the disk, which must not silence the agent.
    let started = tokio::task::spawn_blocking(move || exec::start(&request)).await;
    let started = match started.unwrap_or(Err(exec::StartError::Ended)) {
        Ok(started) => started,
        Err(error) => {
            let text = format!("banger-agent: {error}\n");
            let _ = to_client.extended_data_bytes(STDERR, text.into_bytes()).await;
            let _ = to_client.exit_status(error.status().into()).await;
            let _ = to_client.close().await;
            return;
        }
    };
    // A child that is not reaped yet has a number, which is also its group's.
    let terminal = started.terminal.is_some();
    let running = started.child.id().map(|pid| shared.running(pid.cast_signed(), terminal));
    // Our ends of its streams are closed in between.
    match converse(from_client, &to_client, started, running, pressure).await {
        Ok(status) => {
            let _ = to_client.eof().await;
            send_status(&to_client, &handle, status).await;
            let _ = to_client.close().await;
        }
        Err(abandoned) => {
            let _ = to_client.close().await;
            abandoned.end().await;
        }
    }
}

/// Carries bytes and requests until the command has ended and its output is sent: its status. Gives
/// the command back when the client goes first.
async fn converse(
    mut from_client: ChannelReadHalf,
    to_client: &ChannelWriteHalf<Msg>,
    started: Started,
    mut running: Option<Running>,
    pressure: Pressure,
) -> Result<ExitStatus, Abandoned> {
    let Started { mut child, input, mut output, errors, terminal } = started;
    let mut input = Pending::new(input, pressure);
    let outputs = async {
        let errors = async {
            if let Some(mut errors) = errors {
                copy_out(&mut errors, to_client, Some(STDERR)).await;
            }
        };
        tokio::join!(copy_out(&mut output, to_client, None), errors)
    };
    let mut outputs = std::pin::pin!(outputs);
    let mut sent = false;
    let mut status = None;
    loop {
        tokio::select! {
            message = from_client.wait() => match message {
                Some(ChannelMsg::Data { data }) => {
                    if let Err(error) = input.push(&data) {
                        let text = format!("banger-agent: no room for standard input: {error}\n");
                        let _ = to_client.extended_data_bytes(STDERR, text.into_bytes()).await;
                        break;
                    }
                }
                Some(ChannelMsg::Eof) if terminal.is_none() => input.finish(),
                Some(ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height }) => {
                    if let Some(terminal) = &terminal {
                        pty::set_size(terminal, (col_width, row_height, pix_width, pix_height));
                    }
                }
                Some(ChannelMsg::Signal { signal }) => {
                    if let (Some(running), Some(number)) = (&running, number_of(&signal)) {
                        running.signal(number);
                    }
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            },
            () = input.write_some(), if input.has_work() => {}
            _ = &mut outputs, if !sent => sent = true,
            result = child.wait(), if status.is_none() => {
                running = None;
                status = Some(result.unwrap_or_default());
            }
        }
        if sent && let Some(status) = status {
            return Ok(status);
        }
    }
    Err(Abandoned { child, running })
}

/// Sends everything that `output` gives, at the pace of the client. A terminal whose last user is
/// gone ends with an error, a pipe with nothing: both are the end.
async fn copy_out(output: &mut Output, to_client: &ChannelWriteHalf<Msg>, kind: Option<u32>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match output.read_buf(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let sent = match kind {
            None => to_client.data_bytes(chunk).await,
            Some(kind) => to_client.extended_data_bytes(kind, chunk).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send_status(to_client: &ChannelWriteHalf<Msg>, handle: &Handle, status: ExitStatus) {
    if let Some(number) = status.signal() {
        let (name, core) = (name_of(number), status.core_dumped());
        let _ = handle.exit_signal_request(to_client.id(), name, core, String::new(), String::new()).await;
        return;
    }
    let code = status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(UNKNOWN);
    let _ = to_client.exit_status(code).await;
}

fn number_of(signal: &Sig) -> Option<i32> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    };
    signal::from_ssh(name).map(i32::from)
}

fn name_of(number: i32) -> Sig {
    // A number that is none travels as one that nobody takes for a signal.
    let name = u8::try_from(number).map_or_else(|_| number.to_string(), signal::to_ssh);
    match name.as_str() {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        _ => Sig::Custom(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_number_and_a_name() {
        for number in 1..=i32::from(signal::LAST) {
            assert_eq!(number_of(&name_of(number)), Some(number));
        }
        assert_eq!(number_of(&Sig::KILL), Some(libc::SIGKILL));
        assert_eq!(number_of(&Sig::Custom("SIGWINCH".into())), Some(libc::SIGWINCH));
        assert_eq!(number_of(&Sig::Custom("NONE".into())), None);
        assert!(matches!(name_of(libc::SIGTERM), Sig::TERM));
        assert!(matches!(name_of(libc::SIGSYS), Sig::Custom(name) if name == "SYS@banger"));
    }
}
