//! Every operation in every state of a VM, against a table; and ids that are nobody's.

use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use banger_policy::reach::{Mode, Reach};
use banger_policy::{Digest, VmId};
use banger_proto::helper::{DiskIdentity, HelperRequest, HelperResponse, ProcessState, TapIdentity};

use super::objects::{Image, MIN_ROOT, OWNER};
use crate::suite::list::Outcome;
use crate::suite::peer::helper::{Helper, word};
use crate::suite::peer::place::{Who, instead_of_the_daemon};
use crate::suite::peer::vm;
use crate::suite::scene::Scene;

/// What a VM holds. Cow file, tap, NAT, disk, process (`r`unning, `g`one), quarantine; then the
/// expected answer of every operation, in the order of
/// [`OPERATIONS`]: `+` done, `=` done already and nothing changed, `N` not yours, `S` bad state,
/// `R` still running, `Q` quarantined.
const TABLE: &[(&str, &str)] = &[
    ("......", "+N+NN=NNN=N==NN"),
    ("c.....", "+N=+N+NNN====++"),
    ("ct....", "=+=+=++=+===++S"),
    (".t....", "=++N==+=+===+NN"),
    ("ctn...", "=+=+=+=++===++S"),
    ("c..d..", "+===+SS=S===+SS"),
    ("ct.d..", "=+==+S+=+===+SS"),
    ("ctnd..", "=+==+S=++===+SS"),
    (".t..r.", "=R+NR=+=====RNN"),
    ("ctn.r.", "=R=SR+=+====R+S"),
    ("ct.dr.", "=R==RS+=====RSS"),
    ("ctndr.", "=R==RS=+====RSS"),
    ("ctn.g.", "=+=+=+=+N===++S"),
    ("ctndg.", "=+==+S=+N===+SS"),
    ("ctn..q", "QQ=QQQQQQ===QQS"),
];

const OPERATIONS: [&str; 15] = [
    "acquire",
    "release-tap",
    "create",
    "attach",
    "detach",
    "discard",
    "nat-on",
    "nat-off",
    "bind",
    "running",
    "identity",
    "list",
    "release",
    "grow",
    "give",
];

/// A VM in some state.
struct Subject<'a> {
    scene: &'a Scene,
    helper: &'a mut Helper,
    image: Digest,
    vm: VmId,
    process: Option<Child>,
    /// Perhaps: it was asked for.
    bound: bool,
    tap: TapIdentity,
    disk: DiskIdentity,
}

/// States in which most of the rules have a say.
const TELLING: &[&str] = &["......", "c..d..", "ctnd..", "ctndr.", "ctndg.", "ctn..q"];

pub(super) fn telling(scene: &mut Scene) -> Result<Outcome> {
    matrix(scene, TABLE.iter().filter(|(state, _)| TELLING.contains(state)).collect())
}

pub(super) fn whole(scene: &mut Scene) -> Result<Outcome> {
    matrix(scene, TABLE.iter().collect())
}

fn matrix(scene: &mut Scene, rows: Vec<&'static (&'static str, &'static str)>) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        let image = Image::new(scene)?;
        let mut helper = Helper::open()?;
        let mut cells = 0;
        let result = rows.iter().enumerate().try_for_each(|(number, (state, expected))| {
            scene.step(&format!("{state}  {expected}"), |scene| {
                ensure!(expected.len() == OPERATIONS.len(), "the table's row {state} is not whole");
                let vm = vm(u8::try_from(number)? + 1)?;
                cells += row(scene, &mut helper, image.digest, vm, state, expected)?;
                Ok(())
            })
        });
        image.remove(scene)?;
        scene.measured("cells of the matrix", cells);
        result
    })
}

fn row(scene: &Scene, helper: &mut Helper, image: Digest, vm: VmId, state: &str, expected: &str) -> Result<usize> {
    let (tap, disk) = unclaimed(vm);
    let mut subject = Subject { scene, helper, image, vm, process: None, bound: false, tap, disk };
    let result = subject.all(state, expected);
    // Also after a failure, so that the next row stands on clean ground.
    subject.clear(state).context("clear")?;
    subject.end_process()?;
    result.map(|()| OPERATIONS.len())
}

/// Claims that nobody was given.
fn unclaimed(vm: VmId) -> (TapIdentity, DiskIdentity) {
    let node = |text: &str| text.to_owned();
    let tap = TapIdentity { tap_device: vm.tap_name(), generation: 1 };
    let disk = DiskIdentity {
        dm_name: vm.dm_name(),
        dm_dev: node("/dev/dm-9"),
        base_loop: node("/dev/loop8"),
        cow_loop: node("/dev/loop9"),
        generation: 1,
    };
    (tap, disk)
}

impl Subject<'_> {
    /// What changes nothing is asked first, in one and the same state; before each of the others
    /// the state is made anew.
    fn all(&mut self, state: &str, expected: &str) -> Result<()> {
        self.make(state)?;
        let before = self.holding()?;
        for (operation, mark) in OPERATIONS.iter().zip(expected.chars()) {
            if mark != '+' {
                self.ask(operation, mark)?;
                let after = self.holding()?;
                ensure!(before == after, "{operation} was {mark} and has changed {before} to {after}");
            }
        }
        let mut made = true;
        for (operation, mark) in OPERATIONS.iter().zip(expected.chars()) {
            if mark == '+' {
                if !made {
                    self.clear(state)?;
                    self.make(state)?;
                }
                let before = self.holding()?;
                self.ask(operation, mark)?;
                ensure!(before != self.holding()?, "{operation} has changed nothing in state {state}: {before}");
                made = false;
            }
        }
        Ok(())
    }

    /// What the helper says that it holds, as text.
    fn holding(&mut self) -> Result<String> {
        Ok(serde_json::to_string(&self.helper.call(&HelperRequest::Identity { vm: self.vm })?)?)
    }

    fn request(&self, operation: &str) -> Result<HelperRequest> {
        let vm = self.vm;
        // A process of this VM where there is one; else somebody else's.
        let pid = self.process.as_ref().map_or(1, Child::id);
        Ok(match operation {
            "acquire" => HelperRequest::AcquireTap { vm, owner: OWNER, address_index: u16::from(vm.as_bytes()[0]) },
            "release-tap" => HelperRequest::ReleaseTap { vm, tap: self.tap.clone() },
            "create" => HelperRequest::CreateDisk { vm, owner: OWNER, image: self.image, root_bytes: MIN_ROOT },
            "grow" => HelperRequest::GrowDisk { vm, owner: OWNER, root_bytes: 2 * MIN_ROOT },
            "give" => HelperRequest::GiveDisk { vm, owner: OWNER + 1 },
            "attach" => HelperRequest::AttachDisk { vm, owner: OWNER },
            "detach" => HelperRequest::DetachDisk { vm, disk: self.disk.clone() },
            "discard" => HelperRequest::DiscardDisk { vm },
            "nat-on" => HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) },
            "nat-off" => HelperRequest::SetNetwork { vm, reach: Reach::default() },
            "bind" => HelperRequest::BindProcess { vm, pid },
            "running" => HelperRequest::ProcessRunning { vm, pid },
            "identity" => HelperRequest::Identity { vm },
            "list" => HelperRequest::List { after: None },
            "release" => HelperRequest::Release { vm },
            other => bail!("there is no operation {other}"),
        })
    }

    fn ask(&mut self, operation: &str, mark: char) -> Result<()> {
        let request = self.request(operation)?;
        self.bound |= operation == "bind";
        let said = word(&self.helper.call(&request)?)?;
        let expected = match mark {
            'N' => "NotYours",
            'S' => "BadState",
            'R' => "StillRunning",
            'Q' => "Quarantined",
            _ => "Ok",
        };
        ensure!(said == expected, "{operation}: {said}, expected {expected}");
        Ok(())
    }

    fn make(&mut self, state: &str) -> Result<()> {
        let has = |letter| state.contains(letter);
        let generation = |helper: &mut Helper, vm| match helper.call(&HelperRequest::Identity { vm }) {
            Ok(HelperResponse::Identity(Ok(holding))) => {
                holding.tap.map(|tap| tap.generation).or(holding.disk.map(|disk| disk.generation))
            }
            _ => None,
        };
        (self.tap, self.disk) = unclaimed(self.vm);
        for (letter, operation) in [('c', "create"), ('t', "acquire"), ('d', "attach"), ('n', "nat-on")] {
            if has(letter) {
                self.helper.ok(&self.request(operation)?)?;
            }
        }
        // The claims that its holder would make, also on what is not held: only their generation is
        // right then.
        if let Some(generation) = generation(self.helper, self.vm) {
            self.tap.generation = generation;
            self.disk.generation = generation;
        }
        if has('d') {
            self.disk = self.helper.disk(self.vm, OWNER)?;
        }
        // A process that could be bound is there whenever there is a row.
        if self.process.is_none() && (has('t') || has('d')) {
            self.process = Some(start(self.scene, self.vm)?);
        }
        if has('r') || has('g') {
            self.helper.ok(&self.request("bind")?)?;
        }
        if has('g') {
            self.end_process()?;
        }
        if has('q') {
            self.scene.root(&format!("ip link set dev {} alias somebody-else", self.tap.tap_device))?;
            let said = self.helper.word(&HelperRequest::ReleaseTap { vm: self.vm, tap: self.tap.clone() })?;
            ensure!(said == "Quarantined", "a changed tap: {said}");
        }
        if has('r') {
            self.is(ProcessState::Running)?;
        }
        if has('g') {
            // The helper sees the end by itself, and forgets the process.
            let scene = self.scene;
            scene.wait_until("the helper has seen the process end", Duration::from_secs(5), || {
                Ok(self.is(ProcessState::NotYours).err().map(|error| error.to_string()))
            })?;
        }
        Ok(())
    }

    fn is(&mut self, expected: ProcessState) -> Result<()> {
        let said = self.helper.call(&self.request("running")?)?;
        let right = matches!(said, HelperResponse::ProcessRunning(Ok(state)) if state == expected);
        ensure!(right, "the process: {said:?}, expected {expected:?}");
        Ok(())
    }

    /// It stays known by its pid.
    fn end_process(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            process.kill().context("end the VM's process")?;
            process.wait().context("wait for the VM's process")?;
        }
        Ok(())
    }

    fn clear(&mut self, state: &str) -> Result<()> {
        // A process that was bound and lives would keep everything; another may be bound the next
        // time.
        if state.contains(['r', 'g']) || self.bound {
            self.end_process()?;
            (self.process, self.bound) = (None, false);
        }
        if state.contains('q') {
            // What was changed by hand is put right, or it would stay for ever.
            let (name, mark) = (&self.tap.tap_device, self.vm.tap_alias(self.tap.generation));
            self.scene.root_any(&format!("ip link set dev {name} alias {mark}"))?;
        }
        self.helper.ok(&HelperRequest::Release { vm: self.vm })?;
        self.helper.ok(&HelperRequest::DiscardDisk { vm: self.vm })?;
        self.helper.expect(&HelperRequest::Identity { vm: self.vm }, &["NotYours"]).map(drop)
    }
}

/// A process where a VM's belongs.
fn start(scene: &Scene, vm: VmId) -> Result<Child> {
    let process = Who::of_vm(OWNER, vm).start("sleep infinity")?;
    let path = format!("/proc/{}/comm", process.id());
    scene.wait_until("the VM's process is there", Duration::from_secs(5), || {
        let name = std::fs::read_to_string(&path).unwrap_or_default();
        Ok((name.trim() != "sleep").then_some(name))
    })?;
    Ok(process)
}

/// A VM that was released, another generation of one that is there, and one that never was: one
/// answer.
pub(super) fn vm_ids(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        let mut helper = Helper::open()?;
        let (there, released, never) = (vm(30)?, vm(31)?, vm(32)?);
        let tap = helper.tap(there, OWNER, 30)?;
        let old = helper.tap(released, OWNER, 31)?;
        helper.ok(&HelperRequest::Release { vm: released })?;
        let mut asked = 0;
        for (id, generation) in
            [(released, old.generation), (never, tap.generation), (never, 0), (there, tap.generation ^ 1), (there, 0)]
        {
            let (mut claim, mut disk) = unclaimed(id);
            (claim.generation, disk.generation) = (generation, generation);
            let mut requests = vec![
                HelperRequest::ReleaseTap { vm: id, tap: claim },
                HelperRequest::DetachDisk { vm: id, disk },
                HelperRequest::AttachDisk { vm: id, owner: OWNER },
                HelperRequest::GiveDisk { vm: id, owner: OWNER },
                HelperRequest::AcquireTap { vm: there, owner: OWNER + 1, address_index: 30 },
                HelperRequest::ReleaseTap { vm: id, tap: tap.clone() },
            ];
            if id == there {
                requests.pop();
            } else {
                requests.extend([
                    HelperRequest::SetNetwork { vm: id, reach: Reach::of(Mode::Nat) },
                    HelperRequest::SetNetwork { vm: id, reach: Reach::default() },
                    HelperRequest::BindProcess { vm: id, pid: std::process::id() },
                    HelperRequest::Identity { vm: id },
                ]);
            }
            for request in requests {
                helper.expect(&request, &["NotYours"])?;
                asked += 1;
            }
            let running = helper.call(&HelperRequest::ProcessRunning { vm: id, pid: 1 })?;
            ensure!(matches!(running, HelperResponse::ProcessRunning(Ok(ProcessState::NotYours))), "{running:?}");
        }
        scene.measured("questions about nobody's VM, all with one answer", asked);
        // A release of nothing is success, and touches nothing.
        helper.ok(&HelperRequest::Release { vm: never })?;
        ensure!(helper.tap(there, OWNER, 30)? == tap, "the VM that is there has changed");
        helper.ok(&HelperRequest::Release { vm: there })
    })
}
