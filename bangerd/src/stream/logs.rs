//! A VM's console for a client, from the file: a chunk in memory, whatever its size.

use super::client::{Client, Sender, until_gone};
use banger_proto::stream::Frame;
use banger_vmm::console;
use banger_vmm::written::Written;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::sleep;

const CHUNK: usize = 32 * 1024;
/// A followed console is read this often at most, however often the guest writes.
const LOOK: Duration = Duration::from_millis(100);
/// What is searched for the beginning of the wanted lines: the file is not larger.
const SEARCH: u64 = 2 * console::CAP;

/// Sends the console from `tail` lines before its end, all of it when `None`; with `follow`, then
/// what is written until the VM is `gone` or the client goes, also by the next boots. Nothing is
/// sent any more once `not_theirs` is ready. A VM that never ran has an empty one.
///
/// # Errors
/// What the client's socket says.
pub async fn logs(
    stream: UnixStream,
    console: &Path,
    follow: bool,
    tail: Option<u32>,
    not_theirs: impl Future<Output = ()>,
    gone: impl Future<Output = ()>,
) -> io::Result<()> {
    let Client { mut from, mut to, .. } = Client::new(stream);
    let sending = async {
        let passed = tokio::select! {
            biased;
            () = not_theirs => None,
            passed = pass(console, follow, tail, gone, &mut to) => Some(passed),
        };
        match passed {
            Some(Ok(())) => to.last(&Frame::Exit(0)).await,
            Some(Err(error)) => to.failed(&format!("cannot read the console: {error}")).await,
            // A frame may have been cut in the middle: the end of the connection says it.
            None => Ok(()),
        }
    };
    tokio::select! {
        sent = sending => sent,
        () = until_gone(&mut from) => Ok(()),
    }
}

async fn pass(
    path: &Path,
    mut follow: bool,
    tail: Option<u32>,
    gone: impl Future<Output = ()>,
    to: &mut Sender,
) -> io::Result<()> {
    let mut gone = std::pin::pin!(gone);
    let mut reader = Reader { path: path.to_owned(), place: None, written: None };
    loop {
        let (back, bytes) = tokio::task::spawn_blocking(move || {
            let bytes = reader.next(tail);
            (reader, bytes)
        })
        .await
        .map_err(io::Error::other)?;
        reader = back;
        match bytes? {
            bytes if !bytes.is_empty() => to.bytes(&bytes, Frame::Output).await?,
            _ if !follow => return Ok(()),
            _ => match &mut reader.written {
                // What was written between the reading and this is read first.
                written @ None => *written = Some(written_after(path).await?),
                Some(written) => {
                    tokio::select! {
                        () = written.wait() => {}
                        // What is still there is the end.
                        () = &mut gone => follow = false,
                    }
                    reader.written = None;
                    sleep(LOOK).await;
                }
            },
        }
    }
}

async fn written_after(path: &Path) -> io::Result<Written> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Written::after(&path)).await.map_err(io::Error::other)
}

/// Reads on where it stopped, also when the file was emptied or replaced for another boot.
struct Reader {
    path: PathBuf,
    /// Inode and offset.
    place: Option<(u64, u64)>,
    /// Tells when there is more, once the end was reached.
    written: Option<Written>,
}

impl Reader {
    fn next(&mut self, tail: Option<u32>) -> io::Result<Vec<u8>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What appears later is new from its first byte.
                self.place.get_or_insert((0, 0));
                return Ok(Vec::new());
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let start = console::data_start(&file)?;
        let offset = match (self.place, tail) {
            (Some((inode, offset)), _) if inode == metadata.ino() && offset <= metadata.len() => offset.max(start),
            (None, Some(lines)) => console::lines_from_end(&file, lines, SEARCH)?,
            _ => start,
        };
        let mut bytes = vec![0; CHUNK];
        let read = file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        self.place = Some((metadata.ino(), offset + u64::try_from(read).unwrap_or(0)));
        Ok(bytes)
    }
}
