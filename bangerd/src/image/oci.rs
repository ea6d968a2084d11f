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
use std::collections::BTreeMap;
use std::path::Path;

/// Manifests are capped at 4 MiB by registries (OCI distribution specification, "Pushing Manifests").
const MAX_JSON: u64 = 4 << 20;
/// Docker's own limit is 127 layers.
const MAX_LAYERS: usize = 512;
/// Blobs and folders of a layout that are looked at.
const MAX_FILES: u64 = 100_000;
/// An index may point to an index; more than this is no image.
const MAX_DEPTH: u32 = 4;

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

/// The chosen image of a layout: verified, its layers not yet read.
pub(super) struct Image {
    /// Of the manifest.
    pub(super) digest: Digest,
    layers: Vec<(Descriptor, String)>,
    blobs: Blobs,
}

/// Regular files of the layout by name.
struct Blobs(BTreeMap<String, Window>);

/// Looks for an OCI layout; `None` when the tar holds something else.
///
/// # Errors
/// A layout without a usable linux/amd64 image, and all that can be wrong with an archive.
pub(super) fn open(outer: &Window, progress: &dyn Progress) -> Result<Option<Image>, ImageError> {
    let Some(blobs) = Blobs::collect(outer, progress)? else {
        return Ok(None);
    };
    let index: Index = json(&blobs.small("index.json")?, "index.json")?;
    let mut found: Vec<(String, Manifest, Config)> = Vec::new();
    let mut seen_other = Vec::new();
    let mut todo: Vec<(Descriptor, u32)> = index.manifests.into_iter().map(|d| (d, 0)).collect();
    while let Some((descriptor, depth)) = todo.pop() {
        check(progress)?;
        if let Some(platform) = descriptor.platform.as_ref().filter(|p| !p.is_ours()) {
            seen_other.push(platform.to_string());
            continue;
        }
        if found.iter().any(|(digest, ..)| *digest == descriptor.digest) {
            continue;
        }
        let blob = blobs.json_blob(&descriptor, progress)?;
        if is_index(&descriptor.media_type) {
            if depth >= MAX_DEPTH {
                return Err(bad("its index is nested too deeply"));
            }
            let inner: Index = json(&blob, &descriptor.digest)?;
            todo.extend(inner.manifests.into_iter().map(|d| (d, depth + 1)));
            continue;
        }
        let manifest: Manifest = json(&blob, &descriptor.digest)?;
        let config: Config = json(&blobs.json_blob(&manifest.config, progress)?, &manifest.config.digest)?;
        let platform = Platform { architecture: config.architecture.clone(), os: config.os.clone() };
        if platform.is_ours() {
            found.push((descriptor.digest, manifest, config));
        } else {
            seen_other.push(platform.to_string());
        }
    }
    let (digest, manifest, config) = match (found.pop(), found.is_empty()) {
        (Some(one), true) => one,
        (Some(_), false) => return Err(bad("it holds several images for linux/amd64; export a single one")),
        (None, _) if seen_other.is_empty() => return Err(bad("its index names no image")),
        (None, _) => {
            return Err(bad(&format!("it is for {}; an image for linux/amd64 is needed", seen_other.join(", "))));
        }
    };
    if manifest.layers.len() != config.rootfs.diff_ids.len() || manifest.layers.len() > MAX_LAYERS {
        return Err(bad("its manifest and its configuration name different numbers of layers, or too many"));
    }
    let layers = manifest.layers.into_iter().zip(config.rootfs.diff_ids).collect();
    Ok(Some(Image { digest: parse_digest(&digest)?, layers, blobs }))
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
    for (number, (descriptor, diff_id)) in (1..).zip(&image.layers) {
        if descriptor.media_type.contains("encrypted") {
            return Err(bad(&format!("layer {number} is encrypted; decrypt the image first")));
        }
        let name = format!("layer {number} of {total} ({})", descriptor.digest);
        let blob = image.blobs.verified(descriptor, progress)?;
        let spooled = spool(&blob, &name, dir, budget, progress)?;
        if parse_digest(diff_id)?.as_bytes() != &spooled.sha256 {
            return Err(ImageError::Blob { digest: descriptor.digest.clone(), what: "diff id" });
        }
        layers.push(Layer { window: spooled.window, name, whiteouts: true, strict_end: false });
    }
    Ok(layers)
}

impl Platform {
    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Blobs {
    /// The layout's files, or `None` when there is no layout. A root file system is recognised as such at its
    /// first entries in most cases, but an `index.json` may come last: all names are read, no contents.
    fn collect(outer: &Window, progress: &dyn Progress) -> Result<Option<Self>, ImageError> {
        let mut files = BTreeMap::new();
        // Generous: the caller's budget counts when the entries are applied.
        let mut budget = Budget::new(u64::MAX, u64::MAX);
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
                Kind::File { offset, size } if ours && budget.entries <= MAX_FILES => {
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
            let legacy: Result<Vec<serde_json::Value>, _> =
                Self(files).small("manifest.json").and_then(|b| json(&b, ""));
            if legacy.is_ok_and(|list| list.iter().all(|image| image.get("Layers").is_some())) {
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

    fn json_blob(&self, descriptor: &Descriptor, progress: &dyn Progress) -> Result<Vec<u8>, ImageError> {
        if descriptor.size > MAX_JSON {
            return Err(bad(&format!("{} is larger than 4 MiB", descriptor.digest)));
        }
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

fn bad(why: &str) -> ImageError {
    ImageError::Oci { why: why.to_owned() }
}
