//! What the program does as a user who calls the daemon with words that are not theirs: every call,
//! each beside its twin with invented words. The answers of both must be the same, so that nobody
//! learns from them what others have.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use banger_policy::network::NetworkRequest;
use banger_policy::reach::Mode;
use banger_proto::daemon::{DaemonClient, KillSignal};
use banger_proto::model::{ApiError, CreateRequest, ErrorCode, JobId, SetRequest};
use banger_proto::stream::{StreamRequest, Ticket};
use banger_proto::transport::{self, DAEMON_LIMITS};
use banger_proto::wire::Purpose;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tarpc::client::RpcError;
use tarpc::context::Context;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::suite::peer::Json;

/// The daemon's socket.
pub(super) const SOCKET: &str = "/run/banger/bangerd.sock";
/// What an answer may take on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(50);

/// What belongs to the user who is attacked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Targets {
    pub(super) uid: u32,
    /// Her VM: id and name.
    pub(super) vm: (String, String),
    /// Her image: id and name.
    pub(super) image: (String, String),
    /// Her kernel's name. Its id is that of the shared one, whose content it is.
    pub(super) kernel: String,
    /// A job and a ticket of hers.
    pub(super) given: Given,
}

/// What the daemon has given her.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) job: u64,
    pub(super) ticket: [u8; 32],
}

/// One attempt and how it ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) what: String,
    /// Why it has not failed, or not as its twin did.
    pub(super) fault: Option<String>,
}

/// The roles of this suite.
pub(in crate::suite) fn role(words: &[&str]) -> Result<Option<Json>> {
    let told = match words {
        ["two-users", "given", vm] => serde_json::to_value(run(given(vm))?)?,
        ["two-users", "calls", targets] => serde_json::to_value(run(attempts(&serde_json::from_str(targets)?))?)?,
        ["two-users", "lists", count] => json!(run(lists(count.parse()?))?),
        ["two-users", load, seconds] => {
            let until = Instant::now() + Duration::from_secs(seconds.parse()?);
            run(super::load::play(load, until))?
        }
        _ => return Ok(None),
    };
    Ok(Some(told))
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// A connection for calls.
pub(super) async fn connect() -> Result<DaemonClient> {
    let mut stream = UnixStream::connect(SOCKET).await.context("connect to the daemon")?;
    transport::connect(&mut stream, Purpose::Calls).await.context("say hello")?;
    let mut config = tarpc::client::Config::default();
    config.max_in_flight_requests = DAEMON_LIMITS.max_in_flight;
    Ok(DaemonClient::new(config, transport::client(stream, DAEMON_LIMITS)).spawn())
}

/// The context of a call.
pub(super) fn soon() -> Context {
    let mut context = Context::current();
    context.deadline = Instant::now() + PATIENCE;
    context
}

/// The answer without its value.
async fn bare<T>(call: impl Future<Output = Result<Result<T, ApiError>, RpcError>>) -> Result<Result<(), ApiError>> {
    Ok(call.await?.map(drop))
}

fn exec(vm: String) -> StreamRequest {
    StreamRequest::Command { vm, reads: false }
}

/// A job and a ticket of whoever runs this.
async fn given(vm: &str) -> Result<Given> {
    let rpc = connect().await?;
    let jobs = rpc.list_jobs(soon(), None).await??.jobs;
    let job = jobs.first().context("no job is remembered")?.id.0;
    let ticket = rpc.open_stream(soon(), exec(vm.to_owned())).await??.ticket.0;
    Ok(Given { job, ticket })
}

/// Microseconds that each of so many lists takes.
async fn lists(count: usize) -> Result<Vec<u64>> {
    let rpc = connect().await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        rpc.list_vms(soon(), false, None).await??;
        times.push(u64::try_from(begun.elapsed().as_micros())?);
        // Below what one user may ask in a second.
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    Ok(times)
}

/// Calls that take a VM.
const ON_A_VM: [&str; 16] = [
    "show",
    "refused",
    "start",
    "stop",
    "host-down",
    "restart",
    "set",
    "kill",
    "give",
    "delete",
    "publish",
    "unpublish",
    "ssh-access",
    "exec",
    "ssh",
    "logs",
];

async fn on_a_vm(rpc: &DaemonClient, call: &str, vm: String) -> Result<Result<(), ApiError>> {
    let stream = |request| bare(rpc.open_stream(soon(), request));
    match call {
        "show" => bare(rpc.show_vm(soon(), vm)).await,
        "refused" => bare(rpc.refused(soon(), vm)).await,
        "start" => bare(rpc.start_vm(soon(), vm)).await,
        "stop" => bare(rpc.stop_vm(soon(), vm, None, false)).await,
        "host-down" => bare(rpc.stop_vm(soon(), vm, None, true)).await,
        "restart" => bare(rpc.restart_vm(soon(), vm)).await,
        "set" => bare(rpc.set_vm(soon(), vm, SetRequest { network: to_nat(), ..SetRequest::default() })).await,
        "kill" => bare(rpc.kill_vm(soon(), vm, KillSignal::Kill)).await,
        "give" => bare(rpc.give_vm(soon(), vm, "bob".to_owned())).await,
        "delete" => bare(rpc.delete_vm(soon(), vm)).await,
        "publish" => {
            let request = banger_proto::model::PublishRequest { ports: vec!["80".to_owned()], ..Default::default() };
            bare(rpc.publish_ports(soon(), vm, request)).await
        }
        "unpublish" => bare(rpc.unpublish_ports(soon(), vm, Vec::new())).await,
        "ssh-access" => {
            let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2xv7HcZn2S4mZbVvTz6wVw1aZz0m2m5p9y0o0m1n2b mallory";
            bare(rpc.ssh_access(soon(), vm, key.to_owned())).await
        }
        "exec" => stream(exec(vm)).await,
        "ssh" => stream(StreamRequest::Ssh { vm }).await,
        "logs" => stream(StreamRequest::Logs { vm, follow: true, tail: None }).await,
        other => bail!("there is no call {other}"),
    }
}

fn to_nat() -> NetworkRequest {
    NetworkRequest { mode: Some(Mode::Nat), ..NetworkRequest::default() }
}

const ON_AN_IMAGE: [&str; 6] =
    ["show-image", "promote-image", "share-image", "unshare-image", "delete-image", "create-with-image"];
const ON_A_KERNEL: [&str; 6] =
    ["pick-kernel", "share-kernel", "unshare-kernel", "delete-kernel", "create-with-kernel", "register-with-kernel"];

async fn on_the_store(rpc: &DaemonClient, call: &str, word: String) -> Result<Result<(), ApiError>> {
    let create = CreateRequest {
        name: None,
        image_name: Some("tiny".to_owned()),
        kernel_name: None,
        vcpu_count: None,
        memory_mib: None,
        system_overlay_size_bytes: None,
        work_disk_size_bytes: None,
        network: NetworkRequest::default(),
        restart: banger_policy::vm::RestartPolicy::No,
        no_start: true,
        publish: banger_proto::model::PublishRequest::default(),
    };
    match call {
        "show-image" => bare(rpc.show_image(soon(), word)).await,
        "promote-image" => bare(rpc.promote_image(soon(), word)).await,
        "share-image" => bare(rpc.share_image(soon(), word, true)).await,
        "unshare-image" => bare(rpc.share_image(soon(), word, false)).await,
        "delete-image" => bare(rpc.delete_image(soon(), word)).await,
        "pick-kernel" => bare(rpc.pick_kernel(soon(), Some(word))).await,
        "share-kernel" => bare(rpc.share_kernel(soon(), word, true)).await,
        "unshare-kernel" => bare(rpc.share_kernel(soon(), word, false)).await,
        "delete-kernel" => bare(rpc.delete_kernel(soon(), word)).await,
        "create-with-image" => {
            bare(rpc.create_vm(soon(), CreateRequest { image_name: Some(word), ..create }, false)).await
        }
        "create-with-kernel" => {
            bare(rpc.create_vm(soon(), CreateRequest { kernel_name: Some(word), ..create }, false)).await
        }
        "register-with-kernel" => {
            let (name, source) = ("with-her-kernel".to_owned(), "x".to_owned());
            let request = StreamRequest::RegisterImage { name, source, kernel: Some(word) };
            bare(rpc.open_stream(soon(), request)).await
        }
        other => bail!("there is no call {other}"),
    }
}

/// Every attempt.
async fn attempts(targets: &Targets) -> Result<Vec<Attempt>> {
    let rpc = connect().await?;
    let mut all = Vec::new();
    for (word, twin) in words(&targets.vm) {
        for call in ON_A_VM {
            let (theirs, invented) =
                (on_a_vm(&rpc, call, word.clone()).await?, on_a_vm(&rpc, call, twin.clone()).await?);
            all.push(pair(format!("{call} {word}"), (theirs, &word), (invented, &twin)));
        }
    }
    let images = words(&targets.image).into_iter().flat_map(|pair| ON_AN_IMAGE.map(|call| (call, pair.clone())));
    let kernel = (targets.kernel.clone(), invented(&targets.kernel));
    let kernels = ON_A_KERNEL.map(|call| (call, kernel.clone()));
    for (call, (word, twin)) in images.chain(kernels) {
        let (theirs, invented) =
            (on_the_store(&rpc, call, word.clone()).await?, on_the_store(&rpc, call, twin.clone()).await?);
        all.push(pair(format!("{call} {word}"), (theirs, &word), (invented, &twin)));
    }
    let (job, twin) = (JobId(targets.given.job), JobId(u64::MAX / 3));
    let (job_word, twin_word) = (job.to_string(), twin.to_string());
    let watched = (bare(rpc.watch_job(soon(), job, 0)).await?, bare(rpc.watch_job(soon(), twin, 0)).await?);
    all.push(pair("watch-job".to_owned(), (watched.0, &job_word), (watched.1, &twin_word)));
    let cancelled = (bare(rpc.cancel_job(soon(), job)).await?, bare(rpc.cancel_job(soon(), twin)).await?);
    all.push(pair("cancel-job".to_owned(), (cancelled.0, &job_word), (cancelled.1, &twin_word)));

    all.push(ticket(&targets.given.ticket).await?);
    all.extend(without_words(&rpc, targets).await?);
    Ok(all)
}

/// The ways in which something may be named, each with one of the same form that nobody has.
fn words((id, name): &(String, String)) -> Vec<(String, String)> {
    let prefix: String = id.chars().take(12).collect();
    let qualified = format!("alice/{name}");
    [id.clone(), prefix, name.clone(), qualified].into_iter().map(|word| (word.clone(), invented(&word))).collect()
}

/// A word of the same form: every digit of an id is another one, and so is the last letter of a
/// name.
fn invented(word: &str) -> String {
    if word.len() >= 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return word.chars().map(|digit| if digit == 'f' { '0' } else { 'f' }).collect();
    }
    let mut text = word.to_owned();
    let last = if text.pop() == Some('q') { 'x' } else { 'q' };
    text.push(last);
    text
}

fn pair(what: String, theirs: (Result<(), ApiError>, &str), invented: (Result<(), ApiError>, &str)) -> Attempt {
    let said = |(answer, word): (Result<(), ApiError>, &str)| match answer {
        Ok(()) => (None, String::new()),
        Err(error) => (Some(error.code), format!("{} {}", error.message, error.hint).replace(word, "WORD")),
    };
    let (code, text) = said(theirs);
    let (twins_code, twins_text) = said(invented);
    let fault = if code.is_none() {
        Some("it was done".to_owned())
    } else if code == Some(ErrorCode::Limit) || code == Some(ErrorCode::Internal) {
        Some(format!("nobody has decided: {text}"))
    } else if (code, &text) != (twins_code, &twins_text) {
        Some(format!("told apart: {text} and {twins_text}"))
    } else {
        None
    };
    Attempt { what, fault }
}

/// Her ticket, shown by somebody else, gets what an invented one gets.
async fn ticket(ticket: &[u8; 32]) -> Result<Attempt> {
    let show = async |ticket: Ticket| -> Result<Vec<u8>> {
        let mut stream = UnixStream::connect(SOCKET).await?;
        transport::connect(&mut stream, Purpose::Stream).await?;
        stream.write_all(&ticket.0).await?;
        let mut told = Vec::new();
        match tokio::time::timeout(PATIENCE, stream.read_to_end(&mut told)).await? {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => bail!("read the stream: {error}"),
            _ => Ok(told),
        }
    };
    let (theirs, invented) = (show(Ticket(*ticket)).await?, show(Ticket([7; 32])).await?);
    let fault = (theirs != invented).then(|| format!("told apart: {theirs:?} and {invented:?}"));
    Ok(Attempt { what: "her ticket".to_owned(), fault })
}

/// Calls that name nothing, and must show or do nothing of hers.
async fn without_words(rpc: &DaemonClient, targets: &Targets) -> Result<Vec<Attempt>> {
    let told = |what: &str, fault: Option<String>| Attempt { what: what.to_owned(), fault };
    let mut all = Vec::new();
    for everyones in [false, true] {
        let seen = match rpc.list_vms(soon(), everyones, None).await? {
            Ok(page) => page.vms.iter().any(|vm| vm.id.to_string() == targets.vm.0),
            Err(error) => ensure_denied(&error)?,
        };
        all.push(told("list-vms", seen.then(|| "her VM is listed".to_owned())));
        let seen = match rpc.list_images(soon(), everyones, None).await? {
            Ok(page) => page.entries.iter().any(|image| image.owner == targets.uid),
            Err(error) => ensure_denied(&error)?,
        };
        all.push(told("list-images", seen.then(|| "her image is listed".to_owned())));
        let seen = match rpc.list_kernels(soon(), everyones, None).await? {
            Ok(page) => page.entries.iter().any(|kernel| kernel.owner == targets.uid),
            Err(error) => ensure_denied(&error)?,
        };
        all.push(told("list-kernels", seen.then(|| "her kernel is listed".to_owned())));
        let seen = match rpc.leaks(soon(), everyones).await? {
            Ok(leaks) => everyones || format!("{leaks:?}").contains(&targets.vm.0),
            Err(error) => ensure_denied(&error)?,
        };
        all.push(told("leaks", seen.then(|| "it was answered".to_owned())));
    }
    let jobs = rpc.list_jobs(soon(), None).await??.jobs;
    let seen = jobs.iter().any(|job| job.owner == targets.uid);
    all.push(told("list-jobs", seen.then(|| "her job is listed".to_owned())));
    let image = StreamRequest::ImportImage {
        name: "for-everybody".to_owned(),
        source: "-".to_owned(),
        build_size: None,
        shared: true,
        reference: None,
        pulled: false,
    };
    for (what, request) in [
        ("import-shared-image", image),
        ("import-shared-kernel", StreamRequest::ImportKernel { name: None, shared: true }),
    ] {
        let fault = match rpc.open_stream(soon(), request).await? {
            Ok(_) => Some("it was begun".to_owned()),
            Err(error) => {
                ensure_denied(&error)?;
                None
            }
        };
        all.push(told(what, fault));
    }
    Ok(all)
}

fn ensure_denied(error: &ApiError) -> Result<bool> {
    ensure!(error.code == ErrorCode::Denied, "an unexpected refusal: {error:?}");
    Ok(false)
}

/// As many calls at once as one connection may have.
pub(super) async fn burst(rpc: &DaemonClient) {
    let calls = (0..DAEMON_LIMITS.max_in_flight).map(|index| async move {
        match index % 4 {
            0 => drop(rpc.list_vms(soon(), true, None).await),
            1 => drop(rpc.doctor(soon()).await),
            2 => drop(rpc.show_vm(soon(), "x".repeat(60_000)).await),
            _ => drop(rpc.info(soon()).await),
        }
    });
    join_all(calls).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invented_word_has_the_form_and_is_another() {
        for word in ["0123456789ab", "victim", "alice/victimq", &"f".repeat(64)] {
            let twin = invented(word);
            assert!(twin != word && twin.len() == word.len(), "{word} {twin}");
            assert_eq!(twin.len() == 64, twin.len() >= 12 && !twin.contains('/') && twin.len() != 12);
        }
    }

    #[test]
    fn only_a_refusal_like_the_twins_is_no_fault() {
        let no = |code, text: &str| Err(ApiError::new(code, text.to_owned()));
        let told = |theirs, invented| pair(String::new(), (theirs, "web1"), (invented, "web2")).fault;
        let gone = ErrorCode::NotFound;
        assert_eq!(told(no(gone, "no VM web1"), no(gone, "no VM web2")), None);
        for (theirs, invented) in [
            (Ok(()), no(gone, "no VM web2")),
            (no(ErrorCode::Denied, "no VM web1"), no(gone, "no VM web2")),
            (no(gone, "web1 is alice's"), no(gone, "no VM web2")),
            (no(ErrorCode::Limit, "too many"), no(ErrorCode::Limit, "too many")),
        ] {
            assert!(told(theirs, invented).is_some());
        }
    }
}
