//! What `docker save` has written: since 1.10 with a `manifest.json`, which podman, buildah, skopeo
//! and bazel write to this day, and before that with a chain of layers. Source: `image/tarexport`
//! in Moby, and its image specification v1 to v1.2.

use super::container::{Config, Files, Image, LayerBlob, bad, choose, json, or_default, parse_digest};
use super::error::ImageError;
use super::names::printable;
use super::source::{Progress, check, sha256};
use super::{SourceKind, configuration, digest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Docker's own limit is 127 layers.
pub(super) const MAX_LAYERS: usize = 512;
/// Images of one archive.
const MAX_IMAGES: usize = 1024;

/// An image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

/// `json` in the folder of a layer, before 1.10.
#[derive(Deserialize)]
struct Chained {
    parent: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
}

/// The image of a `manifest.json`; `None` when that file is something else.
///
/// # Errors
/// No image for linux/amd64, or several.
pub(super) fn open(
    files: &Files,
    reference: Option<&str>,
    progress: &dyn Progress,
) -> Result<Option<Image>, ImageError> {
    // Typed, so that nothing is kept of what else four megabytes of JSON may say.
    let Ok(saved) = files.small("manifest.json").and_then(|data| json::<Vec<Saved>>(&data, "manifest.json")) else {
        return Ok(None);
    };
    if saved.len() > MAX_IMAGES {
        return Err(bad(&format!("it holds more than {MAX_IMAGES} images")));
    }
    let mut found = Vec::new();
    let mut foreign = None;
    for image in saved {
        check(progress)?;
        let raw = files.small(&image.config)?;
        let config: Config = json(&raw, &image.config)?;
        if !config.platform().is_ours() {
            foreign = Some(config.platform().short());
            continue;
        }
        let id = digest(Sha256::digest(&raw).into())?;
        let mut names = image.repo_tags.unwrap_or_default();
        names.push(format!("sha256:{id}"));
        found.push((names, (id, config, image.layers, image.config)));
    }
    if let (true, Some(platform)) = (found.is_empty(), foreign) {
        return Err(bad(&format!("it is for {platform}; an image for linux/amd64 is needed")));
    }
    let (id, config, layers, path) = choose(found, reference)?;
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
    Ok(Some(Image { kind: SourceKind::Docker, digest: id, layers, config }))
}

/// The image of a chain of layers; `None` when there is none.
///
/// # Errors
/// As [`open`].
pub(super) fn open_chain(
    files: &Files,
    reference: Option<&str>,
    progress: &dyn Progress,
) -> Result<Option<Image>, ImageError> {
    type Repositories = BTreeMap<String, BTreeMap<String, String>>;
    let Ok(named) = files.small("repositories").and_then(|data| json::<Repositories>(&data, "repositories")) else {
        return Ok(None);
    };
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
        let described: Chained = json(&raw, "json")?;
        // The first one is the image's own; those below it are of the images that it was made from.
        if config.is_none() {
            config = Some(configuration::parse(&raw, "json", progress)?);
        }
        let for_us = |word: Option<String>, ours: &str| word.is_none_or(|word| word.is_empty() || word == ours);
        if !for_us(described.architecture, "amd64") || !for_us(described.os, "linux") {
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
    Ok(Some(Image { kind: SourceKind::Docker, digest, layers, config: config.unwrap_or_default() }))
}
