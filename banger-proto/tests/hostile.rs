//! A hostile peer against the server's half of the transport. Any panic aborts the process, as in
//! release builds, so a surviving test is a surviving server.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and prints its seed")]

use banger_proto::transport::{self, Limits};
use banger_proto::wire::{Hello, Purpose, ToClient, ToServer, WireError, encode};
use futures::StreamExt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tarpc::client::RpcError;
use tarpc::server::{BaseChannel, Channel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const LIMITS: Limits = Limits { max_frame: 16 * 1024, max_timeout: Duration::from_secs(5), max_in_flight: 4 };

/// A service of the same shapes as ours.
#[tarpc::service]
trait Echo {
    async fn echo(text: String, numbers: Vec<u64>) -> Result<Vec<u64>, String>;
    async fn sleep(ms: u64) -> u64;
    async fn fill(bytes: usize) -> Vec<u8>;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: tarpc::context::Context, _text: String, numbers: Vec<u64>) -> Result<Vec<u64>, String> {
        Ok(numbers)
    }
    async fn sleep(self, _: tarpc::context::Context, ms: u64) -> u64 {
        tokio::time::sleep(Duration::from_millis(ms.min(20_000))).await;
        ms
    }
    async fn fill(self, _: tarpc::context::Context, bytes: usize) -> Vec<u8> {
        vec![0; bytes.min(1 << 20)]
    }
}

/// Starts a server in a temporary folder, which lives as long as the returned guard.
fn start() -> (tempfile::TempDir, PathBuf) {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                if transport::accept(&mut stream).await.is_err() {
                    return;
                }
                let config = tarpc::server::Config { pending_response_buffer: 4 };
                let channel = BaseChannel::new(config, Box::pin(transport::server(stream, LIMITS)));
                channel
                    .max_concurrent_requests(LIMITS.max_in_flight)
                    .execute(Server.serve())
                    .for_each_concurrent(None, |reply| reply)
                    .await;
            });
        }
    });
    (folder, path)
}

async fn raw(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).await.unwrap();
    transport::connect(&mut stream, Purpose::Calls).await.unwrap();
    stream
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes(), payload].concat()
}

fn call(id: u64, timeout_ms: u32, body: EchoRequest) -> Vec<u8> {
    frame(&encode(&ToServer::Call { id, timeout_ms, body }, LIMITS.max_frame).unwrap())
}

fn echo(id: u64, timeout_ms: u32) -> Vec<u8> {
    call(id, timeout_ms, EchoRequest::Echo { text: "x".into(), numbers: vec![1, u64::MAX] })
}

/// The honest client that must be served whatever happened before.
async fn alive(path: &Path) {
    let client =
        EchoClient::new(tarpc::client::Config::default(), Box::pin(transport::client(raw(path).await, LIMITS)));
    let reply = client.spawn().echo(tarpc::context::current(), "still there?".into(), vec![42]).await.unwrap();
    assert_eq!(reply, Ok(vec![42]));
}

/// Reads until the server closes; fails when it does not within two seconds.
async fn closed(mut stream: UnixStream) {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut rest)).await.expect("still open").ok();
}

async fn reply(stream: &mut UnixStream) -> ToClient<EchoResponse> {
    let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    banger_proto::wire::decode(&bytes, LIMITS.max_frame).unwrap()
}

#[tokio::test]
async fn any_deadline_is_served() {
    let (_guard, path) = start();
    for timeout_ms in [u32::MAX, u32::MAX - 1, 63_072_000, 1 << 31] {
        let mut stream = raw(&path).await;
        stream.write_all(&echo(7, timeout_ms)).await.unwrap();
        assert_eq!(reply(&mut stream).await.id, 7, "timeout {timeout_ms}");
    }
    let mut stream = raw(&path).await;
    stream.write_all(&echo(8, 0)).await.unwrap();
    alive(&path).await;
}

#[tokio::test]
async fn tarpcs_own_frames_with_a_deadline_of_years_are_garbage_here() {
    let (_guard, path) = start();
    // What a client of the stock transport would send: a `Duration` of 5 years, and of u64::MAX
    // seconds.
    for seconds in [5 * 31_536_000_u64, u64::MAX] {
        let mut stream = raw(&path).await;
        let stock = encode(&(0_u8, seconds, 0_u32, [0_u8; 16], 1_u64), 1024).unwrap();
        stream.write_all(&frame(&stock)).await.unwrap();
        closed(stream).await;
    }
    alive(&path).await;
}

#[tokio::test]
async fn lengths_beyond_the_limit_close_the_connection() {
    let (_guard, path) = start();
    let max = u32::try_from(LIMITS.max_frame).unwrap();
    for length in [max + 1, u32::MAX, 1 << 31] {
        let mut stream = raw(&path).await;
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        closed(stream).await;
    }
    for payload in [vec![], vec![0; LIMITS.max_frame]] {
        let mut stream = raw(&path).await;
        stream.write_all(&frame(&payload)).await.unwrap();
        closed(stream).await;
    }
    alive(&path).await;
}

#[tokio::test]
async fn trailing_bytes_and_every_prefix_close_the_connection() {
    let (_guard, path) = start();
    let good = echo(1, 1000).split_off(4);
    for cut in 0..good.len() {
        let mut stream = raw(&path).await;
        stream.write_all(&frame(&good[..cut])).await.unwrap();
        closed(stream).await;
    }
    let mut stream = raw(&path).await;
    stream.write_all(&frame(&[good, vec![0]].concat())).await.unwrap();
    closed(stream).await;
    alive(&path).await;
}

#[tokio::test]
async fn unknown_operations_and_vectors_of_2_to_the_62_close_the_connection() {
    let (_guard, path) = start();
    let mut huge = vec![0, 1, 100, 0, 1, b'x', 253];
    huge.extend((1_u64 << 62).to_le_bytes());
    for body in [vec![0, 1, 100, 9], vec![2, 1], vec![9], huge] {
        let mut stream = raw(&path).await;
        stream.write_all(&frame(&body)).await.unwrap();
        closed(stream).await;
    }
    alive(&path).await;
}

#[tokio::test]
async fn duplicate_ids_cancels_of_nothing_and_a_peer_that_leaves_are_survived() {
    let (_guard, path) = start();
    let mut stream = raw(&path).await;
    let sleep = |id| call(id, 1000, EchoRequest::Sleep { ms: 300 });
    stream.write_all(&[sleep(5), sleep(5), sleep(5)].concat()).await.unwrap();
    let cancel = encode(&ToServer::<EchoRequest>::Cancel { id: 99 }, LIMITS.max_frame).unwrap();
    stream.write_all(&frame(&cancel)).await.unwrap();
    drop(stream);
    alive(&path).await;
}

#[tokio::test]
async fn a_flood_on_one_connection_does_not_starve_another() {
    let (_guard, path) = start();
    let mut flood = raw(&path).await;
    for id in 0..200 {
        flood.write_all(&call(id, u32::MAX, EchoRequest::Sleep { ms: 20_000 })).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(5), alive(&path)).await.expect("starved");
}

#[tokio::test]
async fn a_half_open_peer_is_let_go_after_the_hello_timeout() {
    let (_guard, path) = start();
    let silent = UnixStream::connect(&path).await.unwrap();
    alive(&path).await;
    let mut silent = silent;
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(7), silent.read_to_end(&mut rest)).await.expect("still open").unwrap();
}

#[tokio::test]
async fn another_version_gets_a_sentence() {
    let (_guard, path) = start();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let old = Hello { version: 0, purpose: Purpose::Calls, build: "0.0.1".into() };
    stream.write_all(&old.encode()).await.unwrap();
    let mut bytes = [0; 32];
    stream.read_exact(&mut bytes).await.unwrap();
    assert!(Hello::decode(&bytes).is_ok(), "the server says its own version before it closes");
    closed(stream).await;
    let error = Hello::decode(&old.encode()).unwrap_err();
    assert!(matches!(error, WireError::Version { theirs: 0, .. }));
    assert!(error.to_string().contains("0.0.1"), "{error}");
    alive(&path).await;
}

/// Mutations of valid frames, from a fixed seed that is printed; each connection is left in any
/// state.
#[tokio::test]
async fn mutated_frames() {
    let (_guard, path) = start();
    let mut state = std::env::var("BANGER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_u64);
    println!("seed {state} (BANGER_SEED)");
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    for _ in 0..2000 {
        let mut bytes = echo(1, u32::MAX).split_off(4);
        for _ in 0..=random() % 4 {
            let at = random() % bytes.len();
            match random() % 3 {
                0 => bytes[at] = u8::try_from(random() % 256).unwrap(),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, u8::try_from(random() % 256).unwrap()),
            }
        }
        let mut stream = raw(&path).await;
        stream.write_all(&frame(&bytes)).await.unwrap();
    }
    alive(&path).await;
}

#[tokio::test]
async fn an_answer_that_does_not_fit_fails_its_own_call_and_is_no_reason_to_call_again() {
    let (_guard, path) = start();
    let transport = Box::pin(transport::client(raw(&path).await, LIMITS));
    let client = EchoClient::new(tarpc::client::Config::default(), transport).spawn();
    let context = tarpc::context::current;
    let beside = tokio::spawn({
        let client = client.clone();
        async move { client.sleep(context(), 200).await }
    });
    let refused = client.fill(context(), LIMITS.max_frame).await.unwrap_err();
    assert!(matches!(&refused, RpcError::Server(error) if error.kind == ErrorKind::InvalidData), "{refused:?}");
    assert_eq!(client.fill(context(), LIMITS.max_frame / 2).await.unwrap().len(), LIMITS.max_frame / 2);
    assert_eq!(beside.await.unwrap().unwrap(), 200, "another call of this connection");
}
