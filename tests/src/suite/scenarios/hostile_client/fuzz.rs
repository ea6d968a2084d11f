//! Frames mutated from valid ones after a valid hello, over the real socket.
//!
//! The same decoder as the helper's says beforehand which of them are frames. Those that are not
//! end their connection, so each is the last of its own, and only a part of them is sent; those
//! that are go on to the policy, as far as the limiter lets them. The seed is printed. A million
//! frames go through decoder and operations in the helper's own test `mutated`, where no limiter is
//! in between.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use banger_proto::helper::HelperRequest;
use banger_proto::transport::HELPER_LIMITS;
use banger_proto::wire::{ToServer, decode};
use serde_json::json;

use super::wire::{alive, requests};
use crate::suite::command::Run as CommandRun;
use crate::suite::list::Outcome;
use crate::suite::peer::Json;
use crate::suite::peer::connection::{Connection, body, is_end};
use crate::suite::peer::helper::{Helper, reply_word};
use crate::suite::peer::place::{Who, instead_of_the_daemon, role};
use crate::suite::scene::Scene;

/// How many frames, and how many of those that end their connection: under emulation a connection
/// costs a hundred calls.
#[derive(Debug, Clone, Copy)]
struct Run {
    frames: u64,
    connections: u64,
}

/// What settles the helper's memory before it is measured; what every test run sends; and what is
/// sent on request.
const WARM_UP: Run = Run { frames: 800, connections: 50 };
const SHORT: Run = Run { frames: 24_000, connections: 500 };
const LONG: Run = Run { frames: 200_000, connections: 20_000 };
/// The helper's memory may differ by this after the run: pages that were touched for the first
/// time.
const SLACK_KIB: u64 = 512;
/// Calls that wait for their answer at once; the helper's own limit is above it.
const WINDOW: usize = 24;
/// The long run ends within this, under KVM.
const PATIENCE: Duration = Duration::from_secs(600);
/// Ids of our own questions between the mutated ones.
const BARRIER: u64 = 1 << 60;

pub(super) fn mutated(scene: &mut Scene) -> Result<Outcome> {
    with_frames(scene, SHORT)
}

pub(super) fn many_mutated(scene: &mut Scene) -> Result<Outcome> {
    with_frames(scene, LONG)
}

fn with_frames(scene: &mut Scene, frames: Run) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?;
        let seed = u64::try_from(now.as_nanos() & u128::from(u64::MAX))? | 1;
        scene.measured("seed", seed);
        let ran = run(scene, seed, frames);
        // Whatever the mutations have acquired goes back, also after a failure.
        let mut helper = Helper::open()?;
        let held = helper.all()?;
        for holding in &held {
            helper.ok(&HelperRequest::Release { vm: holding.vm })?;
            helper.ok(&HelperRequest::DiscardDisk { vm: holding.vm })?;
        }
        scene.measured("VMs that mutated frames have made", held.len());
        ran
    })
}

fn run(scene: &mut Scene, seed: u64, frames: Run) -> Result<()> {
    let played = |scene: &Scene, Run { frames, connections }: Run| {
        let line = Who::daemon().line(&role(&format!("fuzz {frames} {connections} {seed}"))?);
        // No limit of a single command fits the long run.
        CommandRun::start(None, &["sh", "-c", &line])?.wait(scene.limit(PATIENCE))?.ok()?.json()
    };
    played(scene, WARM_UP)?;
    let before = resident(scene)?;
    let told = played(scene, frames)?;
    let after = resident(scene)?;
    for (name, value) in told.as_object().into_iter().flatten() {
        scene.measured(name, value);
    }
    scene.measured("helper resident KiB before and after", format!("{before} {after}"));
    let count = |name: &str| told.get(name).and_then(Json::as_u64).unwrap_or(0);
    let (taken, decided) = (count("frames that the decoder took"), count("calls that the policy decided"));
    ensure!(taken >= frames.frames / 5, "too few frames: {told}");
    ensure!(
        count("connections ended by a malformed frame") >= frames.connections * 9 / 10,
        "too few malformed frames: {told}"
    );
    ensure!(decided >= taken / 10, "too few decisions: {told}");
    ensure!(after <= before + SLACK_KIB, "the helper has grown from {before} to {after} KiB");
    Ok(())
}

fn resident(scene: &Scene) -> Result<u64> {
    let pid = scene.main_pid("banger-priv.service")?;
    let text = scene.root(&format!("sed -n 's/^RssAnon:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status"))?;
    text.trim().parse().with_context(|| format!("resident memory {text:?}"))
}

/// The role of this file.
pub(in crate::suite) fn play(words: &[&str]) -> Result<Option<Json>> {
    match words {
        ["fuzz", frames, connections, seed] => {
            let run = Run { frames: frames.parse()?, connections: connections.parse()? };
            fuzz(run, seed.parse()?).map(Some)
        }
        _ => Ok(None),
    }
}

/// xorshift64: reproducible from its seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        const EDGES: [u8; 8] = [0, 1, 127, 128, 250, 251, 253, 255];
        match self.below(2) {
            0 => EDGES.get(self.below(EDGES.len())).copied().unwrap_or(0),
            _ => u8::try_from(self.below(256)).unwrap_or(0),
        }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(2) {
            let (at, byte) = (self.below(bytes.len()), self.byte());
            match self.below(16) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, byte),
                2 => bytes.push(byte),
                3 => drop(bytes.remove(at)),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|old| *old = byte),
            }
            if bytes.is_empty() {
                bytes.push(byte);
            }
        }
    }
}

/// What became of the frames.
#[derive(Debug, Default)]
struct Count {
    taken: u64,
    refused: u64,
    decided: u64,
    limited: u64,
    /// The others were past their deadline, cancelled, or their connection ended before.
    answered: u64,
    ended: u64,
}

impl Count {
    /// Reads answers until the one to our own question, or to the end when there is none.
    fn hear(&mut self, connection: &mut Connection, barrier: Option<u64>) -> Result<()> {
        loop {
            let reply = match connection.reply() {
                Err(error) if is_end(&error) => None,
                other => other?,
            };
            let Some(reply) = reply else {
                ensure!(barrier.is_none(), "the helper has closed after well-formed frames");
                return Ok(());
            };
            if Some(reply.id) == barrier {
                return Ok(());
            }
            self.answered += 1;
            match reply_word(&reply)?.as_str() {
                "Rate" => self.limited += 1,
                "the call was not taken up" => {}
                _ => self.decided += 1,
            }
        }
    }
}

fn fuzz(run: Run, seed: u64) -> Result<Json> {
    let (mut random, mut counted, started) = (Random(seed), Count::default(), Instant::now());
    // The id is one of three bytes, the first of which says so.
    let corpus = requests()?.into_iter().map(|request| body(300, 20_000, request)).collect::<Result<Vec<_>, _>>()?;
    let mut connection = Connection::open()?;
    let mut waiting = 0;
    for number in 0..run.frames {
        let mut bytes = corpus.get(random.below(corpus.len())).context("no requests")?.clone();
        let id = u16::try_from(number % 60_000)? + 300;
        bytes.iter_mut().skip(2).zip(id.to_le_bytes()).for_each(|(to, from)| *to = from);
        random.mutate(&mut bytes);
        if decode::<ToServer<HelperRequest>>(&bytes, HELPER_LIMITS.max_frame).is_ok() {
            connection.frame(&bytes).with_context(|| format!("frame {number} of seed {seed}"))?;
            counted.taken += 1;
            waiting += 1;
            if waiting == WINDOW {
                connection.call(BARRIER + number, HelperRequest::List { after: None })?;
                counted.hear(&mut connection, Some(BARRIER + number)).with_context(|| format!("at frame {number}"))?;
                waiting = 0;
            }
        } else if counted.ended * run.frames < number * run.connections {
            counted.refused += 1;
            connection.frame(&bytes).with_context(|| format!("malformed frame {number} of seed {seed}"))?;
            counted.hear(&mut connection, None).with_context(|| format!("at malformed frame {number}"))?;
            connection = Connection::open().with_context(|| format!("after frame {number} of seed {seed}"))?;
            counted.ended += 1;
            waiting = 0;
        } else {
            counted.refused += 1;
        }
    }
    drop(connection);
    alive()?;
    Ok(json!({
        "frames that the decoder took": counted.taken,
        "frames that the decoder refuses": counted.refused,
        "connections ended by a malformed frame": counted.ended,
        "answers": counted.answered,
        "calls that the policy decided": counted.decided,
        "calls over the limit": counted.limited,
        "seconds of the run": started.elapsed().as_secs(),
    }))
}
