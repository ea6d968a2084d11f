//! The helper is killed at every step of every operation, and at every step of the recovery after
//! that, on the real kernel.
//!
//! A build of the helper with fail points, started by the suite in the packaged one's place, counts
//! the steps of a life that a VM has for it. Then, for each step, a new life is killed there.
//! Whatever was half done, the next helper makes ledger and kernel agree, a second recovery changes
//! nothing, `release` and `discard_disk` leave nothing, and what is not banger's stays as it was.

mod life;
mod running;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use banger_policy::Digest;

use crate::inventory::{Inventory, leaks};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::peer::helper::{Told, word};
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::report::print_line;
use crate::suite::sample::Random;
use crate::suite::scene::Scene;
use life::Event::{self, CreateDisk, Death, DisableNat, GrowDisk, Release};
use life::{BY_RELEASE, Life, STEP_BY_STEP};
use running::Running;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "helper-kills",
    about: "the helper killed at every step of every operation and of its recovery",
    setup: Setup::Still,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("torn-down-step-by-step", |scene| matrix(scene, STEP_BY_STEP, CreateDisk)),
        // Until its end it is the same life.
        Scenario::new("torn-down-by-release", |scene| matrix(scene, BY_RELEASE, Release)),
    ]
}

const WORK: &str = "/run/bench-kills";
const READY: Duration = Duration::from_secs(10);

/// A recovery has three steps at most times.
const SAMPLED_STEPS: u64 = 3;

/// Kill points of a sampled run, in each of the two ways to end a life.
const SAMPLE: usize = 10;

/// A point of the matrix, as the helper itself has named it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Point {
    during: String,
    name: String,
}

/// Kills `life` at its steps from `first` on.
fn matrix(scene: &mut Scene, life: &'static [Event], first: Event) -> Result<Outcome> {
    let image = image(scene)?;
    instead_of_the_daemon(scene, true, |scene| {
        // What the timer starts would come and go in the inventories.
        scene.root("systemctl stop banger-host-firewall.timer banger-host-firewall.service")?;
        scene.root("systemctl stop banger-priv.socket banger-priv.service")?;
        fs::create_dir_all(WORK).with_context(|| format!("create {WORK}"))?;
        let foreign = Foreign::plant(scene)?;
        let result = all_points(scene, life, first, image);
        foreign.remove(scene)?;
        fs::remove_dir_all(WORK).with_context(|| format!("remove {WORK}"))?;
        scene.root("systemctl start banger-priv.socket banger-priv.service banger-host-firewall.timer")?;
        result
    })
}

fn all_points(scene: &mut Scene, life: &'static [Event], first: Event, image: Digest) -> Result<()> {
    let points = scene.step("a whole life, each step named", |scene| trace(scene, life, image))?;
    for operation in life.iter().filter(|event| !matches!(event, Death | Release | DisableNat)) {
        ensure!(
            points.iter().any(|point| point.during == format!("{operation:?}")),
            "no step of {operation:?} can be killed"
        );
    }
    let (mut kills, mut recoveries) = (0, 0);
    // The helper's own start belongs to the whole life.
    let skipped = |point: &Point| first != CreateDisk && point.during != format!("{first:?}");
    let before = Inventory::take()?;
    let mut rows: Vec<(&Point, u32)> = points.iter().zip(1..).skip_while(|(point, _)| skipped(point)).collect();
    if let Some(seed) = scene.sample() {
        let mut random = Random(seed);
        let all = rows.len();
        while rows.len() > SAMPLE {
            rows.remove(random.below(rows.len()));
        }
        print_line(&format!("  a sample with seed {seed}: {} of {all} kill points", rows.len()));
    }
    for (point, number) in rows {
        let title = format!("killed at {number} of {}: {} {}", points.len(), point.during, point.name);
        recoveries += scene.step(&title, |scene| one_point(scene, life, image, number, point, &before))?;
        kills += 1;
    }
    if let Some(seed) = scene.sample() {
        print_line(&format!("  one step of each recovery is killed, drawn with seed {seed}"));
    }
    ensure!(recoveries > 0, "no recovery was killed: the steps of recovering are not reached");
    ensure!(kills > 0, "no step of {first:?} or after it can be killed");
    print_line(&format!("  {kills} kill points, and {recoveries} in the recovery from them"));
    scene.measured("helper kill points", kills);
    scene.measured("helper kill points in recovery", recoveries);
    Ok(())
}

/// Runs a life without a kill; every step that was reported, in order.
fn trace(scene: &Scene, life: &[Event], image: Digest) -> Result<Vec<Point>> {
    let mut running = Running::start(scene, 0)?.context("the helper was killed without being asked to")?;
    let mut run = Life::new(image)?;
    let mut points = running.reached("start")?;
    for event in life {
        match run.happen(*event)? {
            Told::Reply(Ok(response)) if word(&response)? == "Ok" => {}
            other => bail!("{event:?} was answered with {other:?}"),
        }
        let known = points.len();
        points.extend(running.reached(&format!("{event:?}"))?.into_iter().skip(known));
    }
    running.kill()?;
    Ok(points)
}

/// Kills a life at one step, and everything after it. Answers how many steps of the recovery were
/// killed as well.
fn one_point(
    scene: &mut Scene,
    life: &[Event],
    image: Digest,
    number: u32,
    point: &Point,
    before: &Inventory,
) -> Result<usize> {
    let mut run = Life::new(image)?;
    if let Some(mut running) = Running::start(scene, number)? {
        let mut killed = None;
        for event in life {
            if let Told::Closed(_) = run.happen(*event)? {
                killed = Some(*event);
                break;
            }
        }
        let during = killed.context("the life has ended without a kill")?;
        running.must_have_died_at(number, point)?;
        ensure!(format!("{during:?}") == point.during, "it was killed during {during:?}, not {}", point.during);
    }
    // What the first whole recovery has made of it, and the second: the same.
    let (kills, first) = killed_recoveries(scene, number)?;
    let once = Inventory::take_of_the_helpers()?;
    first.kill()?;
    let second = Running::start(scene, 0)?.context("no second recovery")?;
    let twice = leaks(&once, &Inventory::take_of_the_helpers()?, &[]);
    ensure!(twice.leaks.is_empty(), "the second recovery was no no-op: {twice}");
    if point.during == format!("{GrowDisk:?}") {
        // As large as before, or as large as it was to become: in any case a disk.
        run.attach_what_there_is()?;
    }
    run.happen(Death)?;
    run.end()?;
    second.kill()?;
    drop(run);
    let started = Instant::now();
    loop {
        let difference = leaks(before, &Inventory::take()?, &[]);
        if difference.leaks.is_empty() {
            return Ok(kills);
        }
        ensure!(started.elapsed() < READY, "{difference}");
    }
}

/// Starts the helper and kills it at its first step, then at its second, and so on, until it comes
/// up; in a sample, at one of its first steps. Answers how often, and the one that is up.
fn killed_recoveries(scene: &Scene, point: u32) -> Result<(usize, Running)> {
    if let Some(seed) = scene.sample() {
        let step = 1 + seed.wrapping_add(point.into()) % SAMPLED_STEPS;
        return match Running::start(scene, u32::try_from(step)?)? {
            // A shorter recovery.
            Some(running) => Ok((0, running)),
            None => Ok((1, Running::start(scene, 0)?.context("the recovery after a killed one does not end")?)),
        };
    }
    for number in 1..50 {
        if let Some(running) = Running::start(scene, number)? {
            return Ok((usize::try_from(number - 1).context("a small number")?, running));
        }
    }
    bail!("the recovery has no end")
}

fn wait_for(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !is_so() {
        ensure!(started.elapsed() < READY, "waited too long");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Objects of the sorts that the helper makes, without its mark: a tap whose name looks like one of
/// its own, a loop device, a dm device, a table.
struct Foreign;

impl Foreign {
    fn plant(scene: &Scene) -> Result<Self> {
        scene.root(&format!(
            "set -e; truncate -s 1M {WORK}/disk; ip tuntap add mode tap name bgr-foreign; ip link set bgr-foreign alias banger:nobody; \
             loop=$(losetup --find --show {WORK}/disk); echo \"0 2048 linear $loop 0\" | dmsetup create banger-foreign; \
             nft add table inet banger-foreign"
        ))?;
        Ok(Self)
    }

    fn remove(self, scene: &Scene) -> Result<()> {
        scene.root(&format!(
            "set -e; nft delete table inet banger-foreign; dmsetup remove --retry banger-foreign; losetup --detach $(losetup --noheadings --output NAME --associated {WORK}/disk); \
             ip link delete bgr-foreign"
        ))?;
        Ok(())
    }
}

/// The image that the setup has imported.
fn image(scene: &Scene) -> Result<Digest> {
    let images = scene.banger("alice", &["image", "list", "--json"])?.ok()?.json()?;
    let digest = images.as_array().and_then(|images| images.first()?.get("id")?.as_str());
    let digest = digest.with_context(|| format!("no image: {images}"))?;
    digest.parse().map_err(|error| anyhow::anyhow!("{digest}: {error}"))
}
