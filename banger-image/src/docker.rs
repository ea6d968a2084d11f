//! What `docker save` has written: since 1.10 with a `manifest.json`, which podman, buildah, skopeo
//! and bazel write to this day, and before that with a chain of layers. Source: `image/tarexport`
//! in Moby, and its image specification v1 to v1.2.

use super::container::{Config, Files, Image, LayerBlob, bad, choose, is_ours, json, parse_digest};
use super::error::ImageError;
use super::names::printable;
use super::source::{Progress, check, sha256};
use super::{SourceKind, configuration, digest};
use banger_policy::Digest;
use banger_policy::json::{AnyCase, or_default};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Docker's own limit is 127 layers.
pub(super) const MAX_LAYERS: usize = 512;
/// Images of one archive.
const MAX_IMAGES: usize = 1024;

/// An image in `manifest.json`.
#[derive(Default, Deserialize)]
pub(super) struct Saved {
    config: String,
    #[serde(rename = "repotags", default, deserialize_with = "or_default")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

/// What marks a manifest of the distribution protocol, which skopeo's `dir:` has under that name.
#[derive(Deserialize)]
struct Distributed {
    #[serde(rename = "schemaVersion")]
    _schema: u32,
}

/// `json` in the folder of a layer, before 1.10.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Chained {
    parent: Option<String>,
}

/// What `manifest.json` says.
///
/// # Errors
/// When it is missing, or something else.
pub(super) fn manifest(files: &Files) -> Result<Vec<Saved>, ImageError> {
    let raw = files.small("manifest.json")?;
    let saved = json::<Vec<AnyCase<Saved>>>(&raw, "manifest.json");
    let saved = saved.map(|saved| saved.into_iter().map(|AnyCase(saved)| saved).collect());
    saved.map_err(|error| match serde_json::from_slice::<Distributed>(&raw) {
        Ok(_) => ImageError::NotARoot {
            found: "it is a folder as skopeo writes it under dir:".to_owned(),
            instead: "make an archive of it: `skopeo copy dir:FOLDER oci-archive:image.tar`".to_owned(),
        },
        Err(_) => error,
    })
}

/// The image of a `manifest.json`.
///
/// # Errors
/// No image for linux/amd64, or several.
pub(super) fn open(
    files: &Files,
    saved: Vec<Saved>,
    reference: Option<&str>,
    progress: &dyn Progress,
) -> Result<Image, ImageError> {
    if saved.len() > MAX_IMAGES {
        return Err(bad(&format!("it holds more than {MAX_IMAGES} images")));
    }
    let mut found: Vec<(Vec<String>, (Digest, Config, Saved))> = Vec::new();
    let mut foreign = None;
    for image in saved {
        check(progress)?;
        let raw = files.small(&image.config)?;
        let config = Config::parse(&raw, &image.config)?;
        if !is_ours(&config.platform()) {
            foreign = Some(config.platform().shown());
            continue;
        }
        let id = digest(Sha256::digest(&raw).into())?;
        // One image may stand there once for each of its tags.
        match found.iter_mut().find(|(_, (known, ..))| *known == id) {
            Some((names, _)) => names.splice(0..0, image.tags).for_each(drop),
            None => {
                let mut names = image.tags.clone();
                names.push(format!("sha256:{id}"));
                found.push((names, (id, config, image)));
            }
        }
    }
    if let (true, Some(platform)) = (found.is_empty(), foreign) {
        return Err(bad(&format!("it is for {platform}; an image for linux/amd64 is needed")));
    }
    let (id, config, Saved { layers, config: path, .. }) = choose(found, reference)?;
    let diff_ids = config.diff_ids().unwrap_or_default();
    if layers.len() != diff_ids.len() || layers.len() > MAX_LAYERS {
        return Err(bad("its manifest and its configuration name different numbers of layers, or too many"));
    }
    let layers = layers.iter().zip(diff_ids).map(|(name, diff_id)| {
        let window = files.file(name)?.clone();
        Ok(LayerBlob { window, name: printable(name.as_bytes()), digest: None, diff_id: Some(parse_digest(diff_id)?) })
    });
    let layers = layers.collect::<Result<_, ImageError>>()?;
    let config = configuration::parse(&files.small(&path)?, &path, progress)?;
    Ok(Image { kind: SourceKind::Docker, digest: id, layers, config })
}

/// The image of a chain of layers.
///
/// # Errors
/// As [`open`].
pub(super) fn open_chain(files: &Files, reference: Option<&str>, progress: &dyn Progress) -> Result<Image, ImageError> {
    let named: BTreeMap<String, BTreeMap<String, String>> = json(&files.small("repositories")?, "repositories")?;
    let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, tags) in named {
        for (tag, id) in tags {
            images.entry(id).or_default().push(format!("{name}:{tag}"));
        }
    }
    let found = images.into_iter().map(|(id, names)| (names, id)).collect();
    let mut next = Some(choose(found, reference)?);
    let mut layers = Vec::new();
    let mut whole = Sha256::new();
    let mut config = None;
    while let Some(id) = next {
        check(progress)?;
        if layers.len() >= MAX_LAYERS {
            return Err(bad("it has too many layers, or they are their own parents"));
        }
        let raw = files.small(&format!("{id}/json"))?;
        let AnyCase(described) = json::<AnyCase<Chained>>(&raw, "json")?;
        // The first one is the image's own; those below it are of the images that it was made from.
        if config.is_none() {
            config = Some(configuration::parse(&raw, "json", progress)?);
        }
        if !is_ours(&json(&raw, "json")?) {
            return Err(bad("it is not for linux/amd64"));
        }
        let name = format!("{id}/layer.tar");
        let window = files.file(&name)?.clone();
        whole.update(sha256(&window, progress)?);
        layers.push(LayerBlob { window, name: printable(name.as_bytes()), digest: None, diff_id: None });
        next = described.parent.filter(|parent| !parent.is_empty());
    }
    layers.reverse();
    let digest = digest(whole.finalize().into())?;
    Ok(Image { kind: SourceKind::Docker, digest, layers, config: config.unwrap_or_default() })
}
