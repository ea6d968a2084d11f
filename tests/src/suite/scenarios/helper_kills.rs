//! The helper is killed at every step of every operation, and at every step of the recovery after
//! that, on the real kernel.
//!
//! A build of the helper with fail points, started by the suite in the packaged one's place, counts
//! the steps of a life that a VM has for it. Then, for each step, a new life is killed there.
//! Whatever was half done, the next helper makes ledger and kernel agree, a second recovery changes
//! nothing, `release` and `discard_disk` leave nothing, and what is not banger's stays as it was.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use banger_policy::reach::{Mode, Reach};
use banger_policy::{Digest, VmId};
use banger_proto::helper::{DiskIdentity, HelperRequest, HelperResponse, TapIdentity};

use crate::inventory::{Inventory, leaks};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::peer::helper::{Helper, Told, word};
use crate::suite::peer::place::{Who, instead_of_the_daemon};
use crate::suite::peer::vm;
use crate::suite::report::print_line;
use crate::suite::sample::Random;
use crate::suite::scene::Scene;

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

const PROGRAM: &str = "banger-priv-failpoints";
const SOCKET: &str = "/run/banger/priv.sock";
const WORK: &str = "/run/bench-kills";
const OWNER: u32 = 1001;
/// Outside of what the daemon gives out in these suites.
const ADDRESS: u16 = 200;
const ROOT_BYTES: u64 = banger_policy::limits::MIN_ROOT_BYTES;
/// SIGKILL and SIGSYS of signal(7): the confined helper may not send itself the first, and dies of
/// the second for having tried.
const DEADLY: [i32; 2] = [9, 31];
const READY: Duration = Duration::from_secs(10);

/// One thing that happens in a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    CreateDisk,
    GrowDisk,
    AttachDisk,
    AcquireTap,
    EnableNat,
    BindProcess,
    /// The VM's process ends.
    Death,
    DisableNat,
    DetachDisk,
    ReleaseTap,
    Release,
    DiscardDisk,
}

use Event::{
    AcquireTap, AttachDisk, BindProcess, CreateDisk, Death, DetachDisk, DisableNat, DiscardDisk, EnableNat, GrowDisk,
    Release, ReleaseTap,
};

const STEP_BY_STEP: &[Event] = &[
    CreateDisk,
    GrowDisk,
    AttachDisk,
    AcquireTap,
    EnableNat,
    BindProcess,
    Death,
    DisableNat,
    DetachDisk,
    ReleaseTap,
    Release,
    DiscardDisk,
];
const BY_RELEASE: &[Event] = &[CreateDisk, AttachDisk, AcquireTap, EnableNat, BindProcess, Death, Release, DiscardDisk];

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

/// A helper with fail points, up.
struct Running {
    child: Child,
}

impl Running {
    /// `None`: it was killed at that step before it served.
    fn start(scene: &Scene, kill_at: u32) -> Result<Option<Self>> {
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
    fn reached(&mut self, during: &str) -> Result<Vec<Point>> {
        ensure!(self.child.try_wait()?.is_none(), "the helper has ended: {}", said_last()?);
        let text = fs::read_to_string(log()).context("read the helper's log")?;
        let names = text.lines().filter_map(|line| line.split("failpoint=").nth(1)?.split("name=").nth(1));
        Ok(names.map(|name| Point { during: during.to_owned(), name: name.to_owned() }).collect())
    }

    fn must_have_died_at(&mut self, number: u32, point: &Point) -> Result<()> {
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

    fn kill(mut self) -> Result<()> {
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

/// One VM's life for the helper, and what it was told in it.
struct Life {
    client: Helper,
    vm: VmId,
    image: Digest,
    process: Option<Child>,
    tap: Option<TapIdentity>,
    disk: Option<DiskIdentity>,
}

impl Life {
    fn new(image: Digest) -> Result<Self> {
        Ok(Self { client: Helper::open()?, vm: vm(0xc1)?, image, process: None, tap: None, disk: None })
    }

    fn happen(&mut self, event: Event) -> Result<Told> {
        let vm = self.vm;
        let request = match event {
            CreateDisk => HelperRequest::CreateDisk { vm, owner: OWNER, image: self.image, root_bytes: ROOT_BYTES },
            GrowDisk => HelperRequest::GrowDisk { vm, owner: OWNER, root_bytes: 2 * ROOT_BYTES },
            AttachDisk => HelperRequest::AttachDisk { vm, owner: OWNER },
            AcquireTap => HelperRequest::AcquireTap { vm, owner: OWNER, address_index: ADDRESS },
            EnableNat => HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) },
            BindProcess => {
                let process = Who::of_vm(OWNER, vm).start("sleep 600")?;
                let pid = process.id();
                self.process = Some(process);
                // It is in the VM's cgroup when its name has changed to what it runs.
                wait_for(|| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n"))?;
                HelperRequest::BindProcess { vm, pid }
            }
            Death => {
                if let Some(mut process) = self.process.take() {
                    process.kill().context("end the VM's process")?;
                    process.wait().context("end the VM's process")?;
                }
                return Ok(Told::Reply(Ok(HelperResponse::Release(Ok(())))));
            }
            DisableNat => HelperRequest::SetNetwork { vm, reach: Reach::default() },
            DetachDisk => {
                let disk = self.disk.clone().context("no disk was attached")?;
                HelperRequest::DetachDisk { vm, disk }
            }
            ReleaseTap => HelperRequest::ReleaseTap { vm, tap: self.tap.clone().context("no tap was acquired")? },
            Release => HelperRequest::Release { vm },
            DiscardDisk => HelperRequest::DiscardDisk { vm },
        };
        let told = self.client.told(&request)?;
        match &told {
            Told::Reply(Ok(HelperResponse::AcquireTap(Ok(tap)))) => self.tap = Some(tap.clone()),
            Told::Reply(Ok(HelperResponse::AttachDisk(Ok(disk)))) => self.disk = Some(disk.clone()),
            _ => {}
        }
        Ok(told)
    }

    /// A kill in the middle of a growth leaves a disk that can be attached.
    fn attach_what_there_is(&mut self) -> Result<()> {
        let told = match self.happen(AttachDisk)? {
            Told::Closed(_) => self.happen(AttachDisk)?,
            told => told,
        };
        let attached = matches!(&told, Told::Reply(Ok(HelperResponse::AttachDisk(Ok(_)))));
        ensure!(attached, "after a growth that was killed, attach was answered with {told:?}");
        Ok(())
    }

    /// What the daemon does with a VM of which nothing is known: release, discard; and then nothing
    /// is held.
    fn end(&mut self) -> Result<()> {
        for request in [HelperRequest::Release { vm: self.vm }, HelperRequest::DiscardDisk { vm: self.vm }] {
            // The connection of the helper that was killed is found closed first.
            let told = match self.client.told(&request)? {
                Told::Closed(_) => self.client.told(&request)?,
                told => told,
            };
            let Told::Reply(Ok(response)) = told else { bail!("{request:?} was answered with {told:?}") };
            ensure!(word(&response)? == "Ok", "{request:?} was answered with {response:?}");
        }
        let held = self.client.all()?;
        ensure!(held.is_empty(), "still held: {held:?}");
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        let cgroup = Who::of_vm(OWNER, self.vm).cgroup;
        let _ = wait_for(|| fs::remove_dir(&cgroup).is_ok() || !Path::new(&cgroup).exists());
        let _ = Path::new(&cgroup).parent().map(fs::remove_dir);
    }
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
