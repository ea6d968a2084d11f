//! Layers from bytes: whatever the bytes are, most of it is a stack that an engine would take.

use crate::documents::tar_of;
use std::slice::Iter;
use tar::EntryType;

/// Of one stack.
const LAYERS: usize = 4;
/// Of one layer.
const ENTRIES: usize = 64;
/// File contents of one stack, bytes.
const CONTENTS: usize = 256 << 10;
/// Of these, what one more name of a large folder counts for.
const NAME: usize = 256;
/// Names that meet again, whiteouts and what the file system has itself among them.
const NAMES: [&str; 14] = [
    "root",
    "root",
    "root",
    "bin",
    "usr",
    "etc",
    "a",
    "b",
    "lost+found",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    ".wh..wh.plnk",
    "..data",
];

struct Bytes<'a>(Iter<'a, u8>);

impl Bytes<'_> {
    /// 0 when there are no more.
    fn one(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn two(&mut self) -> usize {
        usize::from(self.one()) << 8 | usize::from(self.one())
    }

    fn is_end(&self) -> bool {
        self.0.len() == 0
    }
}

/// What `docker save` would write of a stack of layers, which `bytes` describe: a layer ends with
/// 255; an entry is its kind, its path and its attributes, and what its kind needs.
#[must_use]
pub fn archive(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = Bytes(bytes.iter());
    let (mut files, mut left) = (Vec::new(), CONTENTS);
    while files.len() < LAYERS && !bytes.is_end() {
        files.push((format!("{}.tar", files.len()), layer(&mut bytes, &mut left)));
    }
    let names: Vec<String> = files.iter().map(|(name, _)| format!("{name:?}")).collect();
    let ids: Vec<String> = files.iter().map(|(_, layer)| crate::documents::quoted_digest(layer)).collect();
    let config = format!(r#"{{"os":"linux","rootfs":{{"diff_ids":[{}]}}}}"#, ids.join(","));
    files.push(("config".to_owned(), config.into_bytes()));
    let manifest = format!(r#"[{{"Config":"config","Layers":[{}]}}]"#, names.join(","));
    files.push(("manifest.json".to_owned(), manifest.into_bytes()));
    tar_of(&files)
}

fn layer(bytes: &mut Bytes<'_>, left: &mut usize) -> Vec<u8> {
    let mut layer = Layer { out: Vec::new() };
    for _ in 0..ENTRIES {
        let kind = bytes.one();
        if kind == 0xff || bytes.is_end() {
            break;
        }
        layer.entry(kind, bytes, left);
    }
    layer.out.extend([0; 1024]);
    layer.out
}

/// One to four names.
fn path(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let first = bytes.one();
    let mut path = name(first & 0x3f);
    for _ in 0..first >> 6 {
        path.push(b'/');
        path.extend(name(bytes.one()));
    }
    path
}

fn name(byte: u8) -> Vec<u8> {
    match (NAMES.get(usize::from(byte)), byte) {
        (Some(name), _) => name.as_bytes().to_vec(),
        (None, 14) => vec![b'n'; 255],
        (None, 15) => vec![0xff, b' ', byte],
        _ => format!("{byte}").into_bytes(),
    }
}

struct Layer {
    out: Vec<u8>,
}

impl Layer {
    fn entry(&mut self, kind: u8, bytes: &mut Bytes<'_>, left: &mut usize) {
        let at = path(bytes);
        let mut pax = Pax::of(bytes.one(), bytes);
        let mut take = |wanted: usize| {
            let taken = wanted.min(*left);
            *left -= taken;
            taken
        };
        match kind % 12 {
            0 => self.add(&at, EntryType::Directory, pax, &[]),
            1 => self.add(&at, EntryType::Regular, pax, &[b'x'].repeat(usize::from(bytes.one()))),
            // Pages of zeros among others.
            2 => {
                let (pages, odd) = (bytes.one(), bytes.one());
                let mut data = Vec::new();
                for page in 0..pages {
                    data.resize(data.len() + take(4096), page & odd);
                }
                self.add(&at, EntryType::Regular, pax, &data);
            }
            3 => {
                let length = 1 + bytes.two() % 4200;
                pax.record("linkpath", &[b'/'].repeat(length));
                self.add(&at, EntryType::Symlink, pax, &[]);
            }
            4 => {
                pax.record("linkpath", &path(bytes));
                self.add(&at, EntryType::Symlink, pax, &[]);
            }
            5 => {
                pax.record("linkpath", &path(bytes));
                self.add(&at, EntryType::Link, pax, &[]);
            }
            6 | 7 => {
                pax.record("SCHILY.devmajor", bytes.two().to_string().as_bytes());
                pax.record("SCHILY.devminor", (bytes.two() << 4).to_string().as_bytes());
                self.add(&at, if kind % 12 == 6 { EntryType::Char } else { EntryType::Block }, pax, &[]);
            }
            8 => self.add(&at, EntryType::Fifo, pax, &[]),
            9 => {
                let pieces = usize::from(bytes.one()) * 3;
                let (stride, shift) = (1 + bytes.two(), u32::from(bytes.one() % 24));
                let mut map = format!("{pieces}\n");
                for piece in 0..pieces {
                    map.push_str(&format!("{}\n1\n", (piece * stride) << shift));
                }
                map.extend(std::iter::repeat_n('\0', map.len().next_multiple_of(512) - map.len()));
                map.extend(std::iter::repeat_n('y', pieces));
                let size = (pieces * stride) << shift;
                for (key, value) in [("major", 1), ("minor", 0), ("realsize", size + usize::from(bytes.one()))] {
                    pax.record(&format!("GNU.sparse.{key}"), value.to_string().as_bytes());
                }
                self.add(&at, EntryType::Regular, pax, map.as_bytes());
            }
            // A folder with enough names for an index.
            _ => {
                let (many, length) = (usize::from(bytes.one()) * 4, usize::from(bytes.one() % 240));
                for number in (0..many).take_while(|_| take(NAME) == NAME) {
                    let path = [&at[..], b"/", &[b'm'].repeat(length), number.to_string().as_bytes()].concat();
                    self.add(&path, EntryType::Regular, Pax::default(), &[]);
                }
            }
        }
    }

    fn add(&mut self, path: &[u8], kind: EntryType, mut pax: Pax, data: &[u8]) {
        pax.record("path", path);
        let mut more = tar::Header::new_ustar();
        more.set_entry_type(EntryType::XHeader);
        self.block(more, &pax.records);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(pax.mode);
        self.block(header, data);
    }

    fn block(&mut self, mut header: tar::Header, data: &[u8]) {
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.out.extend(header.as_bytes());
        self.out.extend(data);
        self.out.resize(self.out.len().next_multiple_of(512), 0);
    }
}

struct Pax {
    records: Vec<u8>,
    mode: u32,
}

impl Default for Pax {
    fn default() -> Self {
        Self { records: Vec::new(), mode: 0o755 }
    }
}

impl Pax {
    /// Each bit is one thing that is not as usual.
    fn of(odd: u8, bytes: &mut Bytes<'_>) -> Self {
        let mut pax = Self::default();
        if odd & 1 != 0 {
            pax.mode = u32::from(bytes.one()) << 4;
        }
        if odd & 2 != 0 {
            let id = u32::MAX - u32::from(bytes.one());
            pax.record("uid", id.to_string().as_bytes());
            pax.record("gid", (id >> 1).to_string().as_bytes());
        }
        if odd & 4 != 0 {
            let time = (i64::from(bytes.one()) - 128) << (bytes.one() % 40);
            pax.record("mtime", format!("{time}.{}", bytes.one()).as_bytes());
        }
        if odd & 8 != 0 {
            let length = bytes.two() % 4200;
            pax.record("SCHILY.xattr.user.one", &[b'v'].repeat(length));
        }
        if odd & 16 != 0 {
            for number in 0..bytes.one() % 64 {
                pax.record(&format!("SCHILY.xattr.trusted.{number}"), &[number]);
            }
        }
        if odd & 32 != 0 {
            pax.record("SCHILY.acl.access", b"user::rwx,user:1:r--,group::r-x,mask::rwx,other::r--");
        }
        pax
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let digits = (1..).find(|digits| (rest + digits).to_string().len() == *digits).expect("some number");
        self.records.extend(format!("{} {key}=", rest + digits).bytes());
        self.records.extend(value);
        self.records.push(b'\n');
    }
}
