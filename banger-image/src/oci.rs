//! An OCI image layout inside a tar (OCI image specification v1.1: `image-layout.md`, `config.md`),
//! and the unpacking of layers.
//!
//! A layer is decompressed while its digest is computed, and read when the digest is right.

use super::container::{Files, Image, LayerBlob, bad, choose, parse_digest};
use super::docker::{self, MAX_LAYERS};
use super::error::ImageError;
use super::hashing::{Hasher, Of};
use super::index::{Descriptor, Found, Search, blob_path};
use super::layers::Layer;
use super::source::{Budget, Progress, Window};
use super::spool::{Hashes, spool};
use super::{Limits, SourceKind, configuration};
use std::collections::HashMap;
use std::path::Path;

/// Looks for an image; `None` when the tar holds something else. `dir` is for what has to be
/// expanded.
///
/// # Errors
/// No usable image for linux/amd64, several, and all that can be wrong with an archive.
pub(super) fn open(
    outer: &Window,
    reference: Option<&str>,
    dir: &Path,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Option<Image>, ImageError> {
    let Some(files) = Files::of(outer, dir, limits, progress)? else { return Ok(None) };
    if files.is_layout() {
        let nothing = match Search::of(&files, progress)?.end() {
            Ok(found) => return choose(found, reference).and_then(|found| image(&files, found, progress)).map(Some),
            Err(nothing) => nothing,
        };
        // docker saves an image that it knows by its digest alone without a word in the index.
        let Ok(saved) = docker::manifest(&files) else { return Err(nothing) };
        return docker::open(&files, saved, reference, progress).map(Some);
    }
    if files.says("manifest.json") {
        return docker::open(&files, docker::manifest(&files)?, reference, progress).map(Some);
    }
    docker::open_chain(&files, reference, progress).map(Some)
}

fn image(files: &Files, found: Found, progress: &dyn Progress) -> Result<Image, ImageError> {
    let Found { digest, layers, config, config_digest } = found;
    let diff_ids = config.diff_ids().unwrap_or_default();
    if layers.len() != diff_ids.len() || layers.len() > MAX_LAYERS {
        return Err(bad("its manifest and its configuration name different numbers of layers, or too many"));
    }
    let layers = (1..).zip(&layers).zip(diff_ids).map(|((number, descriptor), diff_id)| {
        if descriptor.media_type.contains("encrypted") {
            return Err(bad(&format!("layer {number} is encrypted; decrypt the image first")));
        }
        let digest = parse_digest(&descriptor.digest)?;
        // From here on the text is 71 bytes long, and may stand in messages.
        let path = blob_path(&digest);
        if is_foreign(descriptor) && !files.has(&path) {
            let why = "is not distributed with the image (a foreign layer), so this archive does not have it";
            return Err(bad(&format!("layer {number} {why}; save the image with its foreign layers")));
        }
        let window = files.file(&path)?.clone();
        if !descriptor.may_have(window.len()) {
            return Err(ImageError::Blob { digest: descriptor.digest.clone(), what: "size" });
        }
        let diff_id = Some(parse_digest(diff_id)?);
        Ok(LayerBlob { window, name: descriptor.digest.clone(), digest: Some(digest), diff_id })
    });
    let layers = layers.collect::<Result<_, _>>()?;
    // Verified when it was read for the first time.
    let config =
        configuration::parse(&files.small(&blob_path(&config_digest))?, &format!("sha256:{config_digest}"), progress)?;
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
    let mut unpacked: HashMap<(usize, u64, u64), (Window, [u8; 32])> = HashMap::new();
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
