#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod faults;
mod logins;
mod server;
mod silence;
mod whole;
mod wire;

use super::*;
use server::{Reply, Seen, ranged, reply};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// An image, and the bytes of its parts.
#[derive(Clone)]
struct Sample {
    manifest: Vec<u8>,
    parts: Vec<Vec<u8>>,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn descriptor(bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() })
}

fn host() -> (&'static str, &'static str) {
    ("linux", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })
}

impl Sample {
    fn new(layers: usize) -> Self {
        let (os, architecture) = host();
        let config = format!(r#"{{"os":"{os}","architecture":"{architecture}"}}"#).into_bytes();
        let layer =
            |number: usize| (0..100_000 + number).map(|at| u8::try_from(at * (number + 3) % 251).unwrap()).collect();
        let layers: Vec<Vec<u8>> = (0..layers).map(layer).collect();
        let described: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": descriptor(&config), "layers": described });
        Self { manifest: manifest.to_string().into_bytes(), parts: [vec![config], layers].concat() }
    }

    fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// What a good registry answers.
    fn answer(&self, seen: &Seen) -> Reply {
        if seen.path.ends_with("/manifests/13") || seen.path.ends_with(&format!("/manifests/sha256:{}", self.digest()))
        {
            return ranged(seen, &self.manifest);
        }
        let part = self.parts.iter().find(|part| seen.path.ends_with(&format!("/blobs/sha256:{}", sha256(part))));
        part.map_or_else(|| reply(404, b"{}"), |part| ranged(seen, part))
    }
}

/// A user's folders.
struct User {
    home: TempDir,
    cache_size: u64,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), cache_size: 1 << 30 }
    }

    fn docker_config(&self) -> PathBuf {
        self.home.path().join("config.json")
    }

    fn client(&self) -> Registries {
        let patience = Patience {
            connect: Duration::from_secs(5),
            idle: Duration::from_millis(400),
            attempts: 5,
            silent: 5,
            pause: Duration::from_millis(5),
            longest: Duration::from_secs(2),
        };
        Registries {
            http: Arc::new(Http { connector: Connector::new(proxy::Proxies::default(), patience), patience }),
            cache: Cache::new(self.home.path(), self.cache_size),
            mirrors: BTreeMap::new(),
            docker_config: Some(self.docker_config()),
            patience,
        }
    }

    /// A pull of `debian:13`; gives what would be sent to the daemon.
    async fn pull(&self, address: &str) -> anyhow::Result<Vec<u8>> {
        pull(&self.client(), &format!("{address}/debian:13")).await
    }

    /// Names and sizes in the cache.
    fn cached(&self) -> Vec<(String, u64)> {
        let entries = fs::read_dir(self.home.path().join("banger/blobs/sha256")).unwrap().map(|entry| entry.unwrap());
        let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()));
        let mut all: Vec<_> = named.collect();
        all.sort();
        all
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.home.path().join("banger/blobs/sha256").join(sha256(bytes))
    }
}

async fn pull(client: &Registries, reference: &str) -> anyhow::Result<Vec<u8>> {
    let found = client.find(&Reference::parse(reference)?, Platform::of_host(), None).await?;
    sent(client.fetch(found, None, &Transfers::new()).await?)
}

/// The bytes of a source, which are as many as it says.
fn sent(source: Source) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (source.write)(&mut bytes)?;
    assert_eq!(source.total, Some(bytes.len() as u64));
    Ok(bytes)
}

/// Is it the archive of the sample's image?
fn is_whole(archive: &[u8], sample: &Sample) {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        files.insert(name, bytes);
    }
    assert!(files.remove("oci-layout").is_some());
    let index: serde_json::Value = serde_json::from_slice(&files.remove("index.json").unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], format!("sha256:{}", sample.digest()));
    let expected = sample.parts.iter().chain([&sample.manifest]);
    let expected: BTreeMap<_, _> =
        expected.map(|part| (format!("blobs/sha256/{}", sha256(part)), part.clone())).collect();
    assert!(files == expected, "{:?}", files.keys());
}

/// What a user reads.
fn told(error: &anyhow::Error) -> String {
    let hints = error.chain().filter_map(|cause| cause.downcast_ref::<crate::error::Explained>());
    hints.fold(format!("{error:#}"), |text, explained| format!("{text}\n  {}", explained.hint()))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}
