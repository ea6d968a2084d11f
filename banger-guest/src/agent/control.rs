//! The control channel to the daemon: ready, heartbeats, the announcement of the end, commands.
//!
//! One task of the agent for its whole life. A connection that is lost is made again for ever: the
//! daemon may be restarted under a running guest. See [`banger_proto::guest`] for the lines.

use banger_proto::guest::{GuestCommand, GuestEvent, HEARTBEAT_MS, MAX_CONTROL_LINE, ShutdownKind};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::shutdown;
use crate::sys::vsock;

/// Wait before a first attempt is repeated, and before all further ones.
const RETRY: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(500)];
/// How long the daemon may take to close the connection after the announcement of the end. The lines
/// are out by then; waiting shows that they arrived.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a connection is over.
enum Over {
    /// The end of the guest is announced.
    Announced,
    /// The connection is lost.
    Lost,
}

/// Keeps the channel up until the end of the guest is announced on it.
pub(super) async fn run(port: u32, own_init: bool, mut end: watch::Receiver<Option<ShutdownKind>>) {
    let mut shutting_down = false;
    let mut failures = 0;
    loop {
        if let Ok(stream) = vsock::connect_host(port).await {
            failures = 0;
            let on_command = |GuestCommand::Shutdown| {
                if !shutting_down {
                    shutting_down = true;
                    tokio::spawn(shutdown::power_off(own_init));
                }
            };
            if let Ok(Over::Announced) = talk(stream, &mut end, on_command).await {
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
    end: &mut watch::Receiver<Option<ShutdownKind>>,
    mut on_command: impl FnMut(GuestCommand),
) -> io::Result<Over> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    send(&mut writer, &GuestEvent::Ready { boot_id: boot_id()? }).await?;
    let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut lines = Lines::default();
    let mut chunk = [0; MAX_CONTROL_LINE];
    loop {
        tokio::select! {
            kind = announcement(end) => {
                send(&mut writer, &GuestEvent::Shutdown { kind }).await?;
                writer.shutdown().await?;
                let drained = async { while reader.read(&mut chunk).await.is_ok_and(|count| count > 0) {} };
                let _ = tokio::time::timeout(FAREWELL, drained).await;
                return Ok(Over::Announced);
            }
            _ = heartbeat.tick() => send(&mut writer, &GuestEvent::Heartbeat).await?,
            count = reader.read(&mut chunk) => {
                let count = count?;
                if count == 0 {
                    return Ok(Over::Lost);
                }
                lines.push(chunk.get(..count).unwrap_or_default(), &mut on_command);
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

async fn send(writer: &mut (impl AsyncWrite + Unpin), event: &GuestEvent) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Cuts the host's bytes into lines. A line that is too long or not understood is left out: the daemon
/// may be newer than this agent.
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
            lines.push(chunk, |GuestCommand::Shutdown| count += 1);
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
    async fn a_connection_begins_with_ready_and_ends_with_the_announcement() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (announce, mut end) = watch::channel(None);
        let talking = tokio::spawn(async move { talk(ours, &mut end, |_| {}).await });
        let mut host = BufReader::new(theirs).lines();
        let first = host.next_line().await.unwrap().unwrap();
        assert!(first.starts_with(r#"{"event":"ready","boot_id":""#), "{first}");
        assert_eq!(host.next_line().await.unwrap().unwrap(), r#"{"event":"heartbeat"}"#);
        announce.send(Some(ShutdownKind::Halt)).unwrap();
        assert_eq!(host.next_line().await.unwrap().unwrap(), r#"{"event":"shutdown","kind":"halt"}"#);
        drop(host);
        assert!(matches!(talking.await.unwrap().unwrap(), Over::Announced));
    }
}
