//! The control channel to the daemon: ready, heartbeats, the announcement of the end, commands.
//!
//! One task of the agent for its whole life. A connection that is lost is made again for ever: the
//! daemon may be restarted under a running guest. See [`banger_proto::guest`] for the lines.

use banger_proto::guest::{BootToken, GuestCommand, GuestEvent, HEARTBEAT_MS, Hello, MAX_CONTROL_LINE, ShutdownKind};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::clock;
use super::shutdown::Asked;
use crate::sys::vsock;

/// Wait before a first attempt is repeated, and before all further ones.
const RETRY: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(500)];
/// How long the daemon may take to answer the announcement of the end. The line is out by then; the
/// answer shows that it arrived.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a connection is over.
enum Over {
    /// The end of the guest is announced.
    Announced,
    /// The connection is lost.
    Lost,
}

/// Keeps the channel up until the end of the guest is announced on it. `asked` is told when the
/// daemon asks for that end; `open` counts the commands that run.
pub(super) async fn run(
    port: u32,
    token: BootToken,
    asked: watch::Sender<Option<Asked>>,
    mut end: watch::Receiver<Option<ShutdownKind>>,
    open: impl Fn() -> u32,
) {
    let mut failures = 0;
    loop {
        if let Ok(stream) = vsock::connect_host(port).await {
            failures = 0;
            let on_shutdown = |now| asked.send_modify(|asked| *asked = Some(now));
            let talked = talk(stream, &token, &mut end, &open, on_shutdown).await;
            if let Ok(Over::Announced) = talked {
                return;
            }
        }
        let wait = RETRY.get(failures).or(RETRY.last()).copied().unwrap_or_default();
        failures += 1;
        tokio::time::sleep(wait).await;
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    token: &BootToken,
    end: &mut watch::Receiver<Option<ShutdownKind>>,
    open: impl Fn() -> u32,
    on_shutdown: impl Fn(Asked),
) -> io::Result<Over> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    send(&mut writer, &Hello { token: token.clone() }).await?;
    send(&mut writer, &GuestEvent::Ready { boot_id: boot_id()? }).await?;
    let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut lines = Lines::default();
    let mut chunk = [0; MAX_CONTROL_LINE];
    let mut said_open = 0;
    // Of the announcement of the end.
    let mut answer_by = None;
    loop {
        let no_answer = async {
            match answer_by {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            kind = announcement(end), if answer_by.is_none() => {
                send(&mut writer, &GuestEvent::Shutdown { kind }).await?;
                answer_by = Some(tokio::time::Instant::now() + FAREWELL);
            }
            () = no_answer => return Ok(Over::Announced),
            _ = heartbeat.tick(), if answer_by.is_none() => {
                let commands = open();
                if std::mem::replace(&mut said_open, commands) != commands {
                    send(&mut writer, &GuestEvent::InUse { commands }).await?;
                }
                send(&mut writer, &GuestEvent::Heartbeat).await?;
            }
            count = reader.read(&mut chunk) => {
                let count = count?;
                if count == 0 {
                    return Ok(if answer_by.is_some() { Over::Announced } else { Over::Lost });
                }
                let (mut noted, mut speak) = (false, false);
                lines.push(chunk.get(..count).unwrap_or_default(), |command| match command {
                    GuestCommand::Shutdown { within } => on_shutdown(Asked { within }),
                    GuestCommand::Time { unix_ms } => clock::follow(unix_ms),
                    GuestCommand::Noted => noted = true,
                    GuestCommand::Speak => speak = true,
                });
                if speak && answer_by.is_none() {
                    send(&mut writer, &GuestEvent::Heartbeat).await?;
                }
                if noted && answer_by.is_some() {
                    return Ok(Over::Announced);
                }
            }
        }
    }
}

async fn announcement(end: &mut watch::Receiver<Option<ShutdownKind>>) -> ShutdownKind {
    match end.wait_for(Option::is_some).await.map(|kind| *kind) {
        Ok(Some(kind)) => kind,
        // The agent dropped the sender: it is ending without an announcement.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), line: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Cuts the host's bytes into lines. A line that is too long or not understood is left out: the
/// daemon may be newer than this agent.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    too_long: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut on_command: impl FnMut(GuestCommand)) {
        for byte in bytes {
            if *byte != b'\n' {
                self.too_long |= self.partial.len() >= MAX_CONTROL_LINE;
                if !self.too_long {
                    self.partial.push(*byte);
                }
                continue;
            }
            if !self.too_long
                && let Ok(command) = serde_json::from_slice(&self.partial)
            {
                on_command(command);
            }
            self.partial.clear();
            self.too_long = false;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    fn commands(chunks: &[&[u8]]) -> usize {
        let mut lines = Lines::default();
        let mut count = 0;
        for chunk in chunks {
            lines.push(chunk, |command| count += usize::from(matches!(command, GuestCommand::Shutdown { .. })));
        }
        count
    }

    #[test]
    fn lines_are_cut_and_unknown_ones_left_out() {
        let line = b"{\"command\":\"shutdown\"}\n";
        assert_eq!(commands(&[line]), 1);
        assert_eq!(commands(&[&line[..5], &line[5..]]), 1);
        assert_eq!(commands(&[b"{\"command\":\"sing\"}\n", b"\n", b"garbage\n", line]), 1);
        assert_eq!(commands(&[&line[..line.len() - 1]]), 0);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..1000 {
            lines.push(&[b'x'; 1000], |_| {});
        }
        assert!(lines.partial.len() <= MAX_CONTROL_LINE);
        lines.push(b"\n", |_| {});
        let mut count = 0;
        lines.push(b"{\"command\":\"shutdown\"}\n", |_| count += 1);
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn a_connection_begins_with_the_token_and_ends_with_the_answered_announcement() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (announce, mut end) = watch::channel(None);
        let (asked, was_asked) = watch::channel(None);
        let token = BootToken::new([1; 32]);
        let ours = tokio::spawn(async move {
            talk(ours, &token, &mut end, || 2, |now| asked.send_modify(|asked| *asked = Some(now))).await
        });
        let (from, mut to) = tokio::io::split(theirs);
        let mut host = BufReader::new(from).lines();
        let mut next = async || host.next_line().await.unwrap().unwrap();
        assert_eq!(next().await, format!(r#"{{"token":"{}"}}"#, "01".repeat(32)));
        let first = next().await;
        assert!(first.starts_with(r#"{"event":"ready","boot_id":""#), "{first}");
        assert_eq!(next().await, r#"{"event":"in_use","commands":2}"#);
        assert_eq!(next().await, r#"{"event":"heartbeat"}"#);
        // Nobody has announced anything.
        to.write_all(b"{\"command\":\"noted\"}\n{\"command\":\"shutdown\"}\n").await.unwrap();
        was_asked.clone().wait_for(Option::is_some).await.unwrap();
        // Long before its next heartbeat.
        to.write_all(b"{\"command\":\"speak\"}\n").await.unwrap();
        let spoken = tokio::time::timeout(Duration::from_millis(HEARTBEAT_MS / 2), next()).await;
        assert_eq!(spoken.unwrap(), r#"{"event":"heartbeat"}"#);
        announce.send(Some(ShutdownKind::Halt)).unwrap();
        assert_eq!(next().await, r#"{"event":"shutdown","kind":"halt"}"#);
        assert!(!ours.is_finished(), "it has not been heard yet");
        to.write_all(b"{\"command\":\"noted\"}\n").await.unwrap();
        assert!(matches!(ours.await.unwrap().unwrap(), Over::Announced));
    }

    /// Firecracker's vsock knows no half-close: the host's end of a connection stays open until all
    /// of it closes.
    #[tokio::test(start_paused = true)]
    async fn an_announcement_that_is_answered_does_not_wait() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (announce, mut end) = watch::channel(None);
        announce.send(Some(ShutdownKind::Poweroff)).unwrap();
        let begun = tokio::time::Instant::now();
        let daemon = async {
            let (from, mut to) = tokio::io::split(theirs);
            let mut host = BufReader::new(from).lines();
            while !host.next_line().await.unwrap().unwrap().contains("shutdown") {}
            to.write_all(b"{\"command\":\"noted\"}\n").await.unwrap();
            // Open for as long as the agent is.
            while host.next_line().await.is_ok_and(|line| line.is_some()) {}
        };
        let token = BootToken::new([1; 32]);
        let talked = async {
            let over = talk(ours, &token, &mut end, || 0, |_| {}).await;
            (over, begun.elapsed())
        };
        let ((over, took), ()) = tokio::join!(talked, daemon);
        assert!(matches!(over, Ok(Over::Announced)) && took < FAREWELL, "{took:?}");
    }
}
