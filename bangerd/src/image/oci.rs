//! An OCI image layout inside a tar (OCI image specification v1.1: `image-layout.md`, `image-index.md`,
//! `manifest.md`, `config.md`).
//!
//! Nothing of a blob is used before its digest and size are checked against the descriptor that led to it.

use super::archive::{Archive, Kind};
use super::error::ImageError;
use super::layers::Layer;
use super::source::{Budget, Progress, Window, check, sha256, spool};
use banger_policy::Digest;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Manifests are capped at 4 MiB by registries (OCI distribution specification, "Pushing Manifests").
const MAX_JSON: u64 = 4 << 20;
/// Docker's own limit is 127 layers.
const MAX_LAYERS: usize = 512;
/// Blobs and folders of a layout that are looked at.
const MAX_FILES: u64 = 100_000;
/// The longest name of a blob: `blobs/sha256/` and 64 digits. Longer names are no blobs of ours.
const MAX_NAME: usize = 80;
/// An index may point to an index; more than this is no image.
const MAX_DEPTH: u32 = 4;
/// Bytes of indexes, manifests and configurations that one import reads; an image for twenty platforms has 0.2 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Descriptors that one import visits.
const MAX_DESCRIPTORS: u64 = 4096;
/// Platforms that a message names.
const NAMED_PLATFORMS: usize = 4;

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    architecture: String,
    os: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image in the `manifest.json` of an old `docker save`.
#[derive(Deserialize)]
struct Legacy {
    #[serde(rename = "Layers")]
    layers: Option<serde::de::IgnoredAny>,
}

/// The chosen image of a layout: verified, its layers not yet read.
pub(super) struct Image {
    /// Of the manifest.
    pub(super) digest: Digest,
    layers: Vec<(Descriptor, String)>,
    blobs: Blobs,
}

/// Regular files of the layout by name.
struct Blobs(BTreeMap<String, Window>);

/// What one import may still read and visit of indexes and manifests, however they refer to each other.
#[derive(Default)]
struct Visit {
    bytes: u64,
    descriptors: u64,
    /// Each blob is looked at once.
    seen: BTreeSet<Digest>,
    /// Images for other platforms.
    foreign: u64,
    /// The first of them, for the message.
    named: BTreeSet<String>,
}

impl Visit {
    /// What an index names, to be visited; counted before it is kept.
    fn queue(&mut self, index: Index, depth: u32) -> Result<Vec<(Descriptor, u32)>, ImageError> {
        self.descriptors = self.descriptors.saturating_add(index.manifests.len() as u64);
        if self.descriptors > MAX_DESCRIPTORS {
            return Err(ImageError::TooMuchIndex { limit: MAX_DESCRIPTORS, what: "entries" });
        }
        Ok(index.manifests.into_iter().map(|descriptor| (descriptor, depth)).collect())
    }

    fn read(&mut self, bytes: u64) -> Result<(), ImageError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_INDEX_BYTES {
            return Err(ImageError::TooMuchIndex { limit: MAX_INDEX_BYTES, what: "bytes" });
        }
        Ok(())
    }

    fn pass_over(&mut self, platform: &Platform) {
        self.foreign = self.foreign.saturating_add(1);
        if self.named.len() < NAMED_PLATFORMS {
            let short = |word: &str| word.chars().filter(|c| !c.is_control()).take(20).collect::<String>();
            self.named.insert(format!("{}/{}", short(&platform.os), short(&platform.architecture)));
        }
    }

    /// Why no image was found.
    fn nothing(&self) -> ImageError {
        if self.foreign == 0 {
            return bad("its index names no image");
        }
        let named: Vec<&str> = self.named.iter().map(String::as_str).collect();
        let more = if self.foreign > self.named.len() as u64 { ", ..." } else { "" };
        bad(&format!("it is for {}{more}; an image for linux/amd64 is needed", named.join(", ")))
    }
}

/// Looks for an OCI layout; `None` when the tar holds something else.
///
/// # Errors
/// A layout without a usable linux/amd64 image, and all that can be wrong with an archive.
pub(super) fn open(outer: &Window, entries: u64, progress: &dyn Progress) -> Result<Option<Image>, ImageError> {
    let Some(blobs) = Blobs::collect(outer, entries, progress)? else {
        return Ok(None);
    };
    let mut visit = Visit::default();
    let index: Index = json(&blobs.small("index.json")?, "index.json")?;
    let mut found: Option<(Digest, Manifest, Config)> = None;
    let mut todo: Vec<(Descriptor, u32)> = visit.queue(index, 0)?;
    while let Some((descriptor, depth)) = todo.pop() {
        check(progress)?;
        if let Some(platform) = descriptor.platform.as_ref().filter(|p| !p.is_ours()) {
            visit.pass_over(platform);
            continue;
        }
        let digest = parse_digest(&descriptor.digest)?;
        if !visit.seen.insert(digest) {
            continue;
        }
        let blob = blobs.json_blob(&descriptor, &mut visit, progress)?;
        if is_index(&descriptor.media_type) {
            if depth >= MAX_DEPTH {
                return Err(bad("its index is nested too deeply"));
            }
            let inner: Index = json(&blob, &descriptor.digest)?;
            todo.extend(visit.queue(inner, depth + 1)?);
            continue;
        }
        let manifest: Manifest = json(&blob, &descriptor.digest)?;
        let config = blobs.json_blob(&manifest.config, &mut visit, progress)?;
        let config: Config = json(&config, &manifest.config.digest)?;
        let platform = Platform { architecture: config.architecture.clone(), os: config.os.clone() };
        if !platform.is_ours() {
            visit.pass_over(&platform);
        } else if found.replace((digest, manifest, config)).is_some() {
            return Err(bad("it holds several images for linux/amd64; export a single one"));
        }
    }
    let (digest, manifest, config) = found.ok_or_else(|| visit.nothing())?;
    if manifest.layers.len() != config.rootfs.diff_ids.len() || manifest.layers.len() > MAX_LAYERS {
        return Err(bad("its manifest and its configuration name different numbers of layers, or too many"));
    }
    let layers = manifest.layers.into_iter().zip(config.rootfs.diff_ids).collect();
    Ok(Some(Image { digest, layers, blobs }))
}

/// Verifies and decompresses the layers, oldest first.
///
/// # Errors
/// `Blob` for a wrong digest, size or diff id; all of [`spool`].
pub(super) fn layers(
    image: &Image,
    dir: &Path,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<Vec<Layer>, ImageError> {
    let total = image.layers.len();
    let mut layers = Vec::with_capacity(total);
    // One blob may be many layers, the empty one mostly: it is verified and unpacked once.
    let mut unpacked: HashMap<Digest, (Window, [u8; 32])> = HashMap::new();
    for (number, (descriptor, diff_id)) in (1..).zip(&image.layers) {
        if descriptor.media_type.contains("encrypted") {
            return Err(bad(&format!("layer {number} is encrypted; decrypt the image first")));
        }
        let name = format!("layer {number} of {total} ({})", descriptor.digest);
        let digest = parse_digest(&descriptor.digest)?;
        let (window, sha256) = match unpacked.get(&digest) {
            Some(known) => known.clone(),
            None => {
                let blob = image.blobs.verified(descriptor, progress)?;
                let spooled = spool(&blob, &name, dir, budget, progress)?;
                unpacked.insert(digest, (spooled.window.clone(), spooled.sha256));
                (spooled.window, spooled.sha256)
            }
        };
        if parse_digest(diff_id)?.as_bytes() != &sha256 {
            return Err(ImageError::Blob { digest: descriptor.digest.clone(), what: "diff id" });
        }
        layers.push(Layer { window, name, whiteouts: true, strict_end: false });
    }
    Ok(layers)
}

impl Platform {
    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

impl Blobs {
    /// The layout's files, or `None` when there is no layout. A root file system is recognised as such at its
    /// first entries in most cases, but an `index.json` may come last: all names are read, no contents.
    fn collect(outer: &Window, entries: u64, progress: &dyn Progress) -> Result<Option<Self>, ImageError> {
        let mut files = BTreeMap::new();
        let mut budget = Budget::new(u64::MAX, entries);
        let mut archive = Archive::new(outer, "the archive", true);
        let mut foreign = 0_u64;
        loop {
            check(progress)?;
            // What is wrong here is wrong again when a root file system is applied, with the same words.
            let Some(entry) = archive.next(&mut budget)? else {
                break;
            };
            let name = entry.path.as_str();
            let ours = matches!(name, "index.json" | "oci-layout" | "manifest.json" | "repositories" | "" | "blobs")
                || name.starts_with("blobs/");
            match entry.kind {
                Kind::File { offset, size } if ours && name.len() <= MAX_NAME && budget.entries <= MAX_FILES => {
                    if let Some(window) = outer.part(offset, size) {
                        files.insert(name.to_owned(), window);
                    }
                }
                _ if ours => {}
                _ => foreign += 1,
            }
        }
        if files.contains_key("oci-layout") && files.contains_key("index.json") {
            return Ok(Some(Self(files)));
        }
        if files.contains_key("manifest.json") && foreign > 0 && !files.contains_key("oci-layout") {
            // Typed, so that nothing is kept of what else four megabytes of JSON may say.
            let legacy: Result<Vec<Legacy>, _> = Self(files).small("manifest.json").and_then(|b| json(&b, ""));
            if legacy.is_ok_and(|list| list.iter().all(|image| image.layers.is_some())) {
                return Err(bad("it is in the format of `docker save` before Docker 25; \
                     convert it with `skopeo copy docker-archive:OLD oci-archive:NEW`"));
            }
        }
        Ok(None)
    }

    fn file(&self, name: &str) -> Result<&Window, ImageError> {
        self.0.get(name).ok_or_else(|| bad(&format!("{name} is missing from the layout")))
    }

    fn small(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let window = self.file(name)?;
        if window.len() > MAX_JSON {
            return Err(bad(&format!("{name} is larger than 4 MiB")));
        }
        window.read_all().map_err(|source| ImageError::Read { source })
    }

    fn verified(&self, descriptor: &Descriptor, progress: &dyn Progress) -> Result<Window, ImageError> {
        let digest = parse_digest(&descriptor.digest)?;
        // From here on the text is 71 bytes long, and may stand in messages.
        let window = self.file(&format!("blobs/sha256/{digest}"))?;
        let wrong = |what| ImageError::Blob { digest: descriptor.digest.clone(), what };
        if window.len() != descriptor.size {
            return Err(wrong("size"));
        }
        if &sha256(window, progress)? != digest.as_bytes() {
            return Err(wrong("digest"));
        }
        Ok(window.clone())
    }

    fn json_blob(
        &self,
        descriptor: &Descriptor,
        visit: &mut Visit,
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, ImageError> {
        if descriptor.size > MAX_JSON {
            return Err(bad(&format!("{} is larger than 4 MiB", parse_digest(&descriptor.digest)?)));
        }
        visit.read(descriptor.size)?;
        self.verified(descriptor, progress)?.read_all().map_err(|source| ImageError::Read { source })
    }
}

fn is_index(media_type: &str) -> bool {
    media_type == "application/vnd.oci.image.index.v1+json"
        || media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
}

fn parse_digest(text: &str) -> Result<Digest, ImageError> {
    text.strip_prefix("sha256:")
        .and_then(|hex| hex.parse().ok())
        .ok_or_else(|| bad(&format!("{:?} is not a sha256 digest", super::names::printable(text.as_bytes()))))
}

fn json<T: for<'de> Deserialize<'de>>(data: &[u8], name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(data).map_err(|error| bad(&format!("{name}: {error}")))
}

/// `why` may quote the image, the words of the JSON parser above all.
fn bad(why: &str) -> ImageError {
    ImageError::Oci { why: super::names::printable(why.as_bytes()) }
}
