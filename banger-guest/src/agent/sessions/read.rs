//! Reading a session's log, while it is written or later: from a position, or the last lines.

use banger_proto::session::{Answer, Outputs, Record};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use super::log::{Entry, FILES, Kind, Segment};

/// Follows a log from a position on.
#[derive(Debug)]
pub(super) struct Reader {
    folder: PathBuf,
    /// The position of what is read next.
    at: u64,
    segment: Option<Segment>,
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Entry(Entry),
    /// So many bytes of the log are gone, because newer ones took their place, or are damaged.
    Gap(u64),
    /// The end, for now.
    Nothing,
}

impl Reader {
    /// From the oldest record that is kept.
    pub(super) fn oldest(folder: &Path) -> Self {
        let starts = FILES.iter().filter_map(|name| Segment::open(&folder.join(name))).map(|segment| segment.start);
        Self::from(folder, starts.min().unwrap_or(0))
    }

    pub(super) fn from(folder: &Path, at: u64) -> Self {
        Self { folder: folder.to_owned(), at, segment: None }
    }

    /// The next record, or what is in its place.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        loop {
            let Some(segment) = &self.segment else {
                let Some(segment) = self.best() else { return Ok(Next::Nothing) };
                let gap = segment.start.saturating_sub(self.at);
                self.at = self.at.max(segment.start);
                self.segment = Some(segment);
                if gap > 0 {
                    return Ok(Next::Gap(gap));
                }
                continue;
            };
            if let Some(entry) = Entry::read(&segment.file, segment.place(self.at))? {
                self.at += entry.length();
                return Ok(Next::Entry(entry));
            }
            // The file's end, or a record that is not whole. Is there a later file?
            let Some(later) = self.later(segment.start) else { return Ok(Next::Nothing) };
            // The record may have been written after it was looked for and before that file was
            // made.
            if let Some(entry) = Entry::read(&segment.file, segment.place(self.at))? {
                self.at += entry.length();
                return Ok(Next::Entry(entry));
            }
            let gap = later.start.saturating_sub(self.at);
            self.at = later.start;
            self.segment = Some(later);
            if gap > 0 {
                return Ok(Next::Gap(gap));
            }
        }
    }

    /// The file with the position that is wanted, else the oldest one.
    fn best(&self) -> Option<Segment> {
        let mut found: Option<Segment> = None;
        for segment in FILES.iter().filter_map(|name| Segment::open(&self.folder.join(name))) {
            let better = found.as_ref().is_none_or(|found| match (segment.start <= self.at, found.start <= self.at) {
                (true, true) => segment.start > found.start,
                (false, false) => segment.start < found.start,
                (has, _) => has,
            });
            if better {
                found = Some(segment);
            }
        }
        found
    }

    /// The next file behind the one that begins at `start`.
    fn later(&self, start: u64) -> Option<Segment> {
        let files = FILES.iter().filter_map(|name| Segment::open(&self.folder.join(name)));
        files.filter(|segment| segment.start > start).min_by_key(|segment| segment.start)
    }
}

/// What is to be read of a log.
#[derive(Clone, Copy, Debug)]
pub(super) enum Begin {
    /// Everything that is kept.
    Oldest,
    /// The last lines.
    Lines(u64),
    /// The last bytes, or a little more.
    Bytes(u64),
    /// What is written from now on.
    End(u64),
}

/// A reader that gives what a client asked for.
#[derive(Debug)]
pub(super) struct Selection {
    reader: Reader,
    outputs: Outputs,
    /// Lines of the first record that are left out.
    skip: u64,
    /// The position behind the last record that is shown; none for one who follows.
    until: Option<u64>,
}

impl Selection {
    /// Of a log that is followed. Reads the log once to find the beginning.
    pub(super) fn following(folder: &Path, outputs: Outputs, begin: Begin) -> io::Result<Self> {
        Self::of(folder, outputs, begin, end(folder), None)
    }

    /// What is written by now: a log may grow faster than it is shown.
    pub(super) fn until_now(folder: &Path, outputs: Outputs, begin: Begin) -> io::Result<Self> {
        let end = end(folder);
        Self::of(folder, outputs, begin, end, Some(end))
    }

    /// `end`: where the search for the beginning ends.
    fn of(folder: &Path, outputs: Outputs, begin: Begin, end: u64, until: Option<u64>) -> io::Result<Self> {
        let (reader, skip) = match begin {
            Begin::Oldest => (Reader::oldest(folder), 0),
            Begin::End(at) => (Reader::from(folder, at), 0),
            Begin::Bytes(bytes) => {
                let mut scan = Reader::oldest(folder);
                while scan.at < end && scan.next()? != Next::Nothing {}
                // Where a record begins is found by walking from the first.
                let from = scan.at.saturating_sub(bytes);
                let mut walk = Reader::oldest(folder);
                let mut before = walk.at;
                while walk.at <= from && walk.next()? != Next::Nothing {
                    if walk.at <= from {
                        before = walk.at;
                    }
                }
                (Reader::from(folder, before), 0)
            }
            Begin::Lines(wanted) => {
                let (at, skip) = last_lines(folder, outputs, wanted, end)?;
                (at.map_or_else(|| Reader::oldest(folder), |at| Reader::from(folder, at)), skip)
            }
        };
        Ok(Self { reader, outputs, skip, until })
    }

    /// The next answer; `None` at the end of what is written, or of what is shown.
    pub(super) fn next(&mut self) -> io::Result<Option<Answer>> {
        loop {
            let left = self.until.map_or(u64::MAX, |until| until.saturating_sub(self.reader.at));
            if left == 0 {
                return Ok(None);
            }
            let entry = match self.reader.next()? {
                Next::Nothing => return Ok(None),
                Next::Gap(bytes) => {
                    // The first record is gone: newer ones took its place meanwhile.
                    self.skip = 0;
                    return Ok(Some(Answer::Gap(bytes.min(left))));
                }
                Next::Entry(entry) => entry,
            };
            if entry.kind == Kind::Gap {
                return Ok(Some(Answer::Gap(entry.lost())));
            }
            if !shows(self.outputs, entry.kind) {
                continue;
            }
            let mut bytes = entry.bytes;
            if self.skip > 0 {
                bytes = behind(&bytes, self.skip).to_vec();
                self.skip = 0;
            }
            if !bytes.is_empty() {
                return Ok(Some(Answer::Record(Record { at: entry.at, error: entry.kind == Kind::Error, bytes })));
            }
        }
    }
}

/// The position behind what is written by now. A record that is not whole may lie before it.
fn end(folder: &Path) -> u64 {
    FILES.iter().filter_map(|name| Segment::open(&folder.join(name))?.end().ok()).max().unwrap_or(0)
}

/// Where the last lines begin: the position of a record, and how many lines of it come before. A
/// position is the same whatever is written meanwhile. `None` when all lines are wanted.
fn last_lines(folder: &Path, outputs: Outputs, wanted: u64, end: u64) -> io::Result<(Option<u64>, u64)> {
    let mut scan = Reader::oldest(folder);
    // The last records in which a line ends, with more lines than are wanted.
    let (mut ends, mut lines, mut dropped, mut open) = (VecDeque::new(), 0_u64, false, false);
    while scan.at < end {
        let entry = match scan.next()? {
            Next::Nothing => break,
            Next::Entry(entry) if shows(outputs, entry.kind) => entry,
            Next::Entry(_) | Next::Gap(_) => continue,
        };
        open = entry.bytes.last().map_or(open, |last| *last != b'\n');
        let count = newlines(&entry.bytes);
        if count > 0 {
            ends.push_back((scan.at - entry.length(), count));
            lines += count;
        }
        while let Some((_, count)) = ends.front().filter(|(_, count)| lines - count > wanted) {
            lines -= count;
            ends.pop_front();
            dropped = true;
        }
    }
    if wanted == 0 {
        return Ok((Some(scan.at), 0));
    }
    // A last line without its end is one, too.
    let mut skip = (lines + u64::from(open)).saturating_sub(wanted);
    if skip == 0 && !dropped {
        return Ok((None, 0));
    }
    for (at, count) in ends {
        if skip <= count {
            return Ok((Some(at), skip));
        }
        skip -= count;
    }
    Ok((Some(scan.at), 0))
}

fn shows(outputs: Outputs, kind: Kind) -> bool {
    match outputs {
        Outputs::Both => kind != Kind::Gap,
        Outputs::Out => kind == Kind::Output,
        Outputs::Err => kind == Kind::Error,
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// What is behind so many line ends.
fn behind(bytes: &[u8], lines: u64) -> &[u8] {
    let mut ends = bytes.iter().zip(1..).filter(|(byte, _)| **byte == b'\n').map(|(_, behind)| behind);
    let nth = usize::try_from(lines.saturating_sub(1)).unwrap_or(usize::MAX);
    ends.nth(nth).and_then(|at: usize| bytes.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
