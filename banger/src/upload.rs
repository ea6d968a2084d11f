//! Imports: the user's files, read as the user, go to the daemon over a stream; the daemon's job
//! does the rest.

use crate::client::{Client, answer, soon};
use crate::error::explained;
use crate::interrupt::Interrupts;
use crate::job::{self, Ended, OnInterrupt};
use crate::progress::{Detail, Progress};
use banger_proto::stream::{self, Frame, MAX_PAYLOAD, StreamRequest};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Writes all bytes of a source; run on a thread of its own.
pub(crate) type WriteAll = Box<dyn FnOnce(&mut dyn Write) -> anyhow::Result<()> + Send>;

/// What is sent: something that writes all bytes, and how many these are when that is known before.
pub(crate) struct Source {
    pub(crate) total: Option<u64>,
    pub(crate) write: WriteAll,
}

/// Sends a source and follows the job that works on it.
///
/// # Errors
/// Why a file of ours could not be read, why the daemon's job failed, or a lost connection.
pub(crate) async fn run(
    client: &Client,
    request: StreamRequest,
    source: Source,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Ended> {
    let mut progress = Progress::new(Detail::Live);
    let (stream, opened) = client.stream(request).await?;
    let Some(job) = opened.job else {
        return Err(anyhow::anyhow!("bangerd opened an upload without a job"));
    };
    let (total, sent) = (source.total, Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&sent);
    let mut upload = pin!(send(stream, source, Arc::clone(&sent)));
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let uploading = async {
        loop {
            tokio::select! {
                done = &mut upload => return done,
                _ = ticks.tick() => progress.sent(counter.load(Ordering::Relaxed), total),
                status = interrupts.next() => return Ok(Sent::Interrupted(status)),
            }
        }
    };
    match uploading.await {
        // A refusal is the job's to explain, and so is what came of the bytes.
        Ok(Sent::All | Sent::Refused) => job::follow(client, job, &mut progress, interrupts, OnInterrupt::Cancel).await,
        Ok(Sent::Interrupted(status)) => {
            progress.say("interrupted: undoing what was done (interrupt again to leave that to bangerd)");
            answer(client.rpc.cancel_job(soon(), job)).await?;
            drop(job::follow(client, job, &mut progress, interrupts, OnInterrupt::Cancel).await);
            Ok(Ended::Interrupted(status, None))
        }
        Err(error) => {
            answer(client.rpc.cancel_job(soon(), job)).await?;
            // The job can only say that it was cancelled, or why it gave up; ours came first.
            drop(job::follow(client, job, &mut progress, interrupts, OnInterrupt::Cancel).await);
            Err(error)
        }
    }
}

/// How an upload ended.
enum Sent {
    All,
    /// The daemon wants no more of it.
    Refused,
    Interrupted(u8),
}

async fn send(stream: UnixStream, source: Source, sent: Arc<AtomicU64>) -> anyhow::Result<Sent> {
    let (mut from, mut to) = stream.into_split();
    // A few pieces ahead: the file is read while the socket is written, and no faster.
    let (pieces, mut queue) = mpsc::channel::<Vec<u8>>(4);
    let (tell, done) = oneshot::channel();
    std::thread::spawn(move || {
        let mut writer = BufWriter::with_capacity(MAX_PAYLOAD, Pieces(pieces));
        let read = (source.write)(&mut writer);
        drop(tell.send(read.and_then(|()| Ok(writer.flush()?))));
    });
    let writing = async {
        while let Some(piece) = queue.recv().await {
            let length = piece.len() as u64;
            if stream::write(&mut to, &Frame::Input(piece)).await.is_err() {
                // The daemon closed; what it said before is read below.
                return Ok(());
            }
            sent.fetch_add(length, Ordering::Relaxed);
        }
        done.await.unwrap_or_else(|_| Err(anyhow::anyhow!("reading ended too early")))?;
        // When this fails, the daemon closed; what it said before is read below.
        drop(stream::write(&mut to, &Frame::InputEnd).await);
        anyhow::Ok(())
    };
    let reading = async {
        match stream::read(&mut from).await {
            Ok(Some(Frame::Exit(_))) => Ok(Sent::All),
            // Closed without a word: the job has ended, or the daemon; either is heard of by asking
            // for the job.
            Ok(Some(Frame::Failed(_)) | None) | Err(_) => Ok(Sent::Refused),
            Ok(Some(_)) => Err(anyhow::anyhow!("bangerd answered an upload with another frame")),
        }
    };
    let (mut writing, mut reading) = (pin!(writing), pin!(reading));
    tokio::select! {
        biased;
        answer = &mut reading => answer,
        written = &mut writing => {
            written?;
            reading.await
        }
    }
}

/// The thread's end of the queue.
struct Pieces(mpsc::Sender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..MAX_PAYLOAD).unwrap_or(bytes);
        self.0.blocking_send(piece.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a file of the user's. The caller says which one it was.
///
/// # Errors
/// With what to do when it is not readable.
pub(crate) fn open(path: &Path, denied: &str) -> anyhow::Result<File> {
    File::open(path).map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::PermissionDenied { denied } else { "" };
        explained(format!("it cannot be read: {error}"), hint)
    })
}
