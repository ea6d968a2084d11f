//! `vm cp`: files and folders to a VM, from a VM, and from one VM to another.
//!
//! As with cp(1), a folder as the target gets the source below it, and another name is the copy's
//! name. `-` is a tar stream.

mod words;

use self::words::{End, base_name, is_on_the_work_disk, not_into_itself, parse, place, with_a_name};
use crate::client::{Client, answer, soon};
use crate::error::explained;
use crate::input;
use crate::interrupt::Interrupts;
use crate::output::{self, Streams, note};
use crate::progress::{Detail, Progress};
use crate::remote::{self, Guest, Ran};
use crate::sessions;
use anyhow::Context as _;
use banger_files::{COMMAND, Kind, Limits, Look, Packer, Unpacked, open_folder, unpack_named};
use banger_policy::lifecycle::State;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// Of a tar stream, bytes; the first one of an empty archive is zeros.
const BLOCK: u64 = 512;

pub(super) async fn cp(from: &OsStr, to: &OsStr) -> anyhow::Result<u8> {
    let what = format!("cannot copy {} to {}", from.display(), to.display());
    let ends = (parse(from).with_context(|| what.clone())?, parse(to).with_context(|| what.clone())?);
    if !matches!(ends, (End::Vm(..), _) | (_, End::Vm(..))) {
        return Err(explained("neither is in a VM", "name a file in a VM as VM:PATH")).context(what);
    }
    if matches!(ends, (End::Vm(..), End::Stream)) && output::is_terminal() {
        let hint = "pass it on, such as: banger vm cp VM:PATH - | tar -t";
        return Err(explained("a tar stream with a guest's bytes is not for a terminal", hint)).context(what);
    }
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let copied = tokio::select! {
        done = copy(&client, ends) => done,
        status = interrupts.next() => return Ok(status),
    };
    copied.context(what).map(|()| 0)
}

async fn copy(client: &Client, ends: (End, End)) -> anyhow::Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let progress = Progress::new(Detail::Live);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let copying = async {
        match ends {
            (End::Host(from), End::Vm(vm, path)) => {
                let guest = guest(client, vm).await?;
                to_guest(&guest, &from, &path, Arc::clone(&count)).await
            }
            (End::Stream, End::Vm(vm, path)) => from_input(&guest(client, vm).await?, &path, &count).await,
            (End::Vm(vm, path), End::Host(to)) => {
                from_guest(&source(client, vm, &path).await?, &path, &to, &count).await
            }
            (End::Vm(vm, path), End::Stream) => {
                let guest = source(client, vm, &path).await?;
                // `~` is no name: what is in the folder.
                let name = if path == "~" { ".".to_owned() } else { base_name(&path) };
                to_output(&guest, &["pack", &path, &name]).await
            }
            (End::Vm(vm, path), End::Vm(other, to)) => {
                let (from, into) = (source(client, vm, &path).await?, guest(client, other).await?);
                Box::pin(between(&from, &path, &into, &to, &count)).await
            }
            _ => Err(anyhow::anyhow!("neither is in a VM")),
        }
    };
    let mut copying = std::pin::pin!(copying);
    loop {
        tokio::select! {
            done = &mut copying => return done,
            _ = ticks.tick() => progress.sent(count.load(Ordering::Relaxed), None),
        }
    }
}

async fn guest(client: &Client, vm: String) -> anyhow::Result<Guest<'_>> {
    let found = answer(client.rpc.show_vm(soon(), vm)).await?;
    if found.state != State::Running {
        let hint = format!("start it: banger vm start {}", found.name);
        return Err(explained(
            format!("{} is {}, and files are copied into VMs that run", found.name, found.state),
            hint,
        ));
    }
    // The owner of the machine, whoever the image's user is: any place can be read and written.
    Ok(Guest::Vm { client, vm: found.id.to_string(), user: Some("root"), reads: false })
}

/// A VM that is copied from. Of one that does not run, the work disk is read.
async fn source<'a>(client: &'a Client, vm: String, path: &str) -> anyhow::Result<Guest<'a>> {
    let found = answer(client.rpc.show_vm(soon(), vm)).await?;
    let guest = Guest::Vm { client, vm: found.id.to_string(), user: Some("root"), reads: true };
    if found.state == State::Running {
        return Ok(guest);
    }
    // Where other paths begin, the image says, and by it the guest.
    let whole = if path.starts_with('/') { path.to_owned() } else { look(&guest, path).await?.path };
    if !is_on_the_work_disk(&whole) {
        let message = format!(
            "{} is {}, and then only what is below /root can be copied, and not {whole}",
            found.name, found.state
        );
        return Err(explained(message, format!("start it: banger vm start {}", found.name)));
    }
    Ok(guest)
}

/// The same in a guest.
fn place_in(look: &Look, to: &str, source: &OsStr) -> anyhow::Result<(String, OsString)> {
    let (folder, name) = place(look.kind, Path::new(&look.path), OsStr::new(to), source)?;
    Ok((utf8(folder.as_os_str())?, name))
}

fn utf8(name: &OsStr) -> anyhow::Result<String> {
    Ok(name.to_str().context("a name in a VM must be UTF-8")?.to_owned())
}

async fn look(guest: &Guest<'_>, path: &str) -> anyhow::Result<Look> {
    let answer = remote::ask(guest, &["look", path], remote::MAX_LOOK).await?;
    serde_json::from_slice(&answer).context("the guest's answer is not understood")
}

async fn to_guest(guest: &Guest<'_>, from: &Path, to: &str, sent: Arc<AtomicU64>) -> anyhow::Result<()> {
    is_carried(from)?;
    // `.` and `..` have names as well.
    let nameless = from.file_name().is_none() && !from.as_os_str().as_bytes().ends_with(b"/.");
    let source = if nameless { fs::canonicalize(from)? } else { from.to_owned() };
    let (folder, name) = place_in(&look(guest, to).await?, to, source.as_os_str())?;
    // A name that no word can hold is one of any.
    let only = name.to_str().unwrap_or(".").to_owned();
    let work = move |to: &mut dyn std::io::Write| {
        let mut packer = Packer::of_what_changes(to);
        packer.add_tree(name.as_bytes(), &source)?;
        Ok(packer.finish()?)
    };
    let left = remote::send(guest, &["put", &folder, &only], None, sent, work).await?;
    if left.lost.is_empty() {
        left.lines().iter().for_each(|line| note(&format!("note: {line}")));
        return Ok(());
    }
    Err(anyhow::anyhow!("not all could be read: {}", left.lines().join("\n")))
}

/// Refuses what a copy could not be of: pipes and the like, and links to a process's open files,
/// such as `/dev/stdin` and what a shell's `<(...)` stands for.
fn is_carried(from: &Path) -> anyhow::Result<()> {
    let at = || from.display().to_string();
    let found = from.symlink_metadata().with_context(at)?;
    let kind = found.file_type();
    let refused = if kind.is_symlink() {
        let target = fs::read_link(from).unwrap_or_default();
        let is_open_file = target.starts_with("/proc/self") || from.starts_with("/dev/fd") || from.starts_with("/proc");
        let meant = fs::metadata(from).map(|meant| meant.file_type());
        is_open_file || meant.is_ok_and(|kind| kind.is_fifo() || kind.is_socket())
    } else {
        !kind.is_file() && !kind.is_dir()
    };
    if refused {
        let hint = "pass its bytes on: banger vm exec VM -- sh -c 'cat > FILE' < PATH";
        return Err(explained(format!("{} is not a file, folder or plain link", from.display()), hint));
    }
    Ok(())
}

/// The tar stream of standard input, whose thread nothing ends while it reads.
async fn from_input(guest: &Guest<'_>, to: &str, sent: &AtomicU64) -> anyhow::Result<()> {
    let mut pieces = sessions::pieces(|buffer| input::piece(&mut std::io::stdin(), buffer));
    let (theirs, mut ours) = tokio::net::UnixStream::pair()?;
    let words = [COMMAND, "put", to];
    let mut running = std::pin::pin!(remote::run(guest, &words, None, theirs, tokio::io::sink()));
    let feeding = async {
        while let Some(piece) = pieces.recv().await {
            let piece = piece.map_err(input::failed)?;
            if ours.write_all(&piece).await.is_err() {
                // The guest gave up, and says why.
                break;
            }
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        drop(ours.shutdown().await);
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        ran = &mut running => return packed(ran?),
        fed = feeding => fed?,
    }
    packed(running.await?)
}

async fn from_guest(guest: &Guest<'_>, from: &str, to: &Path, count: &Arc<AtomicU64>) -> anyhow::Result<()> {
    let kind = if to.is_dir() { Kind::Folder } else { Kind::None };
    with_a_name(from)?;
    let (folder, name) = place(kind, &std::path::absolute(to)?, to.as_os_str(), OsStr::new(from))?;
    let name = utf8(&name)?;
    let (count, asked) = (Arc::clone(count), name.clone());
    let work = move |from: &mut dyn std::io::Read| take(Counted { from, count }, &folder, &asked);
    let words = [COMMAND, "pack", from, &name];
    let (ran, taken) = remote::receive(guest, &words, None, Vec::new(), work).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (name, target) in &taken.outside {
        note(&format!("note: {} is a link that leads out of what was copied, to {}", text(name), text(target)));
    }
    if taken.more_outside > 0 {
        note(&format!("note: and {} more links", taken.more_outside));
    }
    packed(ran)
}

/// How it ended in a guest: what is left out is said, and is an error when it should be
/// there.
fn packed(ran: Ran) -> anyhow::Result<()> {
    if ran.status == 0 {
        ran.errors.lines().for_each(|line| note(&format!("note: {line}")));
    }
    ran.ok()
}

/// Unpacks what a guest sends: all that the user has room for, under the name that was asked for. A
/// guest does not choose which files of the folder it replaces.
fn take(mut from: impl std::io::Read, folder: &Path, name: &str) -> anyhow::Result<Unpacked> {
    // A guest that has nothing to send says why, and no folder is made for that.
    let mut first = Vec::new();
    from.by_ref().take(BLOCK).read_to_end(&mut first)?;
    anyhow::ensure!(first.iter().any(|byte| *byte != 0), "nothing came");
    let from = first.chain(from);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let limits = Limits { mask: umask(), ..Limits::NONE };
    Ok(unpack_named(from, &open_folder(folder)?, limits, name.as_bytes())?)
}

async fn to_output(guest: &Guest<'_>, words: &[&str]) -> anyhow::Result<()> {
    let (ours, theirs) = tokio::net::UnixStream::pair()?;
    let words = [&[COMMAND], words].concat();
    let running = remote::run(guest, &words, None, tokio::io::empty(), theirs);
    let showing = async {
        use tokio::io::AsyncReadExt as _;
        let (mut ours, mut streams) = (ours, Streams::as_written());
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = ours.read(&mut buffer).await?;
            if read == 0 {
                return anyhow::Ok(());
            }
            streams.output(buffer.get(..read).unwrap_or_default()).await?;
        }
    };
    let (ran, shown) = tokio::join!(running, showing);
    shown?;
    packed(ran?)
}

async fn between(
    from: &Guest<'_>,
    path: &str,
    to: &Guest<'_>,
    target: &str,
    count: &Arc<AtomicU64>,
) -> anyhow::Result<()> {
    with_a_name(path)?;
    let found = look(to, target).await?;
    let (folder, name) = place_in(&found, target, OsStr::new(path))?;
    let name = utf8(&name)?;
    if from.is(to) {
        not_into_itself(&look(from, path).await?, &found, &folder, &name)?;
    }
    let (reader, writer) = tokio::net::UnixStream::pair()?;
    let reader = reader.into_std()?;
    reader.set_nonblocking(false)?;
    let words = [COMMAND, "pack", path, &name];
    let packing = remote::run(from, &words, None, tokio::io::empty(), writer);
    // One guest does not choose which files of the other it replaces.
    let put = ["put", folder.as_str(), name.as_str()];
    let unpacking = remote::send(to, &put, None, Arc::clone(count), move |to| {
        let mut from = &reader;
        Ok(std::io::copy(&mut from, to).map(drop)?)
    });
    let (ran, unpacked) = tokio::join!(packing, unpacking);
    match ran {
        // What the source says explains an archive that ended too early.
        Ok(ran) => packed(ran).and(unpacked),
        Err(error) => unpacked.and(Err(error)),
    }
}

struct Counted<'a> {
    from: &'a mut dyn std::io::Read,
    count: Arc<AtomicU64>,
}

impl std::io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The user's, which can only be read by setting it (umask(2)).
fn umask() -> u32 {
    use nix::sys::stat::{Mode, umask};
    let ours = umask(Mode::from_bits_truncate(0o077));
    umask(ours);
    ours.bits()
}

#[cfg(test)]
mod tests;
