//! What an agent says about its guest when it is asked: memory, disks, who listens.
//!
//! The answer on a connection of [`crate::command::Purpose::Inside`]: length (4 bytes, big endian),
//! then one JSON object, at most [`MAX_ANSWER`] bytes. JSON, because the guest may be of another
//! release: unknown fields are ignored, missing ones are empty. All of it is the guest's word, and
//! only its user reads it.

use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest answer, bytes.
pub const MAX_ANSWER: usize = 512 * 1024;
/// The most listeners that are told.
pub const MAX_LISTENERS: usize = 1024;

/// A guest, seen from inside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    /// Since the guest's boot.
    pub uptime_seconds: u64,
    /// Processes that ran or waited for a disk, on average over 1, 5 and 15 minutes
    /// (proc_loadavg(5)).
    pub load: [f64; 3],
    /// Processes that there are.
    pub processes: u64,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes that programs can have without swapping (proc_meminfo(5), MemAvailable).
    pub memory_available: u64,
    /// The root disk.
    pub root: Filled,
    /// The disk on `/root`; `None` when none is mounted there.
    pub work: Option<Filled>,
    /// Who listens on the guest's network, by port.
    pub listeners: Vec<Listener>,
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filled {
    /// Bytes.
    pub total: u64,
    /// Bytes that users may still write.
    pub free: u64,
}

/// A socket on which somebody waits for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where it listens; `0.0.0.0` and `::` are everywhere.
    pub address: String,
    /// The port.
    pub port: u16,
    /// The process, if the agent has found it.
    pub pid: Option<u32>,
    /// Its name (`/proc/PID/comm`).
    pub program: String,
}

impl Inside {
    /// Sends it.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn write<W: AsyncWrite + Unpin>(&self, to: &mut W) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_ANSWER);
        to.write_all(&length.ok_or(io::ErrorKind::InvalidData)?.to_be_bytes()).await?;
        to.write_all(&json).await
    }

    /// Reads one.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` when it is something else.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Self> {
        let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
        if length > MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; length];
        from.read_exact(&mut json).await?;
        Ok(serde_json::from_slice(&json)?)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_back_and_what_is_none_is_refused() {
        let listener =
            Listener { protocol: "tcp".into(), address: "::".into(), port: 80, pid: Some(7), program: "x".into() };
        let inside =
            Inside { uptime_seconds: 9, work: Some(Filled::default()), listeners: vec![listener], ..Inside::default() };
        let mut bytes = Vec::new();
        inside.write(&mut bytes).await.unwrap();
        assert_eq!(Inside::read(&mut bytes.as_slice()).await.unwrap(), inside);
        for bad in [&b""[..], &[0, 0, 0, 9, b'{'], &[255, 255, 255, 255], &[0, 0, 0, 1, b'x']] {
            assert!(Inside::read(&mut &*bad).await.is_err(), "{bad:?}");
        }
        // Of an agent that knows less, or more.
        let mut older = vec![0, 0, 0, 9];
        older.extend(br#"{"new":1}"#);
        assert_eq!(Inside::read(&mut older.as_slice()).await.unwrap(), Inside::default());
    }
}
