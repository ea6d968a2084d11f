//! A session's log: what its command wrote, and when, in two files of bounded size.
//!
//! Written by the session's process alone, read by it for those who follow and by the agent for all
//! others, also while it is written and after a power cut. The log is the only buffer of output:
//! readers follow it, so a slow one holds nobody up.
//!
//! `log` is written; when it is full it becomes `log.1`, and the earlier `log.1` is gone. A file
//! begins with [`MAGIC`] and the position of its first record in all that was ever written (8
//! bytes, little endian). A record is a checksum, the length of its bytes, the time, the kind, then
//! the bytes. A record that is cut or was not wholly on the disk has a wrong checksum, and readers
//! leave it out.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What both files of a session may take together, bytes.
pub(super) const CAP: u64 = 16 << 20;
const MAGIC: [u8; 8] = *b"BGRLOG1\n";
/// Bytes before the first record.
const FILE_HEADER: usize = 16;
/// Bytes of a record before its content.
pub(super) const HEADER: usize = 17;
/// The longest content of a record, bytes. Commands' output is read in pieces of half of that.
pub(super) const MAX_CONTENT: usize = 64 * 1024;
/// The present file, and the one before.
pub(super) const FILES: [&str; 2] = ["log", "log.1"];

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Output,
    Error,
    /// So many bytes could not be written, as a number (8 bytes, little endian).
    Gap,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Output => 1,
            Kind::Error => 2,
            Kind::Gap => 3,
        };
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let rest = [&length.to_le_bytes()[..], &self.at.to_le_bytes(), &[kind], &self.bytes].concat();
        [&checksum(&rest).to_le_bytes()[..], &rest].concat()
    }

    /// What stands at a place of a file; `None` when that is no whole record.
    pub(super) fn read(file: &File, place: u64) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        if !filled(file.read_exact_at(&mut header, place))? {
            return Ok(None);
        }
        let [s0, s1, s2, s3, l0, l1, l2, l3, at @ .., kind] = header;
        let kind = match kind {
            1 => Kind::Output,
            2 => Kind::Error,
            3 => Kind::Gap,
            _ => return Ok(None),
        };
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if length > MAX_CONTENT {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        if !filled(file.read_exact_at(&mut bytes, place + HEADER as u64))? {
            return Ok(None);
        }
        let rest = [header.get(4..).unwrap_or_default(), &bytes].concat();
        let whole = checksum(&rest) == u32::from_le_bytes([s0, s1, s2, s3]);
        Ok(whole.then(|| Self { kind, at: u64::from_le_bytes(at), bytes }))
    }

    /// What it takes in the log.
    pub(super) fn length(&self) -> u64 {
        (HEADER + self.bytes.len()) as u64
    }

    /// How many bytes a gap is of.
    pub(super) fn lost(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

fn filled(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// FNV-1a. It finds records that were cut; nobody forges records of their own log.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// One of the two files, open for reading or writing.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) file: File,
    /// The position of its first record.
    pub(super) start: u64,
}

impl Segment {
    /// `None` when there is none, or it is none of ours.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let mut header = [0; FILE_HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let [m0, m1, m2, m3, m4, m5, m6, m7, start @ ..] = header;
        ([m0, m1, m2, m3, m4, m5, m6, m7] == MAGIC).then(|| Self { file, start: u64::from_le_bytes(start) })
    }

    fn make(path: &Path, start: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.write_all_at(&[MAGIC, start.to_le_bytes()].concat(), 0)?;
        Ok(Self { file, start })
    }

    /// The position behind all that the file has.
    pub(super) fn end(&self) -> io::Result<u64> {
        Ok(self.start + self.file.metadata()?.len().saturating_sub(FILE_HEADER as u64))
    }

    /// Where a position is in the file.
    pub(super) fn place(&self, position: u64) -> u64 {
        FILE_HEADER as u64 + position.saturating_sub(self.start)
    }
}

/// The log as its session's process writes it.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    segment: Segment,
    /// The position behind the last record.
    end: u64,
    /// Bytes that one file may have.
    most: u64,
    /// Bytes of output that found no room.
    lost: u64,
    #[cfg(test)]
    refuses: bool,
}

impl Log {
    /// Begins a log in a folder that has none.
    pub(super) fn begin(folder: &Path, cap: u64) -> io::Result<Self> {
        let segment = Segment::make(&folder.join(FILES[0]), 0)?;
        Ok(Self {
            folder: folder.to_owned(),
            segment,
            end: 0,
            most: cap / 2,
            lost: 0,
            #[cfg(test)]
            refuses: false,
        })
    }

    /// The position behind the last record.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The folder has another name now.
    pub(super) fn moved(&mut self, folder: &Path) {
        folder.clone_into(&mut self.folder);
    }

    /// Keeps what the command wrote. What finds no room on the disk is counted, and the count is
    /// written as soon as there is room again.
    pub(super) fn append(&mut self, kind: Kind, at: u64, bytes: Vec<u8>) {
        let count = bytes.len() as u64;
        if self.lost > 0 {
            let gap = Entry { kind: Kind::Gap, at, bytes: self.lost.to_le_bytes().to_vec() };
            if self.write(&gap).is_err() {
                self.lost = self.lost.saturating_add(count);
                return;
            }
            self.lost = 0;
        }
        if self.write(&Entry { kind, at, bytes }).is_err() {
            self.lost = self.lost.saturating_add(count);
        }
    }

    /// A disk that is full, for tests.
    #[cfg(test)]
    pub(super) fn refuse(&mut self, refuses: bool) {
        self.refuses = refuses;
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        #[cfg(test)]
        if self.refuses {
            // As much as fitted.
            self.segment.file.write_all_at(&[1; HEADER], self.segment.place(self.end))?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.segment.place(self.end) + entry.length() > self.most && self.end > self.segment.start {
            self.turn()?;
        }
        // A part that was written before the disk was full is written over by the next record.
        self.segment.file.write_all_at(&entry.encode(), self.segment.place(self.end))?;
        self.end += entry.length();
        Ok(())
    }

    /// The present file becomes the earlier one.
    fn turn(&mut self) -> io::Result<()> {
        let [present, earlier] = FILES.map(|name| self.folder.join(name));
        let new = self.folder.join("log.new");
        let segment = Segment::make(&new, self.end)?;
        fs::rename(&present, &earlier)?;
        fs::rename(&new, &present)?;
        self.segment = segment;
        Ok(())
    }

    /// Puts it on the disk. The last gap is tried once more.
    pub(super) fn finish(&mut self, at: u64) -> io::Result<()> {
        if self.lost > 0 {
            let gap = Entry { kind: Kind::Gap, at, bytes: self.lost.to_le_bytes().to_vec() };
            self.write(&gap)?;
            self.lost = 0;
        }
        self.segment.file.sync_all()
    }
}
