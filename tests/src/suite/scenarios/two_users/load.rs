//! What one user can do to take the daemon from the others: calls without end, connections that say
//! nothing or a byte at a time, archives that are made to cost. Each is bounded in time.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use banger_proto::transport;
use banger_proto::wire::{Hello, Purpose};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::caller::{SOCKET, burst, connect};
use crate::suite::peer::Json;

/// Connections that one user opens and keeps.
const SILENT: usize = 1500;
/// Connections that call, at once.
const CALLERS: usize = 4;

/// The kinds of load; each goes on until its time is over, and tells how often it did what it does.
pub(super) const KINDS: [&str; 3] = ["flood", "silent", "drip"];

/// One kind of load.
pub(super) async fn play(kind: &str, until: Instant) -> Result<Json> {
    let count = match kind {
        "flood" => flood(until).await?,
        "silent" => silent(until).await?,
        "drip" => drip(until).await?,
        other => bail!("there is no load {other}"),
    };
    Ok(json!({ "count": count }))
}

/// Calls, as many at once as the daemon takes up.
async fn flood(until: Instant) -> Result<usize> {
    let mut count = 0;
    let mut clients = Vec::new();
    for _ in 0..CALLERS {
        clients.push(connect().await?);
    }
    while Instant::now() < until {
        futures::future::join_all(clients.iter().map(burst)).await;
        count += CALLERS;
    }
    Ok(count)
}

/// Connections that say nothing; one that is closed is opened again.
async fn silent(until: Instant) -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most).context("allow many descriptors")?;
    let mut opened = 0;
    while Instant::now() < until {
        let mut held = Vec::with_capacity(SILENT);
        while held.len() < SILENT && Instant::now() < until {
            // A full queue of the socket: others wait there too, until the daemon has looked at
            // them.
            match tokio::time::timeout(Duration::from_secs(1), UnixStream::connect(SOCKET)).await {
                Ok(Ok(stream)) => held.push(stream),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        opened += held.len();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(opened)
}

/// Connections that say hello, announce the longest frame, and send it a byte at a time.
async fn drip(until: Instant) -> Result<usize> {
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(SOCKET).await?;
        if transport::connect(&mut stream, Purpose::Calls).await.is_ok() {
            let _ = stream.write_all(&65_536_u32.to_be_bytes()).await;
            held.push(stream);
        }
        let mut half = UnixStream::connect(SOCKET).await?;
        let hello = Hello::ours(Purpose::Calls).encode();
        let _ = half.write_all(hello.get(..3).unwrap_or_default()).await;
        held.push(half);
    }
    let opened = held.len();
    while Instant::now() < until {
        for stream in &mut held {
            let _ = stream.write_all(&[0]).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(opened)
}

/// Archives that cost whoever believes them. None of them is an image.
pub(super) const ARCHIVES: [&str; 3] = ["index-of-a-million", "nested", "long-header"];

/// Writes one into a file.
pub(super) fn archive(kind: &str, path: &Path) -> Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(path).with_context(|| path.display().to_string())?));
    match kind {
        "index-of-a-million" => {
            let one = r#"{"mediaType":"a","digest":"b","size":1},"#;
            let index = format!(r#"{{"schemaVersion":2,"manifests":[{}{{}}]}}"#, one.repeat(1_000_000));
            file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            file(&mut tar, "index.json", index.as_bytes())?;
        }
        "nested" => {
            file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            file(&mut tar, "index.json", "[".repeat(1_000_000).as_bytes())?;
        }
        "long-header" => {
            // A PAX header (POSIX 1003.1-2008, pax) with a path of 64 MiB.
            let path = "p/".repeat(32 << 20);
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::XHeader);
            let record = format!(" path={path}\n");
            let length = record.len() + 8;
            let record = format!("{length}{record}");
            header.set_size(record.len() as u64);
            header.set_cksum();
            tar.append(&header, record.as_bytes())?;
            file(&mut tar, "etc/os-release", b"ID=x\n")?;
        }
        other => bail!("there is no archive {other}"),
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn file<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes).with_context(|| format!("write {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_header_says_its_own_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        archive("long-header", &path).unwrap();
        let mut tar = tar::Archive::new(File::open(&path).unwrap());
        let mut entries = tar.entries().unwrap();
        let entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path_bytes().len(), 64 << 20);
    }
}
