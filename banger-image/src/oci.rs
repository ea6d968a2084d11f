//! An OCI image layout inside a tar (OCI image specification v1.1: `image-layout.md`,
//! `image-index.md`, `manifest.md`, `config.md`), and the unpacking of layers.
//!
//! Nothing of a blob is used before its digest and size are checked against the descriptor that led
//! to it. A layer is decompressed while its digest is computed, and read when the digest is right.

use super::container::{
    Config, Files, Image, Kinds, LayerBlob, MAX_JSON, Platform, bad, choose, json, or_default, parse_digest,
};
use super::docker::{self, MAX_LAYERS};
use super::error::ImageError;
use super::hashing::{Hasher, Of};
use super::layers::Layer;
use super::source::{Budget, Progress, Window, check, sha256};
use super::spool::{Hashes, spool};
use super::{SourceKind, configuration};
use banger_policy::Digest;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// An index may point to an index; more than this is no image.
const MAX_DEPTH: u32 = 4;
/// Bytes of indexes, manifests and configurations that one import reads; an image for twenty
/// platforms has 0.2 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Descriptors that one import visits.
const MAX_DESCRIPTORS: u64 = 4096;
/// Platforms that a message names.
const NAMED_PLATFORMS: usize = 4;
/// Media types of configurations that make an image; all others are artifacts.
const CONFIGS: [&str; 3] =
    ["", "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Of such a name, characters: it is passed on to everything below an index.
const MAX_NAME: usize = 255;
/// Annotations with an image's name.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default, deserialize_with = "or_default")]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

/// An index or a manifest: which one shows by what it has.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(rename = "artifactType", default)]
    artifact_type: Option<String>,
    /// What a signature or the like is attached to.
    #[serde(default)]
    subject: Option<IgnoredAny>,
    #[serde(rename = "schemaVersion", default)]
    schema: Option<u32>,
}

/// What one import may still read and visit of indexes and manifests, however they refer to each
/// other.
#[derive(Default)]
struct Visit {
    bytes: u64,
    descriptors: u64,
    /// Each blob is looked at once.
    seen: BTreeSet<Digest>,
    /// Whether there was a manifest of Docker's schema 1.
    old: bool,
    /// Images for other platforms.
    foreign: u64,
    /// The first of them, for the message.
    named: BTreeSet<String>,
}

impl Visit {
    /// What an index names, to be visited; counted before it is kept.
    fn queue(&mut self, manifests: Vec<Descriptor>, depth: u32) -> Result<Vec<(Descriptor, u32)>, ImageError> {
        self.descriptors = self.descriptors.saturating_add(manifests.len() as u64);
        if self.descriptors > MAX_DESCRIPTORS {
            return Err(ImageError::TooMuchIndex { limit: MAX_DESCRIPTORS, what: "entries" });
        }
        // The last is visited first.
        Ok(manifests.into_iter().rev().map(|descriptor| (descriptor, depth)).collect())
    }

    fn read(&mut self, bytes: u64) -> Result<(), ImageError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_INDEX_BYTES {
            return Err(ImageError::TooMuchIndex { limit: MAX_INDEX_BYTES, what: "bytes" });
        }
        Ok(())
    }

    fn pass_over(&mut self, platform: &Platform) {
        if platform.is_unknown() {
            return;
        }
        self.foreign = self.foreign.saturating_add(1);
        if self.named.len() < NAMED_PLATFORMS {
            self.named.insert(platform.short());
        }
    }

    /// Why no image was found.
    fn nothing(&self) -> ImageError {
        if self.old {
            return bad(
                "its manifest has Docker's schema 1, which is not supported; pull and save it with a new docker",
            );
        }
        if self.foreign == 0 {
            return bad("its index names no image");
        }
        let named: Vec<&str> = self.named.iter().map(String::as_str).collect();
        let more = if self.foreign > self.named.len() as u64 { ", ..." } else { "" };
        bad(&format!("it is for {}{more}; an image for linux/amd64 is needed", named.join(", ")))
    }
}

/// Looks for an image; `None` when the tar holds something else.
///
/// # Errors
/// No usable image for linux/amd64, several, and all that can be wrong with an archive.
pub(super) fn open(
    outer: &Window,
    reference: Option<&str>,
    entries: u64,
    progress: &dyn Progress,
) -> Result<Option<Image>, ImageError> {
    let kinds = Kinds::of(outer, entries, progress)?;
    if !kinds.layout && !kinds.manifest && !kinds.repositories {
        return Ok(None);
    }
    let files = Files::of(outer, entries, progress)?;
    if kinds.layout {
        let mut visit = Visit::default();
        let found = images(&files, &mut visit, progress)?;
        if !found.is_empty() {
            return choose(found, reference).and_then(|found| image(&files, found, progress)).map(Some);
        }
        // docker saves an image that it knows by its digest alone without a word in the index.
        let saved = if files.has("manifest.json") { docker::open(&files, reference, progress)? } else { None };
        return saved.map(Some).ok_or_else(|| visit.nothing());
    }
    if kinds.manifest
        && let Some(image) = docker::open(&files, reference, progress)?
    {
        return Ok(Some(image));
    }
    if kinds.repositories { docker::open_chain(&files, reference, progress) } else { Ok(None) }
}

/// The manifest's digest, the layers, the configuration and its blob.
type Found = (Digest, Vec<Descriptor>, Config, Digest);

/// All images for our platform, with their names.
fn images(files: &Files, visit: &mut Visit, progress: &dyn Progress) -> Result<Vec<(Vec<String>, Found)>, ImageError> {
    let index: Document = json(&files.small("index.json")?, "index.json")?;
    let mut found = Vec::new();
    let mut todo = visit.queue(index.manifests.unwrap_or_default(), 0)?;
    while let Some((descriptor, depth)) = todo.pop() {
        check(progress)?;
        if let Some(platform) = descriptor.platform.as_ref().filter(|platform| !platform.is_ours()) {
            visit.pass_over(platform);
            continue;
        }
        let digest = parse_digest(&descriptor.digest)?;
        if !visit.seen.insert(digest) {
            continue;
        }
        let document: Document = json(&json_blob(files, &descriptor, visit, progress)?, &descriptor.digest)?;
        if let Some(manifests) = document.manifests {
            if depth >= MAX_DEPTH {
                return Err(bad("its index is nested too deeply"));
            }
            let mut below = visit.queue(manifests, depth + 1)?;
            // An image that is made for several platforms is called what its index is called.
            for (inner, _) in &mut below {
                for key in NAMES {
                    if let (Some(name), false) = (descriptor.annotations.get(key), inner.annotations.contains_key(key))
                    {
                        inner.annotations.insert(key.to_owned(), name.chars().take(MAX_NAME).collect());
                    }
                }
            }
            todo.extend(below);
            continue;
        }
        if document.schema == Some(1) {
            visit.old = true;
            continue;
        }
        // Signatures, bills of material and the like stand beside images.
        let Some(config) = document.config.filter(|config| CONFIGS.contains(&config.media_type.as_str())) else {
            continue;
        };
        // An image may say what it is for; what is attached to another one is none.
        if document.artifact_type.is_some() && (document.subject.is_some() || config.media_type.is_empty()) {
            continue;
        }
        let (raw, blob) = (json_blob(files, &config, visit, progress)?, parse_digest(&config.digest)?);
        let config: Config = json(&raw, &config.digest)?;
        if config.diff_ids().is_none() {
            continue;
        }
        if !config.platform().is_ours() {
            visit.pass_over(&config.platform());
            continue;
        }
        let mut names: Vec<String> = NAMES.iter().filter_map(|key| descriptor.annotations.get(*key).cloned()).collect();
        names.push(descriptor.digest);
        found.push((names, (digest, document.layers.unwrap_or_default(), config, blob)));
    }
    Ok(found)
}

fn image(files: &Files, found: Found, progress: &dyn Progress) -> Result<Image, ImageError> {
    let (digest, layers, config, blob) = found;
    let diff_ids = config.diff_ids().unwrap_or_default();
    if layers.len() != diff_ids.len() || layers.len() > MAX_LAYERS {
        return Err(bad("its manifest and its configuration name different numbers of layers, or too many"));
    }
    let layers = (1..).zip(&layers).zip(diff_ids).map(|((number, descriptor), diff_id)| {
        if descriptor.media_type.contains("encrypted") {
            return Err(bad(&format!("layer {number} is encrypted; decrypt the image first")));
        }
        let digest = parse_digest(&descriptor.digest)?;
        if is_foreign(descriptor) && !files.has(&blob_path(&digest)) {
            let why = "is not distributed with the image (a foreign layer), so this archive does not have it";
            return Err(bad(&format!("layer {number} {why}; save the image with its foreign layers")));
        }
        let window = sized(files, descriptor)?.clone();
        let diff_id = Some(parse_digest(diff_id)?);
        Ok(LayerBlob { window, name: descriptor.digest.clone(), digest: Some(digest), diff_id })
    });
    let layers = layers.collect::<Result<_, _>>()?;
    // Verified when it was read for the first time.
    let config = configuration::parse(&files.small(&blob_path(&blob))?, &format!("sha256:{blob}"), progress)?;
    Ok(Image { kind: SourceKind::Oci, digest, layers, config })
}

/// Verifies and decompresses the layers, oldest first.
///
/// # Errors
/// `Blob` for a wrong digest, size or diff id; all of [`spool`].
pub(super) fn layers(
    image: &Image,
    dir: &Path,
    hasher: &Hasher,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<Vec<Layer>, ImageError> {
    let total = image.layers.len();
    let mut layers = Vec::with_capacity(total);
    // One blob may be many layers, the empty one mostly: it is verified and unpacked once.
    let mut unpacked: HashMap<(u64, u64), (Window, [u8; 32])> = HashMap::new();
    for (number, blob) in (1..).zip(&image.layers) {
        let name = format!("layer {number} of {total} ({})", blob.name);
        let (window, plain) = match unpacked.get(&blob.window.place()) {
            Some(known) => known.clone(),
            None => {
                let known = unpack(blob, &name, dir, hasher, budget, progress)?;
                unpacked.insert(blob.window.place(), known.clone());
                known
            }
        };
        if blob.diff_id.as_ref().is_some_and(|diff_id| diff_id.as_bytes() != &plain) {
            return Err(ImageError::Blob { digest: blob.name.clone(), what: "diff id" });
        }
        layers.push(Layer { window, name, whiteouts: true });
    }
    Ok(layers)
}

/// The plain layer and its SHA-256.
fn unpack(
    blob: &LayerBlob,
    name: &str,
    dir: &Path,
    hasher: &Hasher,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<(Window, [u8; 32]), ImageError> {
    let (packed, plain) = (hasher.begin(Of::Packed), hasher.begin(Of::Plain));
    let hashes = Hashes { packed: Some(&packed), plain: Some(&plain) };
    let spooled = spool(&blob.window, name, dir, hashes, budget, progress);
    // A damaged blob is called that, and not what the decoder makes of it.
    let packed = packed.finish(&blob.window, progress)?;
    if blob.digest.as_ref().is_some_and(|digest| digest.as_bytes() != &packed) {
        return Err(ImageError::Blob { digest: blob.name.clone(), what: "digest" });
    }
    let window = spooled?;
    let plain = if window.is(&blob.window) { packed } else { plain.finish(&window, progress)? };
    Ok((window, plain))
}

/// A layer that its maker lets nobody pass on.
fn is_foreign(descriptor: &Descriptor) -> bool {
    ["nondistributable", "foreign"].iter().any(|word| descriptor.media_type.contains(word))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{digest}")
}

/// A descriptor's blob, of the size that it says.
fn sized<'a>(files: &'a Files, descriptor: &Descriptor) -> Result<&'a Window, ImageError> {
    let digest = parse_digest(&descriptor.digest)?;
    // From here on the text is 71 bytes long, and may stand in messages.
    let window = files.file(&blob_path(&digest))?;
    if window.len() == descriptor.size {
        Ok(window)
    } else {
        Err(ImageError::Blob { digest: descriptor.digest.clone(), what: "size" })
    }
}

fn json_blob(
    files: &Files,
    descriptor: &Descriptor,
    visit: &mut Visit,
    progress: &dyn Progress,
) -> Result<Vec<u8>, ImageError> {
    let digest = parse_digest(&descriptor.digest)?;
    if descriptor.size > MAX_JSON {
        return Err(bad(&format!("{digest} is larger than 4 MiB")));
    }
    visit.read(descriptor.size)?;
    let window = sized(files, descriptor)?;
    if &sha256(window, progress)? != digest.as_bytes() {
        return Err(ImageError::Blob { digest: descriptor.digest.clone(), what: "digest" });
    }
    window.read_all().map_err(|source| ImageError::Read { source })
}
