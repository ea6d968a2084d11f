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

/// Writes a tar stream.
pub struct Packer<W: Write> {
    builder: tar::Builder<W>,
    /// Files of which a name was packed, by device and inode: the next name is a hard link to that.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// What no tar stream can carry: sockets.
    skipped: Vec<Vec<u8>>,
}

impl<W: Write> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl<W: Write> Packer<W> {
    /// Writes to `to`.
    pub fn new(to: W) -> Self {
        Self { builder: tar::Builder::new(to), names: HashMap::new(), skipped: Vec::new() }
    }

    /// Ends the archive; gives the names that could not be packed because they are sockets, pipes
    /// or devices.
    ///
    /// # Errors
    /// [`Error::Stream`].
    pub fn finish(self) -> Result<Vec<Vec<u8>>, Error> {
        let mut to = self.builder.into_inner().map_err(Error::Stream)?;
        to.flush().map_err(Error::Stream)?;
        Ok(self.skipped)
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
            self.skipped.push(name.to_vec());
            return Ok(());
        }
        if found.nlink() > 1 {
            let inode = (found.dev(), found.ino());
            if let Some(first) = self.names.get(&inode).cloned() {
                return self.entry(name, EntryType::Link, &first, mode, &found, 0, io::empty());
            }
            self.names.insert(inode, name.to_vec());
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
        let mut data = Exactly { from: file, left: found.len() };
        let written = self.entry(name, EntryType::Regular, b"", mode, &found, found.len(), &mut data);
        if data.left > 0 && written.is_err() {
            let grew = matches!(&written, Err(Error::Stream(error)) if error.kind() == io::ErrorKind::UnexpectedEof);
            return if grew { Err(Error::Changed(path.to_owned())) } else { written };
        }
        written
    }

    /// A file, link or folder with all that is in it.
    ///
    /// # Errors
    /// As [`Packer::add`].
    pub fn add_tree(&mut self, name: &[u8], path: &Path) -> Result<(), Error> {
        let found = std::fs::symlink_metadata(path).map_err(Error::path(path))?;
        self.add(name, path, None)?;
        if found.is_dir() {
            for entry in std::fs::read_dir(path).map_err(Error::path(path))? {
                let entry = entry.map_err(Error::path(path))?;
                let inside = [name, b"/", entry.file_name().as_bytes()].concat();
                self.add_tree(&inside, &entry.path())?;
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

/// As many bytes as the header has said, whatever happens to the file meanwhile.
struct Exactly<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let read = self.from.read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// A name as a path of this machine.
pub(crate) fn as_path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}
