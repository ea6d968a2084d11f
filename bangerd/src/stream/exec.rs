//! A command in the guest for a client.

use super::client::{Client, Gone, Sender};
use banger_link::ssh::{Command, Input, Output, Said, Session, SshError};
use banger_proto::guest::{FOLDER_REQUEST, USER_REQUEST};
use banger_proto::stream::{Frame, Terminal, read};
use std::io;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

/// How a command's stream ended.
enum End {
    Exit(u8),
    Guest(SshError),
    Client(io::Error),
}

/// Runs a command and passes everything on, in both directions at once and as fast as the slower side takes
/// it. A client that goes away hangs the command up.
///
/// # Errors
/// What the client's socket says.
pub async fn exec(
    stream: UnixStream,
    session: &Session,
    command: &[String],
    env: &[(String, String)],
    terminal: Option<&Terminal>,
) -> io::Result<()> {
    let Client { mut from, mut to, gone } = Client::new(stream)?;
    let mut running = match session.start(&Command { words: command, env, terminal }).await {
        Ok(running) => running,
        Err(error) => return to.failed(&error).await,
    };
    let end = tokio::select! {
        end = pass_output(&mut running.output, &mut to) => end,
        end = pass_input(&mut from, &running.input, &gone) => end,
    };
    match end {
        End::Exit(status) => {
            session.finished(running);
            to.last(&Frame::Exit(status)).await
        }
        End::Guest(error) => {
            running.hang_up().await;
            to.failed(&error).await
        }
        End::Client(error) => {
            running.hang_up().await;
            Err(error)
        }
    }
}

/// What the agent is asked for before a command: its variables, and by names that no variable has, folder and user.
#[must_use]
pub fn requests(
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    user: Option<String>,
) -> Vec<(String, String)> {
    let named = [(FOLDER_REQUEST, working_dir), (USER_REQUEST, user)];
    let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    named.chain(env).collect()
}

async fn pass_output(output: &mut Output, to: &mut Sender) -> End {
    loop {
        let sent = match output.next().await {
            Ok(Said::Output(bytes)) => to.bytes(&bytes, Frame::Output).await,
            Ok(Said::ErrorOutput(bytes)) => to.bytes(&bytes, Frame::ErrorOutput).await,
            Ok(Said::Exit(status)) => return End::Exit(status),
            Err(error) => return End::Guest(error),
        };
        if let Err(error) = sent {
            return End::Client(error);
        }
    }
}

/// Ends only with the client: a command that closes its input still runs.
async fn pass_input(from: &mut OwnedReadHalf, input: &Input, gone: &Gone) -> End {
    let reading = async {
        loop {
            let passed = match read(from).await {
                Ok(Some(Frame::Input(bytes))) => input.send(bytes.into()).await,
                Ok(Some(Frame::InputEnd)) => input.end().await,
                Ok(Some(Frame::Resize(cols, rows))) => input.resize(cols, rows).await,
                Ok(Some(Frame::Signal(name))) => input.signal(&name).await,
                Ok(Some(_)) => return io::Error::new(io::ErrorKind::InvalidData, "not a frame of a client"),
                Ok(None) => return io::ErrorKind::UnexpectedEof.into(),
                Err(error) => return error,
            };
            if passed.is_err() {
                // The guest is gone; its output ends with what there is to say.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        error = reading => End::Client(error),
        () = gone.wait() => End::Client(io::ErrorKind::ConnectionReset.into()),
    }
}
