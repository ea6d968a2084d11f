//! Commands and copies of banger beside the least that could do the same: a bare vsock connection
//! to a program in the same guest, in the same run (`tests/bare-vsock`). Ratios are printed and
//! never judged: under emulation, and on a machine that does other things, they say little.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suite::guests::Guest;
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

/// Commands of each kind, by turns.
const COMMANDS: usize = 100;
/// So many before it is the next kind's turn.
const IN_A_ROW: usize = 10;
/// Bytes that cross, each way and each time.
const BYTES: u64 = 48 << 20;
/// Each copy is made so often; the best counts, which the rest of the machine has disturbed least.
const COPIES: usize = 3;
/// As in `tests/bare-vsock/src/main.rs`.
const EXEC: u32 = 7001;
const SINK: u32 = 7002;
const SOURCE: u32 = 7003;
/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn beside(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::create(scene, "alice", "beside")?;
    scene.banger("alice", &["vm", "set", "beside", "--memory", "512M"])?.ok()?;
    guest.order(scene, "start")?.ok()?;
    scene.root("install -m 0755 /srv/bench/bare-vsock /tmp/bare-vsock")?;
    scene.banger_long("alice", &["vm", "cp", "/tmp/bare-vsock", "beside:/root/bare-vsock"])?.ok()?;
    let words = ["vm", "session", "start", "--name", "bare", "beside", "--", "/root/bare-vsock", "/bin/true"];
    scene.banger("alice", &words)?.ok()?;
    let record = guest.record(scene)?;
    let socket = record.pointer("/runtime/vsock_path").and_then(Value::as_str).context("no vsock_path")?;
    let bare = Bare(PathBuf::from(socket));
    scene.wait_until("the bare program serves", Duration::from_secs(20), || {
        Ok(bare.command().err().map(|error| format!("{error:#}")))
    })?;
    scene.step("commands", |scene| commands(scene, &bare))?;
    scene.step("bytes", |scene| bytes(scene, &bare))?;
    guest.delete(scene)?;
    scene.root("rm -f /tmp/bare-vsock /tmp/beside-file")?;
    scene.passed()
}

/// The socket by which the VMM connects a host's program with a port of its guest.
struct Bare(PathBuf);

impl Bare {
    /// Firecracker's words for it (docs/vsock.md): `CONNECT PORT`, answered by `OK PORT`.
    fn connect(&self, port: u32) -> Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(&self.0).with_context(|| self.0.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "CONNECT {port}")?;
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        ensure!(line.starts_with("OK "), "port {port}: {line:?}");
        Ok(stream)
    }

    /// A connection, and a fork and an exec at its other end.
    fn command(&self) -> Result<Duration> {
        let began = Instant::now();
        let mut status = [0xff];
        self.connect(EXEC)?.read_exact(&mut status)?;
        ensure!(status == [0], "/bin/true ended with {status:?}");
        Ok(began.elapsed())
    }

    fn send(&self) -> Result<Duration> {
        let mut stream = self.connect(SINK)?;
        let chunk = vec![b'x'; 64 * 1024];
        let began = Instant::now();
        let to = stream.get_mut();
        to.write_all(&BYTES.to_le_bytes())?;
        let mut left = BYTES;
        while left > 0 {
            let piece = chunk.get(..usize::try_from(left)?.min(chunk.len())).unwrap_or_default();
            to.write_all(piece)?;
            left = left.saturating_sub(piece.len() as u64);
        }
        stream.read_exact(&mut [0])?;
        Ok(began.elapsed())
    }

    fn receive(&self) -> Result<Duration> {
        let mut stream = self.connect(SOURCE)?;
        let began = Instant::now();
        stream.get_mut().write_all(&BYTES.to_le_bytes())?;
        let read = std::io::copy(&mut stream.take(BYTES), &mut std::io::sink())?;
        ensure!(read == BYTES, "{read} of {BYTES} bytes");
        Ok(began.elapsed())
    }
}

fn commands(scene: &mut Scene, bare: &Bare) -> Result<()> {
    let (mut ours, mut least, mut nothing) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..COMMANDS / IN_A_ROW {
        for _ in 0..IN_A_ROW {
            least.push(bare.command()?);
        }
        ours.extend(at_the_shell(scene, "banger vm exec -T -n beside -- /bin/true")?);
        // What the program takes that asks nobody.
        nothing.extend(at_the_shell(scene, "banger --version")?);
    }
    for (name, percent) in [("p50", 50), ("p99", 99)] {
        let [ours, least, nothing] = [&mut ours, &mut least, &mut nothing].map(|times| percentile(times, percent));
        scene.measured(&format!("exec true, {name}, ms"), ms(ours));
        scene.measured(&format!("bare vsock, fork and exec, {name}, ms"), ms(least));
        scene.measured(&format!("banger --version, {name}, ms"), ms(nothing));
        scene.measured(&format!("exec to bare, {name}, ratio"), ratio(ours, least));
        let alone = ours.saturating_sub(nothing);
        scene.measured(&format!("exec without its program's start to bare, {name}, ratio"), ratio(alone, least));
    }
    Ok(())
}

/// How long a command takes that alice types, some times in a row. The emulator translates a
/// program anew for each address at which it finds it, and that would be most of what is measured:
/// here the addresses are always the same.
fn at_the_shell(scene: &Scene, command: &str) -> Result<Vec<Duration>> {
    let script = format!(
        "for ((i = 0; i < {IN_A_ROW}; i++)); do began=$EPOCHREALTIME; {command} < /dev/null > /dev/null || exit; \
         ended=$EPOCHREALTIME; echo $((${{ended/./}} - ${{began/./}})); done"
    );
    let line = format!("LC_ALL=C setarch --addr-no-randomize bash -c '{script}'");
    let said = scene.user("alice", &line)?.ok()?;
    let times = said.stdout.lines().map(|line| Ok(Duration::from_micros(line.trim().parse()?)));
    let times = times.collect::<Result<Vec<_>>>().with_context(|| format!("times in microseconds: {said}"))?;
    ensure!(times.len() == IN_A_ROW, "{said}");
    Ok(times)
}

fn bytes(scene: &mut Scene, bare: &Bare) -> Result<()> {
    scene.root(&format!("head -c {BYTES} /dev/zero > /tmp/beside-file; chmod 644 /tmp/beside-file"))?;
    // dd writes and reads what the bare program does at once: others take longer than the way does.
    let exec_in = "banger vm exec -T beside -- dd of=/dev/null bs=64k < /tmp/beside-file".to_owned();
    let exec_out = format!("banger vm exec -T -n beside -- dd if=/dev/zero bs=64k count={} > /dev/null", BYTES >> 16);
    let cp_in = "banger vm cp /tmp/beside-file beside:/dev/shm/file".to_owned();
    let cp_out = "d=$(mktemp -d) && banger vm cp beside:/dev/shm/file $d/ && rm -r $d".to_owned();
    let sent = best(|| bare.send())?;
    let received = best(|| bare.receive())?;
    scene.measured("bare vsock into the guest, MiB/s", rate(sent));
    scene.measured("bare vsock out of the guest, MiB/s", rate(received));
    for (name, line, least) in [
        ("exec into the guest", exec_in, sent),
        ("exec out of the guest", exec_out, received),
        ("vm cp into the guest", cp_in, sent),
        ("vm cp out of the guest", cp_out, received),
    ] {
        let took = best(|| Ok(scene.user("alice", &line)?.ok()?.took))?;
        scene.measured(&format!("{name}, MiB/s"), rate(took));
        scene.measured(&format!("{name} to bare, ratio of times"), ratio(took, least));
    }
    Ok(())
}

fn best(once: impl Fn() -> Result<Duration>) -> Result<Duration> {
    let times = (0..COPIES).map(|_| once()).collect::<Result<Vec<_>>>()?;
    times.into_iter().min().context("nothing was measured")
}

/// The time that so many of a hundred do not exceed.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let at = times.len().saturating_mul(percent).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

fn rate(time: Duration) -> String {
    let mebibytes = u32::try_from(BYTES >> 20).map_or(0.0, f64::from);
    format!("{:.1}", mebibytes / time.as_secs_f64())
}

fn ratio(ours: Duration, least: Duration) -> String {
    format!("{:.2}", ours.as_secs_f64() / least.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut times, 50), Duration::from_millis(50));
        assert_eq!(percentile(&mut times, 99), Duration::from_millis(99));
        assert_eq!(percentile(&mut [], 50), Duration::ZERO);
        assert_eq!(percentile(&mut [Duration::from_millis(7)], 99), Duration::from_millis(7));
        assert_eq!(ratio(Duration::from_millis(30), Duration::from_millis(20)), "1.50");
    }
}
