//! The files of an archive that holds an image: an OCI layout, or what `docker save` writes.

use super::archive::{Archive, Kind};
use super::content::{Content, Contents, Sparse};
use super::error::ImageError;
use super::names::printable;
use super::source::{Budget, CHUNK, Progress, Quiet, Window, check};
use super::{Limits, SourceKind};
use banger_policy::json::{AnyCase, optional, or_default};
use banger_policy::platform::Platform;
use banger_policy::{Digest, ImageConfig};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Manifests are capped at 4 MiB by registries (OCI distribution specification, "Pushing
/// Manifests").
pub(super) const MAX_JSON: u64 = 4 << 20;
/// Files and links that are looked at.
const MAX_FILES: usize = 100_000;
/// Stretches of data in all those whose holes were left out, bytes of memory for each: 24.
const MAX_PIECES: usize = 1 << 20;
/// The longest name of one.
const MAX_NAME: usize = 255;
/// Links on the way to a file.
const MAX_LINKS: usize = 8;
/// Names at an archive's top that say which kind of image it holds.
const SIGNS: [&str; 4] = ["oci-layout", "index.json", "manifest.json", "repositories"];

/// What an archive holds that has an image: regular files by name, and links between them.
#[derive(Default)]
pub(super) struct Files {
    files: BTreeMap<String, Window>,
    links: BTreeMap<String, String>,
    /// Those of [`SIGNS`] that are there.
    signs: BTreeSet<&'static str>,
}

impl Files {
    /// `None` when the archive holds something else than an image. All names are read, since an
    /// index may come last.
    ///
    /// A file whose holes were left out (`tar -S`) is made whole in `dir`, within what may be
    /// expanded.
    ///
    /// # Errors
    /// All that can be wrong with an archive, too many files, and a full disk.
    pub(super) fn of(
        outer: &Window,
        dir: &Path,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Option<Self>, ImageError> {
        let quiet = Quiet(progress);
        let mut budget = Budget::new(limits.expanded_bytes, limits.entries);
        let mut archive = Archive::new(outer, "the archive");
        let mut found = Self::default();
        let (mut sparse, mut pieces_held, mut too_many) = (Vec::new(), 0, false);
        while let Some(entry) = archive.next(&mut budget, &quiet)? {
            check(progress)?;
            let path = entry.path.as_bytes();
            // A root file system may have a file of any name.
            if matches!(path.split(|byte| *byte == b'/').next(), Some(b"bin" | b"sbin" | b"usr" | b"etc")) {
                return Ok(None);
            }
            let Ok(name) = std::str::from_utf8(path) else { continue };
            found.signs.extend(SIGNS.iter().filter(|sign| **sign == name));
            too_many |= found.files.len() + found.links.len() + sparse.len() >= MAX_FILES;
            // What is no image may have as many as it likes.
            if name.len() > MAX_NAME || too_many {
                continue;
            }
            match entry.kind {
                Kind::File { offset, size } => {
                    let window = outer.part(offset, size);
                    found.files.extend(window.map(|window| (name.to_owned(), window)));
                }
                Kind::Sparse { offset, stored, size, pieces } => {
                    let data = Content { window: 0, offset, size: stored };
                    pieces_held += pieces.len();
                    too_many |= pieces_held > MAX_PIECES;
                    sparse.push((name.to_owned(), Sparse { data, size, pieces }));
                }
                // docker saves a layer that two images share as a link.
                Kind::Symlink(target) => found.link(name, &String::from_utf8_lossy(&target)),
                Kind::Hardlink(target) => {
                    let target = format!("/{}", String::from_utf8_lossy(target.as_bytes()));
                    found.link(name, &target);
                }
                _ => {}
            }
        }
        if !(found.is_layout() || found.says("manifest.json") || found.says("repositories")) {
            return Ok(None);
        }
        if too_many {
            return Err(bad(&format!("it has more than {MAX_FILES} files, or files of more than {MAX_PIECES} pieces")));
        }
        let mut whole = Whole { dir, outer: std::slice::from_ref(outer), file: None, end: 0, files: Vec::new() };
        for (name, sparse) in &sparse {
            budget.spend_bytes(sparse.size)?;
            whole.add(name, sparse, progress)?;
        }
        found.files.extend(whole.finish()?);
        Ok(Some(found))
    }

    /// Whether its top has a file of this name, one of [`SIGNS`].
    pub(super) fn says(&self, sign: &str) -> bool {
        self.signs.contains(sign)
    }

    /// Whether it is an OCI layout.
    pub(super) fn is_layout(&self) -> bool {
        self.says("oci-layout") && self.says("index.json")
    }

    fn link(&mut self, name: &str, target: &str) {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let whole = if target.starts_with('/') { target.to_owned() } else { format!("{folder}/{target}") };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                _ => parts.push(part),
            }
        }
        let target = parts.join("/");
        if target.len() <= MAX_NAME {
            self.links.insert(name.to_owned(), target);
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// # Errors
    /// When it is missing.
    pub(super) fn file(&self, name: &str) -> Result<&Window, ImageError> {
        let mut name = name.strip_prefix("./").unwrap_or(name);
        for _ in 0..MAX_LINKS {
            if let Some(window) = self.files.get(name) {
                return Ok(window);
            }
            match self.links.get(name) {
                Some(target) => name = target,
                None => break,
            }
        }
        Err(bad(&format!("{name} is missing from it")))
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// When it is missing, or larger than a manifest may be.
    pub(super) fn small(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let window = self.file(name)?;
        if window.len() > MAX_JSON {
            return Err(bad(&format!("{name} is larger than 4 MiB")));
        }
        window.read_all().map_err(|source| ImageError::Read { source })
    }
}

/// Sparse files of an archive, one behind the other in an unlinked file, with their holes.
struct Whole<'a> {
    dir: &'a Path,
    /// The archive, as the one window of [`Contents`].
    outer: &'a [Window],
    file: Option<File>,
    end: u64,
    /// Name, and where it is in the file: beginning and length.
    files: Vec<(String, u64, u64)>,
}

impl Whole<'_> {
    fn add(&mut self, name: &str, sparse: &Sparse, progress: &dyn Progress) -> Result<(), ImageError> {
        let failed = |source| ImageError::Write { path: self.dir.to_owned(), source };
        let file = match self.file.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(self.dir).map_err(failed)?,
        };
        let contents = Contents(self.outer);
        let bytes =
            contents.bytes(sparse.data, sparse.size, &sparse.pieces).ok_or_else(|| bad("it ends inside a file"))?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while let Some((from, to)) = bytes.next_data(at) {
            check(progress)?;
            let length = usize::try_from(to - from).map_or(CHUNK, |length| length.min(CHUNK));
            let part = chunk.get_mut(..length).unwrap_or_default();
            bytes.read_at(from, part).map_err(|source| ImageError::Read { source })?;
            file.write_all_at(part, self.end + from).map_err(failed)?;
            at = from + length as u64;
        }
        self.files.push((name.to_owned(), self.end, sparse.size));
        self.end += sparse.size;
        file.set_len(self.end).map_err(failed)?;
        self.file = Some(file);
        Ok(())
    }

    fn finish(self) -> Result<Vec<(String, Window)>, ImageError> {
        let Some(file) = self.file else { return Ok(Vec::new()) };
        let all = Window::whole(file)?;
        let named = |(name, start, length)| Some((name, all.part(start, length)?));
        Ok(self.files.into_iter().filter_map(named).collect())
    }
}

/// The regular files of an archive that is a mere container, by name. Folders and all else are
/// passed over.
///
/// # Errors
/// As [`Archive::next`], and for a file whose holes were left out.
pub(crate) fn regular_files(
    tar: &Window,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Window>, ImageError> {
    let mut files = BTreeMap::new();
    let mut archive = Archive::new(tar, "the archive");
    while let Some(entry) = archive.next(budget, progress)? {
        check(progress)?;
        let name = || String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        match entry.kind {
            Kind::File { offset, size } => files.extend(tar.part(offset, size).map(|window| (name(), window))),
            Kind::Sparse { .. } => {
                return Err(ImageError::Unsupported {
                    layer: "the archive".to_owned(),
                    entry: printable(entry.path.as_bytes()),
                    what: "holes that were left out".to_owned(),
                    instead: "pack it without --sparse",
                });
            }
            _ => {}
        }
    }
    Ok(files)
}

/// What of an image's configuration says whether it is for us, and of which layers it is (OCI image
/// specification, `config.md`). The rest is read of the chosen image alone.
pub(super) struct Config {
    platform: Platform,
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Layered {
    #[serde(deserialize_with = "optional")]
    rootfs: Option<RootFs>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RootFs {
    #[serde(deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

impl Config {
    /// # Errors
    /// When it is no configuration.
    pub(super) fn parse(raw: &[u8], name: &str) -> Result<Self, ImageError> {
        let AnyCase(layered) = json::<AnyCase<Layered>>(raw, name)?;
        Ok(Self { platform: json(raw, name)?, diff_ids: layered.rootfs.map(|rootfs| rootfs.diff_ids) })
    }

    /// Digests of the layers' plain bytes; `None` when this is the configuration of no image.
    pub(super) fn diff_ids(&self) -> Option<&[String]> {
        self.diff_ids.as_deref()
    }

    /// Old images say nothing of it: they are for Linux on x86-64.
    pub(super) fn platform(&self) -> Platform {
        let or = |word: &str, usual: &str| if word.is_empty() { usual.to_owned() } else { word.to_owned() };
        let Platform { os, architecture, variant } = &self.platform;
        Platform { os: or(os, OURS[0]), architecture: or(architecture, OURS[1]), variant: variant.clone() }
    }
}

/// What VMs run.
const OURS: [&str; 2] = ["linux", "amd64"];

/// Whether nothing that is said of the platform speaks against ours.
pub(super) fn is_ours(platform: &Platform) -> bool {
    let [os, architecture] = OURS;
    platform.may_be(os, architecture)
}

/// One layer of the chosen image, not yet read.
#[derive(Clone)]
pub(super) struct LayerBlob {
    pub(super) window: Window,
    /// For messages: a digest, or a name in the archive.
    pub(super) name: String,
    /// Of the bytes as they are, when a manifest says it.
    pub(super) digest: Option<Digest>,
    /// Of the plain bytes, when a configuration says it.
    pub(super) diff_id: Option<Digest>,
}

/// The chosen image.
pub(super) struct Image {
    pub(super) kind: SourceKind,
    /// Of its manifest, or of its configuration where there is none.
    pub(super) digest: Digest,
    /// Oldest first.
    pub(super) layers: Vec<LayerBlob>,
    /// How commands run in it.
    pub(super) config: ImageConfig,
}

/// Chooses among several images: the one that is meant, else the only one.
///
/// # Errors
/// Lists their names when there are several or that one is not there.
pub(super) fn choose<T>(mut found: Vec<(Vec<String>, T)>, reference: Option<&str>) -> Result<T, ImageError> {
    const NAMED: usize = 8;
    let names = |found: &[(Vec<String>, T)]| {
        let all: Vec<String> =
            found.iter().take(NAMED).map(|(names, _)| names.first().cloned().unwrap_or_default()).collect();
        let more = if found.len() > NAMED { ", ..." } else { "" };
        format!("{}{more}", all.join(", "))
    };
    if let Some(reference) = reference {
        let listed = names(&found);
        let means =
            |name: &String| name == reference || name.rsplit_once([':', '/']).is_some_and(|(_, tag)| tag == reference);
        let mut meant: Vec<T> =
            found.into_iter().filter(|(names, _)| names.iter().any(means)).map(|(_, image)| image).collect();
        return match (meant.pop(), meant.is_empty()) {
            (Some(image), true) => Ok(image),
            (Some(_), false) => Err(bad(&format!("several of its images are called {reference:?}; it holds {listed}"))),
            (None, _) => Err(bad(&format!("none of its images is called {reference:?}; it holds {listed}"))),
        };
    }
    if found.len() > 1 {
        let listed = names(&found);
        return Err(bad(&format!("it holds several images: {listed}; name one with --ref")));
    }
    found.pop().map(|(_, image)| image).ok_or_else(|| bad("it holds no image"))
}

pub(super) fn parse_digest(text: &str) -> Result<Digest, ImageError> {
    text.strip_prefix("sha256:")
        .and_then(|hex| hex.parse().ok())
        .ok_or_else(|| bad(&format!("{:?} is not a sha256 digest", printable(text.as_bytes()))))
}

pub(super) fn json<T: for<'de> Deserialize<'de>>(data: &[u8], name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(data).map_err(|error| bad(&format!("{name}: {error}")))
}

/// `why` may quote the image, the words of the JSON parser above all.
pub(super) fn bad(why: &str) -> ImageError {
    ImageError::Oci { why: printable(why.as_bytes()) }
}
