//! The registry's client: from a reference to the bytes that the daemon's import reads. It runs
//! with the user's own rights: network, proxy, logins, certificate authorities and cache are the
//! user's, and the daemon needs no network at all.
//!
//! Called by `cmd::pull`. It knows nothing of the daemon. `fetch` is dropped when the user
//! interrupts; what has arrived stays.

mod archive;
mod auth;
mod cache;
mod connect;
mod credentials;
mod download;
mod endpoint;
mod fault;
mod http;
mod manifest;
mod proxy;
mod reference;
mod settings;
mod tls;
mod url;

pub(crate) use cache::Cache;
pub(crate) use manifest::Platform;
pub(crate) use reference::Reference;
pub(crate) use settings::{config_folder, own_config_folder};

use crate::error::explained;
use crate::output::{Transfers, amount};
use crate::upload::Source;
use anyhow::Context as _;
use banger_policy::Digest;
use banger_policy::limits::DEFAULT_BUILD_BYTES;
use connect::Connector;
use download::{Part, Watch};
use endpoint::{Endpoint, turns};
use fault::{Fault, Patience};
use futures::{StreamExt as _, TryStreamExt as _};
use http::Http;
use hyper::StatusCode;
use manifest::{ACCEPTED, Blob, MAX_MANIFEST, Manifest};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Seek as _;
use std::path::PathBuf;
use std::sync::Arc;
use url::Url;

/// Layers at once, as docker does.
const AT_ONCE: usize = 3;
/// What does not compress becomes larger when it is packed, by less than a part of this.
const PACKED: u64 = 64;
/// An index may point to an index; more than this is no image.
const MAX_DEPTH: usize = 3;

/// The client.
pub(crate) struct Registries {
    http: Arc<Http>,
    cache: Cache,
    mirrors: BTreeMap<String, Vec<Url>>,
    docker_config: Option<PathBuf>,
    patience: Patience,
}

/// An image of a registry: what it is, and where its parts are.
pub(crate) struct Found {
    endpoints: Vec<Endpoint>,
    platform: Platform,
    media_type: String,
    manifest: Vec<u8>,
    /// Of the manifest: for one platform, and the same everywhere.
    pub(crate) digest: Digest,
    config: Blob,
    layers: Vec<Blob>,
}

/// The user's cache.
///
/// # Errors
/// When the settings have a mistake.
pub(crate) fn cache() -> anyhow::Result<Cache> {
    Ok(Cache::new(&settings::caches()?, settings::read()?.cache_size))
}

impl Registries {
    /// With the user's settings.
    ///
    /// # Errors
    /// When these have a mistake.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let settings = settings::read()?;
        let patience = Patience::default();
        let connector = Connector::new(proxy::Proxies::of_environment(), patience);
        Ok(Self {
            http: Arc::new(Http { connector, patience }),
            cache: Cache::new(&settings::caches()?, settings.cache_size),
            mirrors: settings.mirrors,
            docker_config: credentials::config_file(),
            patience,
        })
    }

    /// Where a reference's repository is: the mirrors of its registry, then the registry.
    async fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Fault> {
        let registry = reference.registry();
        let mirrors = self.mirrors.get(registry).into_iter().flatten();
        let mut all: Vec<(Url, String)> = mirrors.map(|url| (url.clone(), url.authority())).collect();
        // Only these names of docker's differ from the host that answers.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let bad = || Fault::never(anyhow::anyhow!("{registry} is not an address"));
        let mut base = Url::parse(&format!("https://{host}/")).ok_or_else(bad)?;
        if base.is_loopback() {
            let plain = Url::parse(&format!("http://{host}/")).ok_or_else(bad)?;
            let question = async || self.http.connector.is_plain(&base, &plain).await;
            let is_plain = self.patience.ask(question).await.map_err(|fault| fault.context(registry.to_owned()))?;
            base = if is_plain { plain } else { base };
        }
        all.push((base, registry.to_owned()));
        let endpoint = |(base, name): (Url, String)| {
            Endpoint::new(Arc::clone(&self.http), base, &name, reference.repository(), self.docker_config.clone())
        };
        Ok(all.into_iter().map(endpoint).collect())
    }

    /// Looks an image up. With `expected`, the reference must lead to the index or manifest of that
    /// digest.
    ///
    /// # Errors
    /// It is not there, the user may not have it, it is for other machines, it is another one than
    /// expected; the registry cannot be reached.
    pub(crate) async fn find(
        &self,
        reference: &Reference,
        platform: Platform,
        expected: Option<Digest>,
    ) -> anyhow::Result<Found> {
        let endpoints = self.endpoints(reference).await.map_err(|fault| fault.error)?;
        let mut manifest = self.named(&endpoints, reference, expected).await?;
        for _ in 0..MAX_DEPTH {
            match Manifest::parse(&manifest)? {
                Manifest::Index(index) => {
                    let chosen = index.choose(&platform, reference)?;
                    manifest = self.below(&endpoints, &chosen).await?;
                }
                Manifest::Image { media_type, config, layers } => {
                    let digest = digest_of(&manifest)?;
                    return Ok(Found { endpoints, platform, media_type, manifest, digest, config, layers });
                }
            }
        }
        Err(anyhow::anyhow!("{reference} is an index of indexes without an end"))
    }

    /// What a reference names: the registry knows what a tag means today.
    /// A mirror may lag behind, so each endpoint is asked until one has what is expected.
    async fn named(
        &self,
        endpoints: &[Endpoint],
        reference: &Reference,
        expected: Option<Digest>,
    ) -> anyhow::Result<Vec<u8>> {
        let mut last = anyhow::anyhow!("there is no registry to ask");
        for turn in turns(endpoints, &self.patience) {
            let asked = turn.patience.ask(async || manifest_from(turn.endpoint, reference).await).await;
            turn.endpoint.ended(asked.as_ref().err());
            match asked.map_err(|fault| fault.error).and_then(|bytes| is_expected(bytes, reference, expected)) {
                Ok(bytes) => return Ok(bytes),
                Err(error) if turn.counts => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }

    /// What an index names. It may be in the cache: registries count manifests against a limit,
    /// docker.io above all.
    async fn below(&self, endpoints: &[Endpoint], blob: &Blob) -> anyhow::Result<Vec<u8>> {
        anyhow::ensure!(blob.size <= MAX_MANIFEST as u64, "the manifest sha256:{} is larger than 4 MiB", blob.digest);
        let mut file = download::fetch(endpoints, &self.cache, Part::Manifest, blob, &self.patience, &Unseen).await?;
        download::read(&mut file, blob.size)
    }

    /// Downloads what the cache lacks; gives what is to be sent to the daemon. The image may have
    /// `most` bytes, as many as the daemon lets an image have when `None`.
    ///
    /// # Errors
    /// Of the network, the registry, or the disk; what has arrived is kept for the next attempt,
    /// unless the disk is full. An image whose layers are too large is refused before a byte of
    /// them is asked for.
    pub(crate) async fn fetch(&self, found: Found, most: Option<u64>, shown: &Transfers) -> anyhow::Result<Source> {
        let Found { endpoints, platform, media_type, manifest, config, layers, .. } = found;
        let needed: BTreeMap<Digest, u64> =
            layers.iter().chain([&config]).map(|blob| (blob.digest, blob.size)).collect();
        let bytes = needed.values().fold(0_u64, |sum, size| sum.saturating_add(*size));
        let most = most.unwrap_or(DEFAULT_BUILD_BYTES);
        if bytes > most.saturating_add(most / PACKED) {
            let message = format!("its layers have {}, and the image may have {}", amount(bytes), amount(most));
            return Err(explained(message, "let it have more: banger image pull --size SIZE"));
        }
        self.cache.make_room_for(&needed)?;
        let mut file = download::fetch(&endpoints, &self.cache, Part::Blob, &config, &self.patience, &Unseen).await?;
        manifest::check_config(&download::read(&mut file, config.size)?, &platform)?;
        file.rewind()?;
        let mut once = BTreeSet::new();
        let all: Vec<(usize, &Blob)> = (1..).zip(&layers).filter(|(_, layer)| once.insert(layer.digest)).collect();
        let count = layers.len();
        let downloads = all.into_iter().map(|(number, layer)| {
            let (endpoints, cache, patience) = (&endpoints, &self.cache, &self.patience);
            async move {
                let bar = shown.begin(&format!("layer {number} of {count}"), layer.size);
                let file = download::fetch(endpoints, cache, Part::Blob, layer, patience, &bar).await;
                file.map(|file| (layer.clone(), file)).with_context(|| format!("layer {number} of {count}"))
            }
        });
        let mut blobs: Vec<_> = futures::stream::iter(downloads).buffer_unordered(AT_ONCE).try_collect().await?;
        blobs.push((config, file));
        Ok(archive::source(&media_type, manifest, blobs))
    }

    /// Brings the cache back to its size.
    pub(crate) fn tidy(&self) {
        if let Err(error) = self.cache.make_room_for(&BTreeMap::new()) {
            crate::output::remark(&format!("warning: the cache cannot be tidied: {error:#}"));
        }
    }
}

async fn manifest_from(endpoint: &Endpoint, reference: &Reference) -> Result<Vec<u8>, Fault> {
    let mut answer = endpoint.get(&format!("manifests/{}", reference.selector()), ACCEPTED, 0).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Err(Fault::never(explained(
            format!("{} has no image {reference}", endpoint.name()),
            "check the name and the tag: `skopeo list-tags docker://NAME` lists tags, and so do web pages of registries",
        )));
    }
    if answer.status != StatusCode::OK {
        return Err(Fault::never(anyhow::anyhow!("{}: it answered {}", endpoint.name(), answer.status)));
    }
    let bytes =
        answer.whole(MAX_MANIFEST).await.map_err(|fault| fault.context(format!("the manifest of {reference}")))?;
    if let Some(wanted) = reference.digest()
        && digest_of(&bytes).map_err(Fault::never)? != wanted
    {
        return Err(Fault::never(anyhow::anyhow!(
            "{}: what it sent for {reference} has another digest",
            endpoint.name()
        )));
    }
    Ok(bytes)
}

/// Gives the manifest back when it is the expected one.
fn is_expected(bytes: Vec<u8>, reference: &Reference, expected: Option<Digest>) -> anyhow::Result<Vec<u8>> {
    let is = digest_of(&bytes)?;
    match expected {
        Some(expected) if expected != is => Err(explained(
            format!("{reference} is sha256:{is} today, and sha256:{expected} is expected of it"),
            format!(
                "the tag was moved; look at what is new before you write its digest into the catalogue.\n\
                 The image that is expected: banger image pull {} --name NAME",
                reference.pinned(expected)
            ),
        )),
        _ => Ok(bytes),
    }
}

fn digest_of(bytes: &[u8]) -> anyhow::Result<Digest> {
    Ok(Digest::from_bytes(Sha256::digest(bytes).into())?)
}

/// Manifests and configurations are too small for lines of their own.
struct Unseen;

impl Watch for Unseen {
    fn at(&self, _: u64) {}

    fn say(&self, text: &str) {
        crate::output::remark(text);
    }
}

impl Watch for crate::output::Transfer {
    fn at(&self, bytes: u64) {
        self.at(bytes);
    }

    fn say(&self, text: &str) {
        self.say(text);
    }
}

#[cfg(test)]
mod tests;
