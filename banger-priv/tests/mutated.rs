//! A million frames mutated from valid ones, through the helper's own decoder and into its
//! operations, with no limiter in between. The same over the real socket is the bench's suite
//! `hostile-client`, where the limiter lets fewer of them through. The seed is printed;
//! `BANGER_SEED` sets it, `BANGER_FRAMES` the number.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a test fails by panicking, and says what it has seen"
)]
#[path = "common/mod.rs"]
mod common;
#[path = "common/sim.rs"]
mod sim;

use banger_policy::limits::MIN_ROOT_BYTES;
use banger_policy::reach::{Mode, Reach};
use banger_priv::ops::Machine;
use banger_proto::helper::{DiskIdentity, HelperError, HelperRequest, TapIdentity};
use banger_proto::transport::HELPER_LIMITS;
use banger_proto::wire::{ToServer, decode, encode};
use common::{OWNER, image, vm};
use sim::{Host, Sim};
use std::collections::BTreeMap;

/// xorshift64: reproducible from its seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }

    /// Up to three bytes changed, inserted, taken out, or the rest cut off.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const EDGES: [u8; 8] = [0, 1, 127, 128, 250, 251, 253, 255];
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let byte = if self.below(2) == 0 { EDGES[self.below(8)] } else { u8::try_from(self.below(256)).unwrap() };
            match self.below(8) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, byte),
                2 => bytes.push(byte),
                3 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes[at] = byte,
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One request of every operation, about a VM that holds everything; no image of that name is
/// there, so that nothing is reserved on the disk of the machine that runs the test.
fn requests(tap: &TapIdentity, disk: &DiskIdentity) -> Vec<HelperRequest> {
    let vm = vm(1);
    let image = banger_policy::Digest::from_bytes([0x22; 32]).unwrap();
    let targets =
        ["10.0.0.0/8".to_owned(), "1.1.1.1/32:53/udp".to_owned()].map(|text| text.try_into().unwrap()).to_vec();
    vec![
        HelperRequest::AcquireTap { vm, owner: OWNER, address_index: 1 },
        HelperRequest::ReleaseTap { vm, tap: tap.clone() },
        HelperRequest::CreateDisk { vm, owner: OWNER, image, root_bytes: MIN_ROOT_BYTES },
        HelperRequest::AttachDisk { vm, owner: OWNER },
        HelperRequest::GiveDisk { vm, owner: OWNER },
        HelperRequest::DetachDisk { vm, disk: disk.clone() },
        HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) },
        HelperRequest::SetNetwork { vm, reach: Reach { mode: Mode::Allow, targets, group: Some(image) } },
        HelperRequest::BindProcess { vm, pid: 1 },
        HelperRequest::ProcessRunning { vm, pid: 1 },
        HelperRequest::Identity { vm },
        HelperRequest::List { after: Some(vm) },
        HelperRequest::Release { vm },
        HelperRequest::GrowDisk { vm, owner: OWNER, root_bytes: MIN_ROOT_BYTES },
    ]
}

/// What the operation answers: nothing, or its code.
async fn run(machine: &Machine<Sim>, request: HelperRequest) -> Result<(), HelperError> {
    use HelperRequest as R;
    let answer = match request {
        R::AcquireTap { vm, owner, address_index } => machine.acquire_tap(vm, owner, address_index).await.map(drop),
        R::ReleaseTap { vm, tap } => machine.release_tap(vm, &tap).await,
        R::CreateDisk { vm, owner, image, root_bytes } => {
            machine.create_disk(vm, owner, image, root_bytes).await.map(drop)
        }
        R::AttachDisk { vm, owner } => machine.attach_disk(vm, owner).await.map(drop),
        R::GiveDisk { vm, owner } => machine.give_disk(vm, owner).await,
        R::DetachDisk { vm, disk } => machine.detach_disk(vm, &disk).await,
        R::DiscardDisk { vm } => machine.discard_disk(vm).await,
        R::SetNetwork { vm, reach } => machine.set_network(vm, reach).await,
        R::BindProcess { vm, pid } => machine.bind_process(vm, pid).await.map(drop),
        R::ProcessRunning { vm, pid } => machine.process_running(vm, pid).map(drop),
        R::Identity { vm } => machine.identity(vm).map(drop),
        R::List { after } => {
            drop(machine.list(after));
            Ok(())
        }
        R::Release { vm } => machine.release(vm).await,
        R::GrowDisk { vm, owner, root_bytes } => machine.grow_disk(vm, owner, root_bytes).await.map(drop),
    };
    answer.map_err(|denied| denied.code)
}

/// Resident memory, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_million_mutated_frames_through_decoder_and_policy() {
    let seed = number("BANGER_SEED").unwrap_or(0x5eed);
    let count = number("BANGER_FRAMES").unwrap_or(1_000_000);
    println!("seed {seed} (BANGER_SEED)");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let host = Host::new();
        let machine = host.start();
        machine.recover().await.unwrap();
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        let tap = machine.acquire_tap(vm(1), OWNER, 1).await.unwrap();
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        let corpus: Vec<Vec<u8>> = requests(&tap, &disk)
            .into_iter()
            .map(|body| encode(&ToServer::Call { id: 1, timeout_ms: 1_000, body }, HELPER_LIMITS.max_frame).unwrap())
            .collect();
        let (mut random, mut refused, mut cancels, mut settled) = (Random(seed | 1), 0_u64, 0_u64, 0);
        let mut answers: BTreeMap<String, u64> = BTreeMap::new();
        for frame in 0..count {
            if frame == count / 10 {
                settled = resident();
            }
            let mut bytes = corpus[random.below(corpus.len())].clone();
            random.mutate(&mut bytes);
            match decode::<ToServer<HelperRequest>>(&bytes, HELPER_LIMITS.max_frame) {
                Err(_) => refused += 1,
                Ok(ToServer::Cancel { .. }) => cancels += 1,
                Ok(ToServer::Call { body, .. }) => {
                    let word = match run(&machine, body).await {
                        Ok(()) => "done".to_owned(),
                        Err(code) => format!("{code:?}"),
                    };
                    *answers.entry(word).or_default() += 1;
                }
            }
        }
        let decided: u64 = answers.values().sum();
        let grown = resident().saturating_sub(settled);
        println!(
            "{count} frames: {refused} refused by the decoder, {cancels} cancels, {decided} decided: {answers:?}; \
             memory grew by {grown} KiB"
        );
        assert!(refused > count / 10 && decided > count / 5, "the frames reach decoder and policy");
        assert!(answers.len() > 3, "they reach more than one decision: {answers:?}");
        assert!(grown < 4 * 1024, "memory grew by {grown} KiB");
        // What the mutations have left goes, and the first VM works on.
        while let Some(left) = machine.list(None).holdings.first().map(|holding| holding.vm) {
            machine.release(left).await.unwrap();
            machine.discard_disk(left).await.unwrap();
        }
        assert!(host.world.borrow().links.is_empty() && host.world.borrow().dms.is_empty());
    });
}
