//! A helper that kills itself at one of its steps.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Point, READY, WORK};
use crate::suite::scene::Scene;

const PROGRAM: &str = "banger-priv-failpoints";
const SOCKET: &str = "/run/banger/priv.sock";
/// SIGKILL and SIGSYS of signal(7): the confined helper may not send itself the first, and dies of
/// the second for having tried.
const DEADLY: [i32; 2] = [9, 31];

/// A helper with fail points, up.
pub(super) struct Running {
    child: Child,
}

impl Running {
    /// `None`: it was killed at that step before it served.
    pub(super) fn start(scene: &Scene, kill_at: u32) -> Result<Option<Self>> {
        let program = scene.material(PROGRAM).with_context(|| format!("the harness has not brought {PROGRAM}"))?;
        let notify = format!("{WORK}/notify");
        for path in [notify.as_str(), SOCKET] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(path.to_owned()),
                _ => {}
            }
        }
        let listener = UnixDatagram::bind(&notify).with_context(|| format!("bind {notify}"))?;
        listener.set_read_timeout(Some(Duration::from_millis(50)))?;
        let log = fs::File::create(log()).context("create the helper's log")?;
        let mut child = Command::new(program)
            .args(["--socket", SOCKET])
            .env("BANGER_PRIV_FAIL", kill_at.to_string())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start the helper")?;
        let started = Instant::now();
        let mut said = [0; 64];
        loop {
            if listener.recv(&mut said).is_ok_and(|length| said.get(..length) == Some(b"READY=1")) {
                return Ok(Some(Self { child }));
            }
            if let Some(status) = child.try_wait().context("watch the helper")? {
                let killed = status.signal().is_some_and(|signal| DEADLY.contains(&signal));
                ensure!(killed && last_point()? == Some(kill_at), "the helper ended with {status}: {}", said_last()?);
                return Ok(None);
            }
            if started.elapsed() > scene.limit(READY) {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the helper does not get ready: {}", said_last()?);
            }
        }
    }

    /// All that it has reported, with where new ones belong.
    pub(super) fn reached(&mut self, during: &str) -> Result<Vec<Point>> {
        ensure!(self.child.try_wait()?.is_none(), "the helper has ended: {}", said_last()?);
        let text = fs::read_to_string(log()).context("read the helper's log")?;
        let names = text.lines().filter_map(|line| line.split("failpoint=").nth(1)?.split("name=").nth(1));
        Ok(names.map(|name| Point { during: during.to_owned(), name: name.to_owned() }).collect())
    }

    pub(super) fn must_have_died_at(&mut self, number: u32, point: &Point) -> Result<()> {
        let status = self.child.wait().context("wait for the helper")?;
        let killed = status.signal().is_some_and(|signal| DEADLY.contains(&signal));
        ensure!(killed && last_point()? == Some(number), "the helper ended with {status}: {}", said_last()?);
        let text = fs::read_to_string(log()).context("read the helper's log")?;
        ensure!(
            text.contains(&format!("failpoint={number} name={}\n", point.name)),
            "another step was reached: {text}"
        );
        Ok(())
    }

    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the helper")?;
        self.child.wait().map(drop).context("wait for the helper")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log() -> String {
    format!("{WORK}/log")
}

/// The number of the last step that was reported.
fn last_point() -> Result<Option<u32>> {
    let text = fs::read_to_string(log()).context("read the helper's log")?;
    let mut numbers = text.lines().filter_map(|line| line.split("failpoint=").nth(1)?.split(' ').next()?.parse().ok());
    Ok(numbers.next_back())
}

fn said_last() -> Result<String> {
    let text = fs::read_to_string(log()).context("read the helper's log")?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("; "))
}
