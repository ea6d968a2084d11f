//! From the index of an OCI layout to its images (OCI image specification v1.1: `image-index.md`,
//! `manifest.md`).
//!
//! Nothing of a blob is used before its digest and size are checked against the descriptor that led
//! to it. What is beside an image and cannot be read is passed over, and named when no image is
//! found.

use super::container::{Config, Files, MAX_JSON, bad, is_ours, json, parse_digest};
use super::error::ImageError;
use super::source::{Progress, check, sha256};
use banger_policy::Digest;
use banger_policy::json::{AnyCase, list, optional, or_default};
use banger_policy::platform::{Platform, is_image_config};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};

/// An index may point to an index; more than this is no image.
const MAX_DEPTH: u32 = 4;
/// Bytes of indexes, manifests and configurations that one import reads; an image for twenty
/// platforms has 0.2 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Descriptors that one import visits.
const MAX_DESCRIPTORS: u64 = 4096;
/// Platforms that a message names.
const NAMED_PLATFORMS: usize = 4;
/// Of a name, characters: it is passed on to everything below an index.
const MAX_NAME: usize = 255;
/// Annotations with an image's name.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// What the media types of file-system layers have in them, OCI's and docker's.
const LAYERS: [&str; 2] = ["image.layer.", "image.rootfs."];

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Descriptor {
    #[serde(rename = "mediatype", deserialize_with = "or_default")]
    pub(super) media_type: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) digest: String,
    size: Option<i64>,
    platform: Platform,
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, Option<String>>,
}

/// What an image is called, by each of [`NAMES`].
type Names = [Option<String>; 2];

impl Descriptor {
    fn names(&self) -> Names {
        NAMES.map(|key| self.annotations.get(key)?.as_ref().map(|name| name.chars().take(MAX_NAME).collect()))
    }

    /// Whether a blob may have so many bytes. The digest counts where nothing is said of the size.
    pub(super) fn may_have(&self, bytes: u64) -> bool {
        self.size.and_then(|size| u64::try_from(size).ok()).is_none_or(|size| size == bytes)
    }

    /// The lowest is taken: for this platform, and for all machines of it.
    fn rank(&self) -> (bool, Option<&str>) {
        (self.platform.is_empty(), self.platform.variant.as_deref())
    }

    fn is_layer(&self) -> bool {
        self.media_type.is_empty() || LAYERS.iter().any(|word| self.media_type.contains(word))
    }
}

/// An index or a manifest: which one shows by what it has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(deserialize_with = "list")]
    manifests: Option<Vec<Descriptor>>,
    #[serde(deserialize_with = "optional")]
    config: Option<Descriptor>,
    #[serde(deserialize_with = "list")]
    layers: Option<Vec<Descriptor>>,
    #[serde(rename = "artifacttype")]
    artifact_type: Option<String>,
    /// What a signature or the like is attached to.
    subject: Option<IgnoredAny>,
    #[serde(rename = "schemaversion")]
    schema: Option<u32>,
}

/// An image for our platform.
pub(super) struct Found {
    /// Of its manifest.
    pub(super) digest: Digest,
    pub(super) layers: Vec<Descriptor>,
    pub(super) config: Config,
    /// Of the configuration.
    pub(super) config_digest: Digest,
}

/// A walk over all that an index leads to. What it may read and visit is bounded, however indexes
/// and manifests refer to each other.
pub(super) struct Search<'a> {
    files: &'a Files,
    progress: &'a dyn Progress,
    found: Vec<(Vec<String>, Found)>,
    /// Each blob is looked at once: to which of `found` it led.
    seen: BTreeMap<Digest, Vec<usize>>,
    bytes: u64,
    descriptors: u64,
    /// Whether there was a manifest of Docker's schema 1.
    old: bool,
    /// Images for other platforms.
    foreign: u64,
    /// The first of them, for the message.
    named: BTreeSet<String>,
    /// What is wrong with an image that is said to be for our platform.
    lacking: Option<ImageError>,
    /// What is wrong with something that may be no image at all.
    odd: Option<ImageError>,
    /// The media type of what is no image.
    artifact: Option<String>,
}

impl<'a> Search<'a> {
    /// All images for our platform that the index of a layout leads to.
    ///
    /// # Errors
    /// A damaged or endless index, and damaged blobs.
    pub(super) fn of(files: &'a Files, progress: &'a dyn Progress) -> Result<Self, ImageError> {
        let mut search = Self {
            files,
            progress,
            found: Vec::new(),
            seen: BTreeMap::new(),
            bytes: 0,
            descriptors: 0,
            old: false,
            foreign: 0,
            named: BTreeSet::new(),
            lacking: None,
            odd: None,
            artifact: None,
        };
        let AnyCase(index) = json::<AnyCase<Document>>(&files.small("index.json")?, "index.json")?;
        search.index(index.manifests.unwrap_or_default(), &Names::default(), 0)?;
        Ok(search)
    }

    /// The images with their names, or why there is none.
    pub(super) fn end(self) -> Result<Vec<(Vec<String>, Found)>, ImageError> {
        if self.found.is_empty() { Err(self.nothing()) } else { Ok(self.found) }
    }

    fn nothing(self) -> ImageError {
        if self.old {
            return bad(
                "its manifest has Docker's schema 1, which is not supported; pull and save it with a new docker",
            );
        }
        if let Some(error) = self.lacking {
            return error;
        }
        if self.foreign > 0 {
            let named: Vec<&str> = self.named.iter().map(String::as_str).collect();
            let more = if self.foreign > self.named.len() as u64 { ", ..." } else { "" };
            return bad(&format!("it is for {}{more}; an image for linux/amd64 is needed", named.join(", ")));
        }
        if let Some(error) = self.odd {
            return error;
        }
        match self.artifact.filter(|media_type| !media_type.is_empty()) {
            Some(media_type) => bad(&format!("its index names no image, but an artifact of type {media_type}")),
            None => bad("its index names no image"),
        }
    }

    /// Visits what an index names; gives the images to which that led. What differs by the variant
    /// of the platform alone is one image, and so is all that an index below the first one has for
    /// our platform, as containerd takes it. Names tell images apart.
    fn index(&mut self, manifests: Vec<Descriptor>, above: &Names, depth: u32) -> Result<Vec<usize>, ImageError> {
        self.count(manifests.len())?;
        let mut groups: BTreeMap<Names, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in manifests {
            if is_ours(&descriptor.platform) {
                groups.entry(descriptor.names()).or_default().push(descriptor);
            } else {
                self.pass_over(&descriptor.platform);
            }
        }
        let mut all = Vec::new();
        for ([first, second], mut group) in groups {
            // An image that is made for several platforms is called what its index is called.
            let [above_first, above_second] = above.clone();
            let names = [first.or(above_first), second.or(above_second)];
            group.sort_by(|one, other| one.rank().cmp(&other.rank()));
            let mut taken = None;
            for descriptor in &group {
                let rank = descriptor.rank();
                let is_variant = |taken| depth > 0 || taken != rank && !descriptor.platform.is_empty();
                if taken.is_some_and(is_variant) {
                    continue;
                }
                let led = self.descriptor(descriptor, &names, depth)?;
                if !led.is_empty() {
                    taken = Some(rank);
                }
                all.extend(led);
            }
        }
        Ok(all)
    }

    fn descriptor(&mut self, descriptor: &Descriptor, names: &Names, depth: u32) -> Result<Vec<usize>, ImageError> {
        check(self.progress)?;
        let digest = match parse_digest(&descriptor.digest) {
            Ok(digest) => digest,
            Err(error) => {
                self.skip(descriptor, error);
                return Ok(Vec::new());
            }
        };
        if let Some(known) = self.seen.get(&digest).cloned() {
            self.count(known.len())?;
            known.iter().for_each(|at| self.call(*at, names));
            return Ok(known);
        }
        self.seen.insert(digest, Vec::new());
        let Some(document) = self.document(descriptor, &digest)? else { return Ok(Vec::new()) };
        let led = match document.manifests {
            Some(_) if depth >= MAX_DEPTH => return Err(bad("its index is nested too deeply")),
            Some(manifests) => self.index(manifests, names, depth + 1)?,
            None => self.manifest(descriptor, digest, document, names)?.into_iter().collect(),
        };
        self.seen.insert(digest, led.clone());
        Ok(led)
    }

    /// `None` when it is no image for our platform.
    fn manifest(
        &mut self,
        descriptor: &Descriptor,
        digest: Digest,
        document: Document,
        names: &Names,
    ) -> Result<Option<usize>, ImageError> {
        let Document { config, layers, artifact_type, subject, schema, .. } = document;
        let layers = layers.unwrap_or_default();
        if schema == Some(1) {
            self.old = true;
            return Ok(None);
        }
        // Signatures, bills of material and the like stand beside images. What is attached to an
        // image is none; else an image may say what it is for.
        let attached = artifact_type.is_some() && subject.is_some();
        let Some(config) = config.filter(|_| !attached) else {
            self.artifact = self.artifact.take().or(artifact_type);
            return Ok(None);
        };
        // cosign gives what it signs the configuration of an image.
        let no_layer = layers.first().filter(|_| !layers.iter().any(Descriptor::is_layer));
        let is_image =
            is_image_config(&config.media_type) && !(artifact_type.is_some() && config.media_type.is_empty());
        if !is_image || no_layer.is_some() {
            let layer = no_layer.map(|layer| layer.media_type.clone());
            self.artifact =
                self.artifact.take().or(artifact_type).or(layer.filter(|_| is_image)).or(Some(config.media_type));
            return Ok(None);
        }
        let config_digest = match parse_digest(&config.digest) {
            Ok(digest) => digest,
            Err(error) => {
                self.skip(descriptor, error);
                return Ok(None);
            }
        };
        let Some(raw) = self.blob(&config, &config_digest, descriptor)? else { return Ok(None) };
        let config = match Config::parse(&raw, &config.digest) {
            Ok(config) => config,
            Err(error) => {
                self.skip(descriptor, error);
                return Ok(None);
            }
        };
        if config.diff_ids().is_none() {
            return Ok(None);
        }
        if !is_ours(&config.platform()) {
            self.pass_over(&config.platform());
            return Ok(None);
        }
        // Of one configuration there is one image, in however many manifests.
        let known = self.found.iter().position(|(_, found)| found.config_digest == config_digest);
        let at = known.unwrap_or(self.found.len());
        if known.is_none() {
            self.found.push((Vec::new(), Found { digest, layers, config, config_digest }));
        }
        self.call(at, names);
        self.call(at, &[Some(descriptor.digest.clone()), None]);
        Ok(Some(at))
    }

    /// Gives an image more names.
    fn call(&mut self, at: usize, names: &Names) {
        if let Some((known, _)) = self.found.get_mut(at) {
            for name in names.iter().flatten() {
                if !known.contains(name) {
                    known.push(name.clone());
                }
            }
        }
    }

    /// An index or a manifest; `None` when it is not there or has another form.
    fn document(&mut self, descriptor: &Descriptor, digest: &Digest) -> Result<Option<Document>, ImageError> {
        let Some(raw) = self.blob(descriptor, digest, descriptor)? else { return Ok(None) };
        match json::<AnyCase<Document>>(&raw, &descriptor.digest) {
            Ok(AnyCase(document)) => Ok(Some(document)),
            Err(error) => {
                self.skip(descriptor, error);
                Ok(None)
            }
        }
    }

    /// A small blob; `None` when it is not there, or not small. `of`: what it is a part of.
    fn blob(
        &mut self,
        descriptor: &Descriptor,
        digest: &Digest,
        of: &Descriptor,
    ) -> Result<Option<Vec<u8>>, ImageError> {
        let window = match self.files.file(&blob_path(digest)) {
            Ok(window) if window.len() <= MAX_JSON => window,
            missing_or_large => {
                let large = || bad(&format!("sha256:{digest} is larger than 4 MiB"));
                let error = missing_or_large.err().unwrap_or_else(large);
                self.skip(of, error);
                return Ok(None);
            }
        };
        self.bytes = self.bytes.saturating_add(window.len());
        if self.bytes > MAX_INDEX_BYTES {
            return Err(ImageError::TooMuchIndex { limit: MAX_INDEX_BYTES, what: "bytes" });
        }
        let damaged = |what| Err(ImageError::Blob { digest: descriptor.digest.clone(), what });
        if !descriptor.may_have(window.len()) {
            return damaged("size");
        }
        if &sha256(window, self.progress)? != digest.as_bytes() {
            return damaged("digest");
        }
        window.read_all().map(Some).map_err(|source| ImageError::Read { source })
    }

    fn skip(&mut self, descriptor: &Descriptor, error: ImageError) {
        let about = if descriptor.platform.is_empty() { &mut self.odd } else { &mut self.lacking };
        about.get_or_insert(error);
    }

    fn pass_over(&mut self, platform: &Platform) {
        // What buildx says of attestations.
        if platform.os == "unknown" {
            return;
        }
        self.foreign = self.foreign.saturating_add(1);
        if self.named.len() < NAMED_PLATFORMS {
            self.named.insert(platform.shown());
        }
    }

    fn count(&mut self, more: usize) -> Result<(), ImageError> {
        self.descriptors = self.descriptors.saturating_add(more as u64);
        if self.descriptors > MAX_DESCRIPTORS {
            return Err(ImageError::TooMuchIndex { limit: MAX_DESCRIPTORS, what: "entries" });
        }
        Ok(())
    }
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{digest}")
}
