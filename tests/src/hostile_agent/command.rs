//! An agent that was opened as it should, and abuses what an agent may say on a command's
//! connection. It is the user's own command line that hears it.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use banger_proto::command::{Answer, FromGuest, MAX_PAYLOAD, Opening, PORT, ToGuest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// More than any command may say in a moment.
const MANY: usize = 100_000;

/// What is said after the command is there.
enum Trick {
    /// These bytes, so many times; then the end of a command.
    Bytes(&'static [u8], usize),
    /// Frames for ever: the command line listens until its user has enough.
    ForEver(&'static [u8]),
    /// The connection ends.
    Close,
}

/// By the word that is run in the VM; but for `nothing`, which is the control, the command line
/// must not say that the command ended well.
const TRICKS: &[(&str, Trick)] = &[
    ("nothing", Trick::Bytes(b"", 0)),
    ("command-closes", Trick::Close),
    ("command-unknown-frames", Trick::Bytes(&[99, 0, 0, 0, 0], MANY)),
    ("command-frames-of-the-other-side", Trick::Bytes(&[1, 0, 0, 0, 1, 0], MANY)),
    ("command-output-of-four-gigabytes", Trick::Bytes(&[19, 255, 255, 255, 255], MANY)),
    ("command-status-of-two-bytes", Trick::Bytes(&[21, 0, 0, 0, 2, 0, 0], 1)),
    ("command-credit-of-three-bytes", Trick::Bytes(&[18, 0, 0, 0, 3, 1, 1, 1], MANY)),
    ("command-credit-for-ever", Trick::ForEver(&[18, 0, 0, 0, 4, 255, 255, 255, 255])),
    ("command-starts-for-ever", Trick::ForEver(&[16, 0, 0, 0, 0])),
    ("command-empty-output-for-ever", Trick::ForEver(&[19, 0, 0, 0, 0])),
];

/// Their names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TRICKS.iter().map(|(name, _)| *name)
}

/// Serves one connection of the daemon's, for whatever port.
pub(super) fn serve(stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { talk(tokio::net::UnixStream::from_std(stream)?).await })
}

async fn talk(mut stream: tokio::net::UnixStream) -> io::Result<()> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await?);
    }
    if line != format!("CONNECT {PORT}\n").into_bytes() {
        return Ok(());
    }
    stream.write_all(b"OK 1073741824\n").await?;
    Opening::read(&mut stream).await?;
    Answer::Open.write(&mut stream).await?;
    let Some(ToGuest::Start(start)) = ToGuest::read(&mut stream).await? else { return Ok(()) };
    let word = start.words.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
    FromGuest::Started.write(&mut stream).await?;
    match TRICKS.iter().find(|(name, _)| word == *name).map(|(_, trick)| trick) {
        Some(Trick::Close) => return Ok(()),
        Some(Trick::Bytes(bytes, times)) => {
            for _ in 0..*times {
                stream.write_all(bytes).await?;
            }
        }
        Some(Trick::ForEver(bytes)) => {
            let many = bytes.repeat(MAX_PAYLOAD / bytes.len().max(1));
            loop {
                stream.write_all(&many).await?;
            }
        }
        None => {}
    }
    FromGuest::Exited(0).write(&mut stream).await?;
    // The host closes first.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    Ok(())
}
