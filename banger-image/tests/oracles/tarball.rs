//! Writes entries as tar, in PAX or in GNU's dialect where a plain header does not do.

use crate::dice::Dice;
use crate::seen;
use std::io::Write as _;

#[derive(Clone)]
pub(crate) enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Clone)]
pub(crate) struct Item {
    /// Without slashes at its ends; empty for the root.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Item {
    /// As [`crate::seen::look`] would say it; `names` are all names of this file, in order.
    pub(crate) fn describe(&self, names: &[String]) -> String {
        let kind = match &self.kind {
            Kind::Dir => "dir".to_owned(),
            Kind::File(data) => seen::file(data),
            Kind::Symlink(target) => seen::symlink(target),
            Kind::Char(major, minor) => seen::device("char", *major, *minor),
            Kind::Block(major, minor) => seen::device("block", *major, *minor),
            Kind::Fifo => "fifo".to_owned(),
            Kind::Hardlink(_) => unreachable!("it stands as the file that it is a name of"),
        };
        let mode = (!matches!(self.kind, Kind::Symlink(_))).then_some(self.mode);
        let mut xattrs = self.xattrs.clone();
        xattrs.sort();
        seen::entry(&kind, mode, (self.uid, self.gid), self.mtime, &xattrs, names)
    }
}

#[derive(Default)]
pub(crate) struct Tarball(Vec<u8>);

impl Tarball {
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    pub(crate) fn add(&mut self, item: &Item, dice: &mut Dice) {
        let prefix: &[u8] = if item.path.is_empty() || dice.one_in(2) { b"./" } else { b"" };
        let suffix: &[u8] = if matches!(item.kind, Kind::Dir) && !item.path.is_empty() { b"/" } else { b"" };
        let name = [prefix, &item.path, suffix].concat();
        let link = match &item.kind {
            Kind::Symlink(target) => target.clone(),
            Kind::Hardlink(target) => [prefix, target].concat(),
            _ => Vec::new(),
        };
        let data: &[u8] = if let Kind::File(data) = &item.kind { data } else { b"" };
        let mut records: Vec<(String, Vec<u8>)> =
            item.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())).collect();
        // Names that are no text have no place in PAX.
        let use_pax = dice.one_in(2) && std::str::from_utf8(&name).is_ok() && std::str::from_utf8(&link).is_ok();
        if use_pax {
            let texts = [(b"path".as_slice(), &name), (b"linkpath", &link)];
            let long = texts.into_iter().filter(|(_, text)| text.len() > 100 || (!text.is_empty() && dice.one_in(4)));
            records.extend(long.map(|(key, text)| (String::from_utf8_lossy(key).into_owned(), text.clone())));
            records.push(("uid".to_owned(), item.uid.to_string().into_bytes()));
        }
        let (seconds, nanos) = item.mtime;
        if nanos != 0 {
            records.push(("mtime".to_owned(), format!("{seconds}.{nanos:09}").into_bytes()));
        }
        if !records.is_empty() {
            let all: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            self.header(b"pax", b"", b'x', &all, None);
        }
        for (kind, text) in [(b'L', &name), (b'K', &link)] {
            if !use_pax && text.len() > 100 {
                self.header(b"././@LongLink", b"", kind, &[text, b"\0".as_slice()].concat(), None);
            }
        }
        let (kind, device) = match item.kind {
            Kind::Dir => (b'5', None),
            Kind::File(_) => (b'0', None),
            Kind::Symlink(_) => (b'2', None),
            Kind::Hardlink(_) => (b'1', None),
            Kind::Char(major, minor) => (b'3', Some((major, minor))),
            Kind::Block(major, minor) => (b'4', Some((major, minor))),
            Kind::Fifo => (b'6', None),
        };
        self.header(&name, &link, kind, data, Some((item, device)));
    }

    fn header(&mut self, name: &[u8], link: &[u8], kind: u8, data: &[u8], of: Option<(&Item, Option<(u32, u32)>)>) {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if let Some((item, device)) = of {
            header.set_mode(item.mode);
            header.set_uid(item.uid);
            header.set_gid(item.gid);
            header.set_mtime(u64::try_from(item.mtime.0).unwrap());
            let (major, minor) = device.unwrap_or_default();
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        let bytes = header.as_mut_bytes();
        let fits = |text: &[u8]| text.len().min(100);
        bytes[..fits(name)].copy_from_slice(&name[..fits(name)]);
        bytes[156] = kind;
        bytes[157..157 + fits(link)].copy_from_slice(&link[..fits(link)]);
        header.set_cksum();
        self.0.write_all(header.as_bytes()).unwrap();
        self.0.write_all(data).unwrap();
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }
}

/// A PAX record: its length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
