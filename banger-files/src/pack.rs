//! Writing: files, folders and links of this machine into a tar stream (GNU's dialect, for names of
//! any length).

use crate::Error;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tar::{EntryType, Header};

/// Bytes of a name or link target that a header holds.
const SHORT: usize = 100;

/// A file that says to be this long at most is read before its size is written: those of sysfs say
/// 4096 bytes and have fewer.
const SMALL: u64 = 64 * 1024;
/// So much is read of a file that says to be empty, as all of procfs do, bytes.
const UNSAID: u64 = 16 * 1024 * 1024;
/// Of what is not in an archive, so many lines are for people.
const NAMED: usize = 20;

/// Writes a tar stream.
pub struct Packer<W: Write> {
    builder: tar::Builder<W>,
    /// Files of which a name was packed, by device and inode: the next name is a hard link to that.
    names: HashMap<(u64, u64), Vec<u8>>,
    left: Left,
    /// What cannot be read, below what was asked for, is left out, and no error.
    goes_on: bool,
}

/// What is not in an archive as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// What no tar stream carries: sockets, pipes and devices.
    pub skipped: Vec<Vec<u8>>,
    /// What vanished or could not be read, with the reason. A file that became shorter while it was
    /// read is in the archive, with zeros at its end.
    pub lost: Vec<(Vec<u8>, String)>,
}

impl Left {
    /// Lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let skipped = self.skipped.iter().map(|name| format!("{} is left out: a socket, pipe or device", text(name)));
        let lost = self.lost.iter().map(|(name, why)| format!("{}: {why}", text(name)));
        // What is an error comes first.
        let mut lines: Vec<String> = lost.chain(skipped).take(NAMED).collect();
        let more = (self.lost.len() + self.skipped.len()).saturating_sub(NAMED);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

impl<W: Write> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl<W: Write> Packer<W> {
    /// Writes to `to`.
    pub fn new(to: W) -> Self {
        Self { builder: tar::Builder::new(to), names: HashMap::new(), left: Left::default(), goes_on: false }
    }

    /// The same for folders that others may write to meanwhile: what vanishes or cannot be read is
    /// left out.
    pub fn of_what_changes(to: W) -> Self {
        Self { goes_on: true, ..Self::new(to) }
    }

    /// Ends the archive; gives what is not in it.
    ///
    /// # Errors
    /// [`Error::Stream`].
    pub fn finish(self) -> Result<Left, Error> {
        let mut to = self.builder.into_inner().map_err(Error::Stream)?;
        to.flush().map_err(Error::Stream)?;
        Ok(self.left)
    }

    /// One file, folder or link under the name `name`, with its own mode or another one.
    ///
    /// # Errors
    /// [`Error::Path`] when it cannot be read, [`Error::Changed`], [`Error::Stream`].
    pub fn add(&mut self, name: &[u8], path: &Path, mode: Option<u32>) -> Result<(), Error> {
        let found = std::fs::symlink_metadata(path).map_err(Error::path(path))?;
        let mode = mode.unwrap_or(found.mode() & 0o7777);
        let kind = found.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(Error::path(path))?;
            return self.entry(name, EntryType::Symlink, target.as_os_str().as_bytes(), 0o777, &found, 0, io::empty());
        }
        if kind.is_dir() {
            let name = [name, b"/"].concat();
            return self.entry(&name, EntryType::Directory, b"", mode, &found, 0, io::empty());
        }
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            self.left.skipped.push(name.to_vec());
            return Ok(());
        }
        if found.nlink() > 1 {
            let inode = (found.dev(), found.ino());
            if let Some(first) = self.names.get(&inode).cloned() {
                return self.entry(name, EntryType::Link, &first, mode, &found, 0, io::empty());
            }
        }
        // Not through a link that took the file's place, and without waiting for the writer of a
        // pipe that did.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(Error::path(path))?;
        let found = file.metadata().map_err(Error::path(path))?;
        if !found.is_file() {
            return Err(Error::Changed(path.to_owned()));
        }
        if found.len() <= SMALL {
            let bytes = small(file, found.len()).map_err(Error::path(path))?;
            self.entry(name, EntryType::Regular, b"", mode, &found, bytes.len() as u64, bytes.as_slice())?;
        } else {
            self.large(name, path, mode, &found, file)?;
        }
        if found.nlink() > 1 {
            self.names.insert((found.dev(), found.ino()), name.to_vec());
        }
        Ok(())
    }

    /// Notes that something is not in the archive, and why.
    pub fn leave(&mut self, name: &[u8], why: &Error) {
        let why = match why {
            Error::Path { source, .. } => source.to_string(),
            Error::Changed(_) => "it changed while it was read".to_owned(),
            other => other.to_string(),
        };
        self.left.lost.push((name.to_vec(), why));
    }

    fn large(&mut self, name: &[u8], path: &Path, mode: u32, found: &Metadata, from: File) -> Result<(), Error> {
        let mut data = Exactly { from, left: found.len(), pads: self.goes_on, padded: false };
        let written = self.entry(name, EntryType::Regular, b"", mode, found, found.len(), &mut data);
        if data.padded {
            self.left.lost.push((name.to_vec(), "it became shorter while it was read: its end is zeros".to_owned()));
        }
        if data.left > 0 && written.is_err() {
            let shrank = matches!(&written, Err(Error::Stream(error)) if error.kind() == io::ErrorKind::UnexpectedEof);
            return if shrank { Err(Error::Changed(path.to_owned())) } else { written };
        }
        written
    }

    /// A file, link or folder with all that is in it.
    ///
    /// # Errors
    /// As [`Packer::add`]; [`Error::Special`] when the path itself is what no archive carries.
    pub fn add_tree(&mut self, name: &[u8], path: &Path) -> Result<(), Error> {
        let skipped = self.left.skipped.len();
        self.tree(name, path)?;
        if self.left.skipped.get(skipped).is_some_and(|first| first == name) {
            return Err(Error::Special(path.to_owned()));
        }
        Ok(())
    }

    fn tree(&mut self, name: &[u8], path: &Path) -> Result<(), Error> {
        let found = std::fs::symlink_metadata(path).map_err(Error::path(path))?;
        self.add(name, path, None)?;
        if found.is_dir() {
            for entry in std::fs::read_dir(path).map_err(Error::path(path))? {
                let entry = entry.map_err(Error::path(path))?;
                let inside = [name, b"/", entry.file_name().as_bytes()].concat();
                match self.tree(&inside, &entry.path()) {
                    Err(error @ (Error::Path { .. } | Error::Changed(_))) if self.goes_on => {
                        self.leave(&inside, &error)
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// A file that is only here, and of now.
    ///
    /// # Errors
    /// [`Error::Stream`].
    pub fn add_bytes(&mut self, name: &[u8], mode: u32, bytes: &[u8]) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        self.header(name, EntryType::Regular, b"", mode, now, bytes.len() as u64, bytes)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    fn entry(
        &mut self,
        name: &[u8],
        kind: EntryType,
        target: &[u8],
        mode: u32,
        found: &Metadata,
        size: u64,
        data: impl Read,
    ) -> Result<(), Error> {
        self.header(name, kind, target, mode, u64::try_from(found.mtime()).unwrap_or(0), size, data)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    fn header(
        &mut self,
        name: &[u8],
        kind: EntryType,
        target: &[u8],
        mode: u32,
        mtime: u64,
        size: u64,
        data: impl Read,
    ) -> Result<(), Error> {
        self.long(EntryType::GNULongName, name)?;
        self.long(EntryType::GNULongLink, target)?;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(mtime);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        put(&mut header.as_old_mut().name, name);
        put(&mut header.as_old_mut().linkname, target);
        header.set_cksum();
        self.builder.append(&header, data).map_err(Error::Stream)
    }

    /// A name that does not fit the header goes before it, as an entry of its own.
    fn long(&mut self, kind: EntryType, text: &[u8]) -> Result<(), Error> {
        if text.len() <= SHORT {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(text.len() as u64 + 1);
        put(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_cksum();
        self.builder.append(&header, text.chain(&b"\0"[..])).map_err(Error::Stream)
    }
}

fn put(field: &mut [u8; SHORT], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

/// What a file has that says how short it is.
fn small(file: File, said: u64) -> io::Result<Vec<u8>> {
    let (mut bytes, most) = (Vec::new(), if said == 0 { UNSAID } else { said });
    file.take(if said == 0 { most + 1 } else { most }).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it says to be empty, and does not end"));
    }
    Ok(bytes)
}

/// As many bytes as the header has said, whatever happens to the file meanwhile.
struct Exactly<R> {
    from: R,
    left: u64,
    /// A file that ends early is filled with zeros.
    pads: bool,
    padded: bool,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let mut read = if self.padded { 0 } else { self.from.read(buffer)? };
        if read == 0 {
            if !self.pads {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.padded = true;
            buffer.fill(0);
            read = buffer.len();
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// A name as a path of this machine.
pub(crate) fn as_path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}
