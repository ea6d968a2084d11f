//! A blob from a registry into the cache, however often the connection is cut.

use super::cache::{Begun, Cache, Partial};
use super::endpoint::{Endpoint, turns};
use super::fault::{Fault, Patience};
use super::http::Answer;
use super::manifest::{ACCEPTED, Blob};
use crate::error::explained;
use anyhow::Context as _;
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_RANGE};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};

/// So many new bytes are progress: what failed before them is forgotten.
const PROGRESS: u64 = 1 << 20;

/// What is to be seen of it.
pub(super) trait Watch {
    /// So much has arrived.
    fn at(&self, bytes: u64);
    /// Something that a person may want to know.
    fn say(&self, text: &str);
}

/// What a blob is to a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Manifest,
    Blob,
}

/// The blob, verified and at its beginning. Dropped in the middle, it leaves a partial file for the
/// next attempt, unless the disk is full.
///
/// # Errors
/// Of the last endpoint that was tried, or of the disk.
pub(super) async fn fetch(
    endpoints: &[Endpoint],
    cache: &Cache,
    part: Part,
    blob: &Blob,
    patience: &Patience,
    watch: &dyn Watch,
) -> anyhow::Result<File> {
    let waiting = || watch.say(&format!("waiting for another banger that downloads {}", short(blob)));
    let mut partial = match cache.begin(blob, waiting).await? {
        Begun::Here(file) => {
            watch.at(blob.size);
            return Ok(file);
        }
        Begun::Missing(partial) => partial,
    };
    let mut last = anyhow::anyhow!("there is no registry to ask");
    for turn in turns(endpoints, patience) {
        let fetched = from(turn.endpoint, &mut partial, part, blob, &turn.patience, watch).await;
        turn.endpoint.ended(fetched.as_ref().err());
        match fetched {
            Ok(()) => return partial.finish().await,
            Err(fault) if is_full(&fault.error) => {
                partial.discard();
                return Err(fault.error);
            }
            Err(fault) if turn.counts => last = fault.error.context(format!("cannot fetch {}", short(blob))),
            Err(_) => {}
        }
    }
    Err(last)
}

fn is_full(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| Some(cause.downcast_ref::<std::io::Error>()?.kind());
    error.chain().filter_map(kind).any(|kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

fn short(blob: &Blob) -> String {
    format!("sha256:{:.12}", blob.digest.to_string())
}

async fn from(
    endpoint: &Endpoint,
    partial: &mut Partial,
    part: Part,
    blob: &Blob,
    patience: &Patience,
    watch: &dyn Watch,
) -> Result<(), Fault> {
    let (mut failed, mut counted) = (0, 0);
    loop {
        let (mut had, mut state) = partial.so_far().await.map_err(Fault::never)?;
        if had > blob.size {
            partial.clear().map_err(disk)?;
            (had, state) = (0, Sha256::new());
        }
        watch.at(had);
        let fault = match rest(endpoint, partial, part, blob, (had, state), watch).await {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        let has = partial.file.metadata().map_err(disk)?.len();
        if has >= counted + PROGRESS {
            failed = 0;
            counted = has;
        }
        failed += 1;
        let Some(pause) = patience.pause(failed, &fault) else { return Err(fault) };
        watch.say(&fault.waits(pause));
        tokio::time::sleep(pause).await;
    }
}

/// One request, for what is missing.
async fn rest(
    endpoint: &Endpoint,
    partial: &mut Partial,
    part: Part,
    blob: &Blob,
    (mut has, mut state): (u64, Sha256),
    watch: &dyn Watch,
) -> Result<(), Fault> {
    let resumed = has > 0;
    if has < blob.size {
        let (folder, accepted) = match part {
            Part::Manifest => ("manifests", ACCEPTED),
            Part::Blob => ("blobs", "application/octet-stream"),
        };
        let mut answer = endpoint.get(&format!("{folder}/sha256:{}", blob.digest), accepted, has).await?;
        match answer.status {
            StatusCode::NOT_FOUND => {
                let name = endpoint.name();
                if blob.foreign {
                    return Err(Fault::never(explained(
                        format!("{name}: it is not distributed with the image (a foreign layer)"),
                        "banger takes no layers from other places; choose an image without such layers",
                    )));
                }
                return Err(Fault::never(anyhow::anyhow!("{name}: the manifest names it, and it is not there")));
            }
            StatusCode::PARTIAL_CONTENT if begins_at(&answer, has) => {}
            StatusCode::OK => {
                // From the beginning: not every registry knows ranges.
                partial.clear().map_err(disk)?;
                (has, state) = (0, Sha256::new());
            }
            _ => {
                partial.clear().map_err(disk)?;
                return Err(Fault::soon(anyhow::anyhow!(
                    "{}: it does not resume where we asked it to",
                    endpoint.name()
                )));
            }
        }
        if answer.header(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Fault::never(anyhow::anyhow!(
                "{}: it sent an encoding that we did not ask for",
                endpoint.name()
            )));
        }
        while let Some(data) = answer.next().await.map_err(|fault| fault.context(endpoint.name().to_owned()))? {
            if has + data.len() as u64 > blob.size {
                partial.clear().map_err(disk)?;
                return Err(Fault::never(anyhow::anyhow!(
                    "{}: it is longer than the {} bytes that its manifest says",
                    endpoint.name(),
                    blob.size
                )));
            }
            partial.file.write_all(&data).map_err(disk)?;
            state.update(&data);
            has += data.len() as u64;
            watch.at(has);
        }
        if has < blob.size {
            let why = format!("{}: it ended after {has} of {} bytes", endpoint.name(), blob.size);
            return Err(Fault::soon(anyhow::anyhow!(why)));
        }
    }
    if state.finalize()[..] == blob.digest.as_bytes()[..] {
        return Ok(());
    }
    partial.clear().map_err(disk)?;
    let error = anyhow::anyhow!("{}: what arrived has another digest", endpoint.name());
    // The first part may be from another mirror, or from a disk that lies.
    Err(if resumed { Fault::soon(error) } else { Fault::never(error) })
}

/// `Content-Range: bytes 5-9/10` (RFC 9110 section 14.4).
fn begins_at(answer: &Answer, has: u64) -> bool {
    let range = answer.header(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse::<u64>().ok()) == Some(has) && has > 0
}

/// A small blob, whole.
///
/// # Errors
/// Of reading.
pub(super) fn read(file: &mut File, size: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).context("cannot read the cache")?;
    Ok(bytes)
}

fn disk(error: std::io::Error) -> Fault {
    Fault::never(anyhow::Error::new(error).context("cannot write to the cache"))
}
