//! A hostile daemon against the helper's own serving loop, on a simulated kernel. Any panic aborts
//! this process, as it does in a release, so a test that ends has a helper that lives.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]
mod common;
#[path = "common/sim.rs"]
mod sim;

use banger_policy::limits::MIN_ROOT_BYTES;
use banger_policy::reach::{MAX_TARGETS, Mode, Reach};
use banger_priv::proc::Processes;
use banger_proto::helper::{HelperClient, HelperError, HelperRequest, TapIdentity};
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::{Hello, Purpose, ToServer, encode};
use common::{OWNER, image, vm};
use futures::FutureExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sim::Host;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

struct Helper {
    host: Host,
    socket: PathBuf,
}

/// Starts a helper that serves `uid` on this thread.
async fn start_for(uid: u32) -> Helper {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    let host = Host::new();
    let machine = host.start();
    machine.recover().await.unwrap();
    let socket = host.folder.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let processes = Rc::new(Processes::open(None).unwrap());
    tokio::task::spawn_local(banger_priv::serve::serve(listener, machine, processes, uid));
    Helper { host, socket }
}

fn with_helper<F: AsyncFnOnce(Helper)>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let me = nix::unistd::geteuid().as_raw();
    tokio::task::LocalSet::new().block_on(&runtime, async { test(start_for(me).await).await });
}

impl Helper {
    async fn raw(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        transport::connect(&mut stream, Purpose::Calls).await.unwrap();
        stream
    }

    async fn client(&self) -> HelperClient {
        let wire = transport::client(self.raw().await, HELPER_LIMITS);
        let client = HelperClient::new(tarpc::client::Config::default(), wire);
        tokio::task::spawn_local(client.dispatch.map(drop));
        client.client
    }

    /// The honest daemon, which must be served whatever happened before.
    async fn alive(&self) {
        let client = self.client().await;
        // The limiter may be empty after a flood; it fills again.
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match client.list(tarpc::context::current(), None).await.unwrap() {
                Err(HelperError::Rate) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(20)).await,
                other => return drop(other.unwrap()),
            }
        }
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes(), payload].concat()
}

fn call(id: u64, timeout_ms: u32, body: HelperRequest) -> Vec<u8> {
    encode(&ToServer::Call { id, timeout_ms, body }, HELPER_LIMITS.max_frame).unwrap()
}

/// A list that is as long as may be.
fn longest() -> Reach {
    let target = |n: usize| format!("10.0.{}.{}/32:65535/udp", n / 256, n % 256).try_into().unwrap();
    Reach { mode: Mode::Allow, targets: (0..MAX_TARGETS).map(target).collect(), group: Some(image()) }
}

/// One request of every operation.
fn requests() -> Vec<HelperRequest> {
    let tap = TapIdentity { tap_device: vm(1).tap_name(), generation: 1 };
    let disk = banger_proto::helper::DiskIdentity {
        dm_name: vm(1).dm_name(),
        dm_dev: "/dev/dm-0".into(),
        base_loop: "/dev/loop0".into(),
        cow_loop: "/dev/loop1".into(),
        generation: 1,
    };
    vec![
        HelperRequest::AcquireTap { vm: vm(1), owner: OWNER, address_index: 1 },
        HelperRequest::ReleaseTap { vm: vm(1), tap },
        HelperRequest::CreateDisk { vm: vm(1), owner: OWNER, image: image(), root_bytes: MIN_ROOT_BYTES },
        HelperRequest::AttachDisk { vm: vm(1), owner: OWNER },
        HelperRequest::GiveDisk { vm: vm(1), owner: OWNER },
        HelperRequest::DetachDisk { vm: vm(1), disk },
        HelperRequest::DiscardDisk { vm: vm(1) },
        HelperRequest::SetNetwork { vm: vm(1), reach: Reach::of(Mode::Nat) },
        HelperRequest::SetNetwork { vm: vm(1), reach: longest() },
        HelperRequest::BindProcess { vm: vm(1), pid: 1 },
        HelperRequest::ProcessRunning { vm: vm(1), pid: 1 },
        HelperRequest::Identity { vm: vm(1) },
        HelperRequest::List { after: None },
        HelperRequest::Release { vm: vm(1) },
        HelperRequest::GrowDisk { vm: vm(1), owner: OWNER, root_bytes: 2 * MIN_ROOT_BYTES },
    ]
}

/// Reads to the end; fails when the helper does not close within two seconds.
async fn closed(stream: &mut UnixStream, why: &str) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "still open: {why}");
}

#[test]
fn deadlines_of_any_size_are_served() {
    with_helper(async |helper| {
        for timeout_ms in [0, 1, 63_072_000, u32::MAX - 1, u32::MAX] {
            let mut stream = helper.raw().await;
            stream.write_all(&frame(&call(7, timeout_ms, HelperRequest::List { after: None }))).await.unwrap();
            if timeout_ms > 1 {
                let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
                stream.read_exact(&mut vec![0; length]).await.unwrap();
            }
            drop(stream);
            helper.alive().await;
        }
    });
}

#[test]
fn frames_that_are_not_whole_requests_close_the_connection() {
    with_helper(async |helper| {
        let whole: Vec<Vec<u8>> = requests().into_iter().map(|body| call(1, 1_000, body)).collect();
        let mut wrong = vec![
            ("nothing", frame(&[])),
            ("over-long", 16_385_u32.to_be_bytes().to_vec()),
            ("4 GiB", u32::MAX.to_be_bytes().to_vec()),
            ("garbage", frame(&[0xff; 64])),
            ("an unknown operation", frame(&[0, 1, 1, 14])),
            ("a vector of 2^62", frame(&[0, 1, 1, 1, 253, 0, 0, 0, 0, 0, 0, 0, 64])),
            ("an id of zeros", frame(&[&[0, 1, 1, 12][..], &[0; 32]].concat())),
        ];
        for bytes in &whole {
            wrong.push(("trailing bytes", frame(&[&bytes[..], &[0]].concat())));
        }
        for (why, bytes) in &wrong {
            let mut stream = helper.raw().await;
            stream.write_all(bytes).await.unwrap();
            closed(&mut stream, why).await;
        }
        // Every prefix of every request, as a whole frame.
        for bytes in &whole {
            for cut in 0..bytes.len() {
                let mut stream = helper.raw().await;
                stream.write_all(&frame(&bytes[..cut])).await.unwrap();
                closed(&mut stream, "a prefix").await;
            }
        }
        helper.alive().await;
        assert!(helper.host.world.borrow().links.is_empty(), "nothing was made");
    });
}

#[test]
fn other_hellos_and_other_users_are_turned_away() {
    with_helper(async |helper| {
        let mut older = Hello::ours(Purpose::Calls).encode();
        older[4] = 0xee;
        for hello in [older, Hello::ours(Purpose::Stream).encode(), [0xff; 32]] {
            let mut stream = UnixStream::connect(&helper.socket).await.unwrap();
            stream.write_all(&hello).await.unwrap();
            closed(&mut stream, "hello").await;
        }
        helper.alive().await;
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let helper = start_for(nix::unistd::geteuid().as_raw() + 1).await;
        for _ in 0..3 {
            let mut stream = UnixStream::connect(&helper.socket).await.unwrap();
            closed(&mut stream, "another user, root included").await;
        }
    });
}

#[test]
fn a_new_connection_of_the_daemon_takes_the_place_of_the_old() {
    with_helper(async |helper| {
        let mut first = helper.raw().await;
        helper.alive().await;
        closed(&mut first, "the first connection").await;
        // Half-open peers that never say hello, and many of them.
        let mut silent = Vec::new();
        for _ in 0..1_500 {
            silent.push(UnixStream::connect(&helper.socket).await.unwrap());
            tokio::task::yield_now().await;
        }
        helper.alive().await;
    });
}

#[test]
fn an_operation_outlives_the_peer_that_asked_for_it() {
    with_helper(async |helper| {
        let mut stream = helper.raw().await;
        let request = HelperRequest::AcquireTap { vm: vm(1), owner: OWNER, address_index: 1 };
        stream.write_all(&frame(&call(1, 60_000, request))).await.unwrap();
        drop(stream);
        let client = helper.client().await;
        let again = client.acquire_tap(tarpc::context::current(), vm(1), OWNER, 1).await.unwrap().unwrap();
        assert_eq!(client.acquire_tap(tarpc::context::current(), vm(1), OWNER, 1).await.unwrap(), Ok(again));
        assert_eq!(helper.host.world.borrow().links.len(), 1, "made once");
    });
}

/// The bound is the process's: a daemon that connects again and again has no more of its calls
/// under way.
#[test]
fn calls_of_connections_that_are_gone_count_until_they_end() {
    with_helper(async |helper| {
        let client = helper.client().await;
        let now = tarpc::context::current;
        client.acquire_tap(now(), vm(1), OWNER, 1).await.unwrap().unwrap();
        let carrier = |on: bool| {
            for link in helper.host.world.borrow_mut().links.values_mut() {
                link.carrier = on;
            }
        };
        // Held open by somebody: a release waits, and those behind it.
        carrier(true);
        for round in 0..4 {
            let mut stream = helper.raw().await;
            for id in 0..HELPER_LIMITS.max_in_flight as u64 / 2 {
                stream.write_all(&frame(&call(id, 60_000, HelperRequest::Release { vm: vm(1) }))).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(stream);
            let answer = helper.client().await.list(now(), None).await.unwrap();
            let expected = if round == 0 { Ok(()) } else { Err(HelperError::Rate) };
            assert_eq!(answer.map(drop), expected, "round {round}");
        }
        carrier(false);
        helper.alive().await;
        let client = helper.client().await;
        assert_eq!(client.release(now(), vm(1)).await.unwrap(), Ok(()));
    });
}

/// Resident memory, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Frames changed at random, after a valid hello. `BANGER_FRAMES` asks for more of them.
#[test]
fn mutated_frames_neither_kill_nor_fatten_the_helper() {
    let count: usize = std::env::var("BANGER_FRAMES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    with_helper(async |helper| {
        let whole: Vec<Vec<u8>> = requests().into_iter().map(|body| call(1, 1_000, body)).collect();
        let mut runner = TestRunner::deterministic();
        let change = (0..whole.len(), proptest::collection::vec((0..200_usize, any::<u8>()), 0..4));
        let (mut stream, mut decoded, mut closed, mut base) = (helper.raw().await, 0, 0, 0);
        for n in 0..count {
            if n == count / 10 {
                base = resident();
            }
            let (which, changes) = change.new_tree(&mut runner).unwrap().current();
            let mut bytes = whole[which].clone();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let known = banger_proto::wire::decode::<ToServer<HelperRequest>>(&bytes, HELPER_LIMITS.max_frame).is_ok();
            decoded += usize::from(known);
            if stream.write_all(&frame(&bytes)).await.is_err() || !known {
                closed += 1;
                stream = helper.raw().await;
            }
            // Let it answer, and throw the answers away.
            tokio::task::yield_now().await;
            let mut answers = [0; 16 * 1024];
            let _ = stream.try_read(&mut answers);
        }
        helper.alive().await;
        let grown = resident().saturating_sub(base);
        println!("{count} frames: {decoded} decoded, {closed} connections closed, memory grew by {grown} KiB");
        assert!(decoded > count / 10 && closed > count / 10, "the frames reach decoder and policy");
        assert!(grown < 8 * 1024, "memory grew by {grown} KiB");
    });
}
