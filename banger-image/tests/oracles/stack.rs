//! Random stacks of layers, as tars: what builders of images write, and names and owners that few
//! images have.
//!
//! Only what the image specification defines: nothing lies below a file, and a folder that a layer
//! puts something into is there before.

use crate::dice::Dice;
use crate::seen::{Seen, shown};
use crate::tarball::{Item, Kind, Tarball};
use std::collections::{BTreeMap, BTreeSet};

const NAMES: [&[u8]; 21] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"etc",
    b"lib",
    b"x y",
    b"-rf",
    b"it's",
    b"\"quoted\"",
    b"back\\slash",
    "\u{e9}\u{65e5}".as_bytes(),
    b"caf\xe9",
    b".hidden",
    b"...",
    b"..a",
    b"wh.a",
    b"star*",
    b"%41",
    b"#c",
    b"$HOME",
];
const MODES: [u32; 10] = [0o755, 0o644, 0o600, 0o700, 0o000, 0o4755, 0o2755, 0o1777, 0o6711, 0o444];
const OWNERS: [u64; 7] = [0, 0, 1, 1000, 65_534, 2_097_152, 4_294_967_294];

type Path = Vec<u8>;

/// What stands at a path when all layers up to now are applied.
#[derive(Clone)]
struct Standing {
    item: Item,
    /// Whether the present layer has an entry for it.
    own: bool,
    /// The same for all names of one file.
    file: usize,
}

/// Makes layers; the tree that they come to is the business of others.
pub(crate) struct Stack {
    dice: Dice,
    tree: BTreeMap<Path, Standing>,
    /// Whether a whiteout may mean something.
    whiteouts: bool,
    files: usize,
}

impl Stack {
    pub(crate) fn new(dice: Dice, whiteouts: bool) -> Self {
        Self { dice, tree: BTreeMap::new(), whiteouts, files: 0 }
    }

    /// What the layers come to.
    pub(crate) fn expected(&self) -> Seen {
        let mut names: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (path, standing) in &self.tree {
            names.entry(standing.file).or_default().push(shown(path));
        }
        let all = self.tree.iter();
        all.map(|(path, standing)| (shown(path), standing.item.describe(&names[&standing.file]))).collect()
    }

    /// One more layer. The first has the root and enough to be taken for a root file system.
    pub(crate) fn layer(&mut self) -> Tarball {
        let is_first = self.tree.is_empty();
        self.tree.values_mut().for_each(|standing| standing.own = false);
        let (mut items, mut last) = (Vec::new(), Vec::new());
        if is_first {
            self.put(Vec::new(), Kind::Dir, &mut items);
            for name in ["etc", "usr"] {
                self.put(name.into(), Kind::Dir, &mut items);
            }
        }
        for _ in 0..self.dice.below(40) + 3 {
            match self.dice.below(if self.whiteouts && !is_first { 10 } else { 7 }) {
                7 | 8 => self.hide(&mut items, &mut last),
                9 => self.make_opaque(&mut items, &mut last),
                6 => self.link(&mut items),
                5 => self.again(&mut items),
                _ => self.add(&mut items),
            }
        }
        // What stood there may have given way to something else since.
        items.extend(last.into_iter().filter(|marker| self.is_dir(split(&marker.path).0)));
        let mut tarball = Tarball::default();
        for item in &items {
            tarball.add(item, &mut self.dice);
        }
        tarball
    }

    fn add(&mut self, items: &mut Vec<Item>) {
        let path = self.new_path();
        let kind = match self.dice.below(12) {
            0..4 => Kind::Dir,
            4..8 => Kind::File(self.content()),
            8 | 9 => Kind::Symlink(self.target()),
            10 => Kind::Fifo,
            _ if self.dice.one_in(2) => Kind::Char(self.dice.below(300), self.dice.below(70_000)),
            _ => Kind::Block(self.dice.below(300), self.dice.below(70_000)),
        };
        // GNU tar and bsdtar keep a folder that is in the way, and what is in it; and of a folder
        // that an archive has twice, bsdtar keeps the first time.
        if self.whiteouts || !self.is_dir(&path) {
            self.put(path, kind, items);
        }
    }

    /// An entry for what is there already: a folder keeps what is in it.
    fn again(&mut self, items: &mut Vec<Item>) {
        let Some(path) = self.pick(|_, standing| !standing.own) else { return };
        let is_dir = self.is_dir(&path);
        let kind = if is_dir && !self.dice.one_in(4) { Kind::Dir } else { Kind::File(self.content()) };
        self.put(path, kind, items);
    }

    fn link(&mut self, items: &mut Vec<Item>) {
        // GNU tar packs two names of a FIFO as two of them.
        let fifos = self.whiteouts;
        let linkable = |_: &Path, standing: &Standing| match standing.item.kind {
            Kind::File(_) => true,
            Kind::Fifo => fifos,
            _ => false,
        };
        let Some(target) = self.pick(linkable) else { return };
        let path = self.new_path();
        if path == target || self.tree.contains_key(&path) {
            return;
        }
        self.describe_parents(&path, items);
        let Some(standing) = self.tree.get(&target).cloned() else { return };
        // The header of a hard link repeats what it says of the file.
        items.push(Item { path: path.clone(), kind: Kind::Hardlink(target), ..standing.item.clone() });
        self.tree.insert(path, Standing { own: true, ..standing });
    }

    /// A whiteout, before or behind what the layer puts there instead.
    fn hide(&mut self, items: &mut Vec<Item>, last: &mut Vec<Item>) {
        let Some(path) = self.pick(|_, standing| !standing.own) else { return };
        if self.below(&path).iter().any(|below| self.tree.get(below).is_some_and(|standing| standing.own)) {
            return;
        }
        let (parent, name) = split(&path);
        self.describe_parents(&path, items);
        let marker = join(parent, &[b".wh.", name].concat());
        let marker = self.item(marker, Kind::File(Vec::new()));
        self.remove(&path);
        if self.dice.one_in(3) { last.push(marker) } else { items.push(marker) }
    }

    fn make_opaque(&mut self, items: &mut Vec<Item>, last: &mut Vec<Item>) {
        let Some(path) = self.pick(|_, standing| matches!(standing.item.kind, Kind::Dir)) else { return };
        if !self.tree.get(&path).is_some_and(|standing| standing.own) {
            self.put(path.clone(), Kind::Dir, items);
        }
        for below in self.below(&path) {
            if self.tree.get(&below).is_some_and(|standing| !standing.own) {
                self.remove(&below);
            }
        }
        let marker = self.item(join(&path, b".wh..wh..opq"), Kind::File(Vec::new()));
        if self.dice.one_in(3) { last.push(marker) } else { items.push(marker) }
    }

    fn put(&mut self, path: Path, kind: Kind, items: &mut Vec<Item>) {
        self.describe_parents(&path, items);
        if !matches!(kind, Kind::Dir) || !self.is_dir(&path) {
            self.remove(&path);
        }
        let item = self.item(path.clone(), kind);
        items.push(item.clone());
        self.stand(path, item);
    }

    fn stand(&mut self, path: Path, item: Item) {
        self.files += 1;
        self.tree.insert(path, Standing { item, own: true, file: self.files });
    }

    /// Entries for the folders above that this layer has said nothing of.
    fn describe_parents(&mut self, path: &[u8], items: &mut Vec<Item>) {
        let parents: Vec<Path> = slashes(path).map(|at| path[..at].to_vec()).collect();
        for parent in parents {
            if self.tree.get(&parent).is_some_and(|standing| standing.own && matches!(standing.item.kind, Kind::Dir)) {
                continue;
            }
            if !self.is_dir(&parent) {
                self.remove(&parent);
            }
            let item = self.item(parent.clone(), Kind::Dir);
            items.push(item.clone());
            self.stand(parent, item);
        }
    }

    fn item(&mut self, path: Path, kind: Kind) -> Item {
        let mode = *self.dice.of(&MODES);
        let may_have = matches!(kind, Kind::Dir | Kind::File(_));
        let xattrs = if may_have && self.dice.one_in(4) { self.xattrs(mode) } else { Vec::new() };
        let (uid, gid) = (*self.dice.of(&OWNERS), *self.dice.of(&OWNERS));
        let seconds = i64::from(self.dice.below(2_000_000_000));
        let nanos = if self.dice.one_in(3) { self.dice.below(1_000_000_000) } else { 0 };
        Item { path, kind, mode, uid, gid, mtime: (seconds, nanos), xattrs }
    }

    fn xattrs(&mut self, mode: u32) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        if self.dice.one_in(2) {
            // Never empty: Go's reader of tar, and so docker and umoci, takes an empty record for
            // one that is deleted. GNU tar keeps it, and so do we.
            let value = (0..=self.dice.below(200)).map(|_| self.dice.byte()).collect();
            all.push(("user.note".to_owned(), value));
        }
        if self.dice.one_in(3) {
            all.push(("trusted.of_root".to_owned(), b"a=b\nc".to_vec()));
        }
        if self.dice.one_in(3) {
            // struct vfs_cap_data, revision 2, effective, CAP_NET_RAW (linux/capability.h).
            let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
            all.push(("security.capability".to_owned(), words.iter().flat_map(|word| word.to_le_bytes()).collect()));
        }
        if self.dice.one_in(3) {
            // user::, user:1000:r-x, group::r--, mask::, other:: of the mode (acl(5)).
            let bits = |shift: u32| u16::try_from(mode >> shift & 7).unwrap();
            let none = u32::MAX;
            let entries = [(1, bits(6), none), (2, 5, 1000), (4, 4, none), (16, bits(3), none), (32, bits(0), none)];
            let mut value = 2_u32.to_le_bytes().to_vec();
            for (tag, allowed, id) in entries {
                value
                    .extend(u16::to_le_bytes(tag).into_iter().chain(allowed.to_le_bytes()).chain(u32::to_le_bytes(id)));
            }
            all.push(("system.posix_acl_access".to_owned(), value));
        }
        all
    }

    fn content(&mut self) -> Vec<u8> {
        let length = match self.dice.below(6) {
            0 => 0,
            1 => self.dice.below(300_000),
            _ => self.dice.below(9_000),
        };
        (0..length).map(|_| self.dice.byte()).collect()
    }

    fn target(&mut self) -> Vec<u8> {
        match self.dice.below(6) {
            0 => b"/nowhere/at all".to_vec(),
            1 => b"../../../../etc".to_vec(),
            2 => vec![b'l'; 150],
            3 => [b"/".as_slice(), &self.pick(|_, _| true).unwrap_or_default()].concat(),
            _ => self.dice.of(&NAMES).to_vec(),
        }
    }

    fn new_path(&mut self) -> Path {
        let is_dir = |_: &Path, standing: &Standing| matches!(standing.item.kind, Kind::Dir);
        let parent = if self.dice.one_in(4) { Path::new() } else { self.pick(is_dir).unwrap_or_default() };
        let name = match self.dice.below(12) {
            0 => vec![b'n'; 100 + self.dice.below(150) as usize],
            1 => format!("f{}", self.dice.below(1000)).into_bytes(),
            _ => self.dice.of(&NAMES).to_vec(),
        };
        // Whatever is below "etc" stays a folder: a tree without one is no root file system.
        let path = join(&parent, &name);
        if matches!(path.as_slice(), b"etc" | b"usr") { join(&path, b"more") } else { path }
    }

    fn pick(&mut self, wanted: impl Fn(&Path, &Standing) -> bool) -> Option<Path> {
        let all = self
            .tree
            .iter()
            .filter(|(path, standing)| !matches!(path.as_slice(), b"" | b"etc" | b"usr") && wanted(path, standing));
        let all: Vec<&Path> = all.map(|(path, _)| path).collect();
        if all.is_empty() { None } else { Some((*self.dice.of(&all)).clone()) }
    }

    fn is_dir(&self, path: &[u8]) -> bool {
        self.tree.get(path).is_some_and(|standing| matches!(standing.item.kind, Kind::Dir))
    }

    fn below(&self, path: &[u8]) -> BTreeSet<Path> {
        let prefix = if path.is_empty() { Path::new() } else { [path, b"/"].concat() };
        self.tree.keys().filter(|known| known.starts_with(&prefix) && known.as_slice() != path).cloned().collect()
    }

    fn remove(&mut self, path: &[u8]) {
        let gone = self.below(path);
        self.tree.retain(|known, _| known != path && !gone.contains(known));
    }
}

fn slashes(path: &[u8]) -> impl Iterator<Item = usize> + '_ {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    slashes(path).last().map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

fn join(parent: &[u8], name: &[u8]) -> Path {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
