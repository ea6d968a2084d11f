//! Reading a tar stream entry by entry, with bounds on what is kept of it.
//!
//! `tar` keeps a long name in memory, however long it says to be, unless it is asked for raw
//! entries; so the extensions are read here (GNU tar manual, "Tar Internals"; POSIX pax, "pax
//! Extended Header").

use crate::Error;
use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;
use tar::{Archive, EntryType};

/// A longer name than Linux has paths (PATH_MAX) is none. A PAX header may have other records
/// beside it.
const LONGEST: u64 = 64 * 1024;
const BLOCK: usize = 512;
/// Of what a stream may say before an entry comes that something is made of, bytes: names in
/// several dialects.
const BETWEEN: u64 = 1024 * 1024;
/// GNU tar writes records of 10 KiB.
const PADDING: u64 = 1024 * 1024;

/// One entry, with its whole name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) size: u64,
}

/// Calls `each` with every entry and a reader of its data.
pub(crate) fn each(
    from: impl Read,
    mut each: impl FnMut(&Entry, &mut dyn Read) -> Result<(), Error>,
) -> Result<(), Error> {
    let tail = Rc::new(RefCell::new(Vec::new()));
    let mut archive = Archive::new(Watched { from, tail: Rc::clone(&tail) });
    let (mut name, mut target, mut between) = (None, None, 0_u64);
    for entry in archive.entries().map_err(Error::Stream)?.raw(true) {
        let mut entry = entry.map_err(bad)?;
        let kind = entry.header().entry_type();
        let size = entry.header().entry_size().map_err(bad)?;
        between = between.saturating_add(size).saturating_add(BLOCK as u64);
        match kind {
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
                if between > BETWEEN =>
            {
                return Err(Error::Limit(format!("{} MiB between two files", BETWEEN >> 20)));
            }
            EntryType::GNULongName => name = Some(text(&mut entry)?),
            EntryType::GNULongLink => target = Some(text(&mut entry)?),
            EntryType::XHeader => {
                for (key, value) in records(&text(&mut entry)?) {
                    match key.as_slice() {
                        b"path" => name = Some(value),
                        b"linkpath" => target = Some(value),
                        b"size" => return Err(Error::Limit("a file of 8 GiB in the PAX dialect".to_owned())),
                        key if key.starts_with(b"GNU.sparse.") => {
                            return Err(Error::Kind("a sparse file in the PAX dialect".to_owned()));
                        }
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => {}
            _ => {
                let header = entry.header();
                let found = Entry {
                    name: name.take().unwrap_or_else(|| entry.path_bytes().into_owned()),
                    target: target
                        .take()
                        .unwrap_or_else(|| entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default()),
                    kind,
                    mode: header.mode().map_err(bad)?,
                    mtime: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
                    size,
                };
                between = 0;
                each(&found, &mut entry)?;
            }
        }
    }
    // An archive ends with blocks of zeros; a stream whose writer failed does not.
    let ended = tail.borrow().iter().all(|byte| *byte == 0) && tail.borrow().len() == BLOCK;
    if !ended {
        return Err(Error::Truncated);
    }
    // What pads the archive is read as well, so that its writer ends well; an endless writer is not
    // listened to.
    drop(io::copy(&mut archive.into_inner().take(PADDING), &mut io::sink()));
    Ok(())
}

fn bad(error: io::Error) -> Error {
    Error::Stream(error)
}

fn text(entry: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    entry.take(LONGEST + 1).read_to_end(&mut text).map_err(bad)?;
    if text.len() as u64 > LONGEST {
        return Err(Error::Limit(format!("a name of {LONGEST} bytes")));
    }
    while text.last() == Some(&0) {
        text.pop();
    }
    Ok(text)
}

/// `LENGTH KEY=VALUE\n`, repeated.
fn records(mut text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some(space) = text.iter().position(|byte| *byte == b' ') {
        let length = text.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let Some((record, rest)) = length.and_then(|length| text.split_at_checked(length)) else { break };
        let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n"));
        if let Some((at, body)) = body.and_then(|body| Some((body.iter().position(|byte| *byte == b'=')?, body))) {
            let (key, value) = body.split_at(at);
            records.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        }
        text = rest;
    }
    records
}

/// Remembers the last block.
struct Watched<R> {
    from: R,
    tail: Rc<RefCell<Vec<u8>>>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let seen = buffer.get(..read).unwrap_or_default();
        let mut tail = self.tail.borrow_mut();
        let from = seen.len().saturating_sub(BLOCK);
        tail.extend_from_slice(seen.get(from..).unwrap_or_default());
        let over = tail.len().saturating_sub(BLOCK);
        tail.drain(..over);
        Ok(read)
    }
}
