//! Frames that are none, deadlines, crowds of connections, and a peer that does not wait for its
//! answer.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_policy::reach::{Mode, Reach};
use banger_proto::helper::{DiskIdentity, HelperRequest, HelperResponse, TapIdentity};
use banger_proto::transport::HELPER_LIMITS;
use banger_proto::wire::{HELLO_BYTES, Hello, PROTOCOL_VERSION, Purpose, ToServer, WireError, decode, encode};
use serde_json::json;

use super::in_the_daemons_place;
use crate::suite::list::Outcome;
use crate::suite::peer::connection::{Connection, body, framed, is_end};
use crate::suite::peer::helper::reply_word;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::peer::{Json, vm};
use crate::suite::scene::Scene;

const CONNECTS: u32 = 1_500;
/// More records than this would be a flood.
const RECORDS: usize = 300;
const OWNER: u32 = 1001;

pub(super) fn malformed(scene: &mut Scene) -> Result<Outcome> {
    in_the_daemons_place(scene, "malformed 6")
}

pub(super) fn every_prefix(scene: &mut Scene) -> Result<Outcome> {
    in_the_daemons_place(scene, "malformed 1")
}

/// Also in the journal a crowd takes little room: it has a limit, behind which decisions would be
/// lost.
pub(super) fn crowds(scene: &mut Scene) -> Result<Outcome> {
    let outcome = in_the_daemons_place(scene, "crowds")?;
    let records = scene.journal("banger-priv.service")?.matches("op=").count();
    scene.measured("records of the crowd", records);
    ensure!((1..RECORDS).contains(&records), "{records} records of {CONNECTS} connections");
    Ok(outcome)
}

/// The daemon that went away asks again and gets the same.
pub(super) fn gone_mid_reply(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        let told = super::played(scene, &crate::suite::peer::place::Who::daemon(), "gone-mid-reply")?;
        scene.measured("calls left before their answer", &told);
        Ok(())
    })
}

/// The roles of this file.
pub(in crate::suite) fn play(words: &[&str]) -> Result<Option<Json>> {
    Ok(Some(match words {
        ["malformed", step] => frames(step.parse()?)?,
        ["crowds"] => crowd()?,
        ["gone-mid-reply"] => leave()?,
        _ => return Ok(None),
    }))
}

/// One request of every operation.
pub(super) fn requests() -> Result<Vec<HelperRequest>> {
    let vm = vm(200)?;
    let tap = TapIdentity { tap_device: vm.tap_name(), generation: 1 };
    let disk = DiskIdentity {
        dm_name: vm.dm_name(),
        dm_dev: "/dev/dm-0".to_owned(),
        base_loop: "/dev/loop0".to_owned(),
        cow_loop: "/dev/loop1".to_owned(),
        generation: 1,
    };
    let image = banger_policy::Digest::from_bytes([0x11; 32])?;
    Ok(vec![
        HelperRequest::AcquireTap { vm, owner: OWNER, address_index: 200 },
        HelperRequest::ReleaseTap { vm, tap },
        HelperRequest::CreateDisk { vm, owner: OWNER, image, root_bytes: 128 << 20 },
        HelperRequest::AttachDisk { vm, owner: OWNER },
        HelperRequest::DetachDisk { vm, disk },
        HelperRequest::DiscardDisk { vm },
        HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) },
        HelperRequest::SetNetwork { vm, reach: Reach::default() },
        HelperRequest::BindProcess { vm, pid: 1 },
        HelperRequest::ProcessRunning { vm, pid: 1 },
        HelperRequest::Identity { vm },
        HelperRequest::List { after: Some(vm) },
        HelperRequest::Release { vm },
        HelperRequest::GrowDisk { vm, owner: OWNER, root_bytes: 256 << 20 },
    ])
}

/// The helper still serves.
pub(super) fn alive() -> Result<()> {
    let mut connection = Connection::open().context("the helper does not take a connection any more")?;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        connection.call(1, HelperRequest::Identity { vm: vm(251)? })?;
        let reply = connection.reply()?.context("the helper has closed an honest connection")?;
        match reply_word(&reply)?.as_str() {
            "NotYours" => return Ok(()),
            // A flood has emptied the bucket; it fills again.
            "Rate" if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            other => anyhow::bail!("an honest call was answered with {other}"),
        }
    }
}

/// Sends this on a connection of its own after the hello: the helper must close it without an
/// answer.
fn closes(what: &str, bytes: &[u8]) -> Result<()> {
    let tried = || {
        let mut connection = Connection::open()?;
        match connection.write(bytes) {
            Err(error) if !is_end(&error) => return Err(error),
            _ => {}
        }
        connection.until_closed()
    };
    let rest = tried().with_context(|| what.to_owned())?;
    ensure!(rest.is_empty(), "{what}: answered with {} bytes", rest.len());
    Ok(())
}

/// Of the prefixes only every so many; the helper's own tests have all of them, and the suite on
/// request.
fn frames(step: usize) -> Result<Json> {
    let max = u32::try_from(HELPER_LIMITS.max_frame)?;
    let mut prefixes = 0;
    for request in requests()? {
        let whole = body(1, 1000, request)?;
        for cut in (0..whole.len()).step_by(step) {
            closes("a prefix in a frame of its own", &framed(whole.get(..cut).unwrap_or_default()))?;
            prefixes += 1;
        }
        closes("a trailing byte", &framed(&[&whole[..], &[0]].concat()))?;
    }
    alive().context("after prefixes")?;
    let cut = frames_cut_off()?;
    for length in [max + 1, 1 << 24, 1 << 31, u32::MAX] {
        closes("a length beyond the limit", &length.to_be_bytes())?;
        closes("and with bytes behind it", &[&length.to_be_bytes()[..], &[0; 4096]].concat())?;
    }
    closes("a frame without anything", &0_u32.to_be_bytes())?;
    closes("the largest frame, of zeros", &framed(&vec![0; HELPER_LIMITS.max_frame]))?;
    closes("the largest frame, of ones", &framed(&vec![0xff; HELPER_LIMITS.max_frame]))?;
    alive().context("after lengths")?;
    let claims = claims()?;
    alive().context("after claims")?;
    let hellos = hellos()?;
    alive().context("after hellos")?;
    let deadlines = deadlines()?;
    let duplicates = duplicates()?;
    alive()?;
    Ok(json!({
        "prefixes refused": prefixes,
        "frames cut off by the peer's end": cut,
        "claims and unknown operations refused": claims,
        "hellos refused": hellos,
        "deadlines answered": deadlines,
        "answers to duplicate ids": duplicates,
    }))
}

/// The peer's end in the middle of a frame, and of its length.
fn frames_cut_off() -> Result<usize> {
    let whole = framed(&body(1, 1000, HelperRequest::List { after: None })?);
    for cut in 0..whole.len() {
        let mut connection = Connection::open()?;
        connection.write(whole.get(..cut).unwrap_or_default())?;
        connection.socket().shutdown(Shutdown::Write)?;
        ensure!(connection.until_closed()?.is_empty(), "an answer to half a frame");
    }
    Ok(whole.len())
}

/// Vectors and texts that claim more than there is, and operations that there are not.
fn claims() -> Result<usize> {
    let vm = vm(200)?;
    let tap = HelperRequest::ReleaseTap { vm, tap: TapIdentity { tap_device: String::new(), generation: 1 } };
    let whole = body(1, 100, tap)?;
    // The text's length is the byte before the last one, the generation; 251, 252 and 253 announce
    // longer numbers.
    let head = whole.get(..whole.len() - 2).unwrap_or_default();
    let mut claims: Vec<Vec<u8>> = Vec::new();
    for claimed in [1 << 62, u64::MAX, 1 << 32, 16 * 1024 + 1] {
        claims.push([head, &[253], &claimed.to_le_bytes()].concat());
    }
    claims.push([head, &[252], &u32::MAX.to_le_bytes()].concat());
    claims.push([head, &[254]].concat());
    claims.push([head, &[255]].concat());
    claims.push([head, &[2, 0xff, 0xfe, 1]].concat());
    for operation in [13, 14, 100, 250] {
        claims.push(vec![0, 1, 100, operation]);
    }
    claims.push([&[0, 1, 100, 251][..], &u16::MAX.to_le_bytes()].concat());
    claims.push(vec![2, 1]);
    claims.push(vec![250, 1, 1, 1]);
    // An id of zeros is no id, so it is no frame either.
    let zero = whole.iter().position(|byte| *byte == 200).context("no id in the frame")?;
    let mut zeros = whole.clone();
    zeros.iter_mut().skip(zero).take(32).for_each(|byte| *byte = 0);
    claims.push(zeros);
    for claim in &claims {
        ensure!(decode::<ToServer<HelperRequest>>(claim, HELPER_LIMITS.max_frame).is_err(), "{claim:?} is a frame");
        closes("a claim", &framed(claim))?;
    }
    Ok(claims.len())
}

fn hellos() -> Result<usize> {
    let ours = Hello::ours(Purpose::Calls).encode();
    let mut wrong: Vec<Vec<u8>> = Vec::new();
    for version in [0, PROTOCOL_VERSION + 1, u16::MAX] {
        let hello = Hello { version, ..Hello::ours(Purpose::Calls) };
        wrong.push(hello.encode().to_vec());
    }
    wrong.push(Hello::ours(Purpose::Stream).encode().to_vec());
    for (at, value) in [(0, b'X'), (6, 2), (6, 255), (7, 1), (8, b'\n'), (31, b'x')] {
        let mut hello = ours.to_vec();
        if let Some(byte) = hello.get_mut(at) {
            *byte = value;
        }
        wrong.push(hello);
    }
    wrong.push(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    wrong.push(vec![0; HELLO_BYTES]);
    wrong.push(vec![0xff; 4096]);
    // A request behind it must not be taken up.
    let behind = framed(&body(7, 1000, HelperRequest::List { after: None })?);
    for hello in &wrong {
        let mut connection = Connection::silent()?;
        match connection.write(&[&hello[..], &behind].concat()) {
            Err(error) if !is_end(&error) => return Err(error.into()),
            _ => {}
        }
        let answer = connection.until_closed()?;
        ensure!(answer.len() <= HELLO_BYTES, "{hello:?} was answered with {} bytes", answer.len());
    }
    let mut older = Connection::silent()?;
    older.write(wrong.first().map(Vec::as_slice).unwrap_or_default())?;
    let said = older.until_closed()?;
    let said: [u8; HELLO_BYTES] = said.try_into().ok().context("no hello for an older client")?;
    ensure!(Hello::decode(&said).is_ok(), "the helper does not say its own version");
    ensure!(matches!(
        Hello::decode(&Hello { version: 0, ..Hello::ours(Purpose::Calls) }.encode()),
        Err(WireError::Version { .. })
    ));
    for cut in 0..HELLO_BYTES {
        let mut connection = Connection::silent()?;
        connection.write(ours.get(..cut).unwrap_or_default())?;
        connection.socket().shutdown(Shutdown::Write)?;
        ensure!(connection.until_closed()?.is_empty(), "an answer to a hello cut off at {cut}");
    }
    Ok(wrong.len() + HELLO_BYTES)
}

/// Any deadline is clamped: answered, or (zero) perhaps not taken up, and the connection lives.
fn deadlines() -> Result<usize> {
    let two_years = 63_072_000;
    let all = [0, 1, 1 << 31, two_years, u32::MAX - 1, u32::MAX];
    for timeout_ms in all {
        let mut connection = Connection::open()?;
        connection.frame(&body(9, timeout_ms, HelperRequest::Identity { vm: vm(251)? })?)?;
        if timeout_ms > 1 {
            let reply = connection.reply()?.context("closed")?;
            ensure!(reply.id == 9 && reply_word(&reply)? == "NotYours", "deadline {timeout_ms}: {reply:?}");
        }
        connection.call(10, HelperRequest::Identity { vm: vm(251)? })?;
        loop {
            let reply = connection.reply()?.with_context(|| format!("closed after deadline {timeout_ms}"))?;
            if reply.id == 10 {
                ensure!(reply_word(&reply)? == "NotYours", "after deadline {timeout_ms}: {reply:?}");
                break;
            }
        }
    }
    Ok(all.len())
}

/// Calls of one id at once, and cancellations of what is not there: as the helper likes, but it
/// lives and answers the next.
fn duplicates() -> Result<usize> {
    let mut connection = Connection::open()?;
    let call = framed(&body(5, 1000, HelperRequest::List { after: None })?);
    let cancel = encode(&ToServer::<HelperRequest>::Cancel { id: 99 }, HELPER_LIMITS.max_frame)?;
    let flood = std::iter::repeat_n(call, 20).chain(std::iter::repeat_n(framed(&cancel), 20)).collect::<Vec<_>>();
    match connection.write(&flood.concat()) {
        Err(error) if !is_end(&error) => return Err(error.into()),
        _ => {}
    }
    connection.socket().shutdown(Shutdown::Write)?;
    let mut answers = 0;
    loop {
        match connection.reply() {
            Ok(Some(reply)) => {
                ensure!(reply.id == 5, "an answer to {}", reply.id);
                answers += 1;
            }
            Ok(None) => return Ok(answers),
            Err(error) if is_end(&error) => return Ok(answers),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Many connections, silent ones and half-open ones, of the process that is admitted: the last one
/// is served, and none for longer than its hello may take.
fn crowd() -> Result<Json> {
    let started = Instant::now();
    let mut half_open = Connection::open()?;
    half_open.write(&[0, 0])?;
    let mut kept = Vec::new();
    for number in 0..CONNECTS {
        match Connection::silent() {
            Ok(mut connection) => {
                match number % 3 {
                    0 => {}
                    1 => drop(connection.write(b"BNGR")),
                    _ => drop(connection.write(&Hello::ours(Purpose::Calls).encode())),
                }
                if number % 5 == 0 {
                    kept.push(connection);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).with_context(|| format!("connection {number}")),
        }
    }
    let crowded = started.elapsed();
    alive().context("after the crowd")?;
    // A connection of the same process takes the place of its first one, so all of these have been
    // let go.
    for connection in &mut kept {
        connection.until_closed().context("a connection of the crowd is still open")?;
    }
    half_open.until_closed().context("the half-open connection is still open")?;
    alive()?;
    Ok(
        json!({ "connections": CONNECTS, "kept open by the peer": kept.len(), "seconds of the crowd": crowded.as_secs() }),
    )
}

/// Asks and is gone before the answer; asks again and gets what an undisturbed client would have
/// got.
fn leave() -> Result<Json> {
    let vm = vm(201)?;
    let acquire = || HelperRequest::AcquireTap { vm, owner: OWNER, address_index: 201 };
    let mut rounds = 0;
    for _ in 0..20 {
        let mut connection = Connection::open()?;
        connection.call(1, acquire())?;
        drop(connection);
        let first = again(acquire())?;
        let HelperResponse::AcquireTap(Ok(first)) = first else { anyhow::bail!("no tap: {first:?}") };
        let second = again(acquire())?;
        let same = matches!(&second, HelperResponse::AcquireTap(Ok(tap)) if *tap == first);
        ensure!(same, "another answer to the same question: {first:?} and {second:?}");
        let mut connection = Connection::open()?;
        connection.call(1, HelperRequest::Release { vm })?;
        drop(connection);
        ensure!(reply_of(HelperRequest::Release { vm })? == "Ok", "a second release");
        ensure!(reply_of(HelperRequest::Identity { vm })? == "NotYours", "it is still held");
        rounds += 2;
    }
    Ok(rounds.into())
}

fn again(request: HelperRequest) -> Result<HelperResponse> {
    let mut connection = Connection::open()?;
    connection.call(2, request)?;
    Ok(connection.reply()?.context("closed")?.body?)
}

fn reply_of(request: HelperRequest) -> Result<String> {
    crate::suite::peer::helper::word(&again(request)?)
}
