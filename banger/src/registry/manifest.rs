//! What a registry says an image consists of: an index of platforms, a manifest of layers (OCI
//! image specification v1.1: `image-index.md`, `manifest.md`; docker's schema 2 says the same in
//! other words).

use super::reference::Reference;
use crate::error::explained;
use banger_policy::Digest;
use banger_policy::json::{AnyCase, list, optional, or_default};
use banger_policy::platform::{Platform as Described, go_architecture, go_variant, is_image_config};
use serde::Deserialize;
use std::cmp::Reverse;
use std::fmt;

/// Registries do not take larger ones (OCI distribution specification, "Pushing Manifests").
pub(super) const MAX_MANIFEST: usize = 4 << 20;
/// Docker's own limit is 127; the daemon takes as many as this.
const MAX_LAYERS: usize = 512;
/// Platforms that a message names.
const NAMED: usize = 12;
/// What we ask for.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// What the host's VMs run.
    pub(crate) fn of_host() -> Self {
        Self { architecture: go_architecture(std::env::consts::ARCH), variant: None }
    }

    /// # Errors
    /// For what no VM of this host runs.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let host = Self::of_host();
        let mut words = text.split('/');
        let (os, architecture, variant) = (words.next().unwrap_or_default(), words.next(), words.next());
        let Some(architecture) = architecture.filter(|_| words.next().is_none()) else {
            return Err(explained(format!("{text:?} is not a platform"), format!("such as: {host}, {host}/v3")));
        };
        if os != "linux" || go_architecture(architecture) != host.architecture {
            return Err(explained(format!("VMs of this host run {host}, and not {text}"), ""));
        }
        Ok(Self { variant: variant.and_then(go_variant), ..host })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A blob: what it must be when it has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// Bytes; not 0.
    pub(super) size: u64,
    /// A layer that its maker lets nobody pass on: the registry may not have it.
    pub(super) foreign: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Descriptor {
    #[serde(rename = "mediatype", deserialize_with = "or_default")]
    media_type: String,
    #[serde(deserialize_with = "or_default")]
    digest: String,
    /// Of what stands beside an image, nothing may be said.
    size: Option<i64>,
    platform: Described,
}

impl Descriptor {
    /// 0 where nothing is said, or nothing that can be.
    fn bytes(&self) -> u64 {
        self.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(rename = "schemaversion", deserialize_with = "or_default")]
    schema: u32,
    #[serde(rename = "mediatype", deserialize_with = "or_default")]
    media_type: String,
    #[serde(deserialize_with = "list")]
    manifests: Option<Vec<Descriptor>>,
    #[serde(deserialize_with = "optional")]
    config: Option<Descriptor>,
    #[serde(deserialize_with = "list")]
    layers: Option<Vec<Descriptor>>,
}

/// One of the two.
#[derive(Debug)]
pub(super) enum Manifest {
    Index(Index),
    Image { media_type: String, config: Blob, layers: Vec<Blob> },
}

/// Manifests of an image for several platforms.
#[derive(Debug)]
pub(super) struct Index(Vec<Descriptor>);

impl Manifest {
    /// # Errors
    /// For what is neither.
    pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let AnyCase(document) = serde_json::from_slice::<AnyCase<Document>>(bytes)
            .map_err(|error| anyhow::anyhow!("what the registry calls a manifest is none: {error}"))?;
        if document.schema == 1 {
            return Err(explained(
                "the image has a manifest of schema 1, which has been out of use since 2017",
                "push it again with a current docker, podman or skopeo",
            ));
        }
        if let Some(manifests) = document.manifests {
            return Ok(Self::Index(Index(manifests)));
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(anyhow::anyhow!("the manifest names no layers: it is not that of an image"));
        };
        // Charts, models and the like have layers, too, of any size.
        if !is_image_config(&config.media_type) {
            let shown: String = config.media_type.chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(explained(
                format!("it is an artifact of type {shown}, and not an image"),
                "banger pulls images alone; `oras pull` and the program that made it fetch others",
            ));
        }
        if layers.len() > MAX_LAYERS {
            return Err(anyhow::anyhow!("the image has {} layers; {MAX_LAYERS} are the most", layers.len()));
        }
        if config.bytes() > MAX_MANIFEST as u64 {
            return Err(anyhow::anyhow!("the image's configuration is larger than {} MiB", MAX_MANIFEST >> 20));
        }
        let media_type = match document.media_type.as_str() {
            "" => "application/vnd.oci.image.manifest.v1+json".to_owned(),
            other => other.to_owned(),
        };
        let layers = layers.iter().map(blob).collect::<Result<_, _>>()?;
        Ok(Self::Image { media_type, config: blob(&config)?, layers })
    }
}

impl Index {
    /// The manifest for a platform.
    ///
    /// # Errors
    /// With the platforms that there are.
    pub(super) fn choose(&self, wanted: &Platform, reference: &Reference) -> anyhow::Result<Blob> {
        let fits = |descriptor: &&Descriptor| descriptor.platform.may_be("linux", &wanted.architecture);
        let rank = |descriptor: &Descriptor| (descriptor.platform.is_empty(), descriptor.platform.variant.clone());
        let fitting = self.0.iter().filter(fits);
        // One for any machine of the architecture comes before one for newer machines only. Who
        // wishes for a variant has machines that run all that come before it.
        let chosen = match &wanted.variant {
            Some(_) => {
                let runs = |descriptor: &&Descriptor| descriptor.platform.variant <= wanted.variant;
                fitting.filter(runs).min_by_key(|descriptor| {
                    let (says_nothing, variant) = rank(descriptor);
                    (says_nothing, Reverse(variant))
                })
            }
            None => fitting.min_by_key(|descriptor| rank(descriptor)),
        };
        chosen.map(blob).unwrap_or_else(|| {
            let described = self.0.iter().map(|descriptor| &descriptor.platform);
            // Attestations stand beside images as "unknown".
            let mut names: Vec<String> =
                described.filter(|platform| platform.os != "unknown").map(Described::shown).collect();
            names.dedup();
            let more = if names.len() > NAMED { ", ..." } else { "" };
            names.truncate(NAMED);
            Err(explained(
                format!("{reference} is not made for {wanted}, but for: {}{more}", names.join(", ")),
                "choose another image, or another tag of this one",
            ))
        })
    }
}

fn blob(descriptor: &Descriptor) -> anyhow::Result<Blob> {
    let digest = descriptor.digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    let Some(digest) = digest else {
        let shown: String = descriptor.digest.chars().filter(|c| !c.is_control()).take(80).collect();
        return Err(anyhow::anyhow!("the manifest names a blob by {shown:?}, which is not a sha256 digest"));
    };
    let size = descriptor.bytes();
    if size == 0 {
        return Err(anyhow::anyhow!("the manifest names a blob without a size, or without a byte: sha256:{digest}"));
    }
    let foreign = ["nondistributable", "foreign"].iter().any(|word| descriptor.media_type.contains(word));
    Ok(Blob { digest, size, foreign })
}

/// What the image's configuration says it is for. Old images say nothing.
///
/// # Errors
/// When that is another platform.
pub(super) fn check_config(bytes: &[u8], wanted: &Platform) -> anyhow::Result<()> {
    let config: Described = serde_json::from_slice(bytes)
        .map_err(|error| anyhow::anyhow!("the image's configuration cannot be read: {error}"))?;
    if config.may_be("linux", &wanted.architecture) {
        return Ok(());
    }
    Err(explained(
        format!("the image is for {}, and VMs of this host run {wanted}", config.shown()),
        "choose another tag",
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
    use super::*;

    fn entry(number: u8, platform: &str) -> String {
        format!(r#"{{"digest":"sha256:{}","size":5{platform}}}"#, format!("{number:02x}").repeat(32))
    }

    fn on(os: &str, architecture: &str, variant: &str) -> String {
        let variant = if variant.is_empty() { String::new() } else { format!(r#","variant":"{variant}""#) };
        format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}"#)
    }

    fn chosen(entries: &[String], wanted: &Platform) -> anyhow::Result<u8> {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let Manifest::Index(index) = Manifest::parse(text.as_bytes()).unwrap() else { panic!("it is an index") };
        index.choose(wanted, &Reference::parse("x").unwrap()).map(|blob| blob.digest.as_bytes()[0])
    }

    #[test]
    fn the_platform_of_the_machine_is_chosen() {
        let amd64 = Platform { architecture: "amd64".into(), variant: None };
        let v3 = Platform { variant: Some("v3".into()), ..amd64.clone() };
        let arm = Platform { architecture: "arm64".into(), variant: None };
        let all = [
            entry(1, &on("unknown", "unknown", "")),
            entry(2, &on("windows", "amd64", "")),
            entry(3, &on("linux", "amd64", "v3")),
            entry(4, &on("linux", "amd64", "")),
            entry(5, &on("linux", "arm64", "v8")),
        ];
        assert_eq!(chosen(&all, &amd64).unwrap(), 4);
        assert_eq!(chosen(&all, &v3).unwrap(), 3);
        assert_eq!(chosen(&all, &arm).unwrap(), 5);
        assert_eq!(chosen(&[entry(7, "")], &amd64).unwrap(), 7, "an index with one entry need not say for what");
        let error = chosen(&[all[0].clone(), all[1].clone(), all[4].clone()], &amd64).unwrap_err().to_string();
        assert!(error.contains("windows/amd64, linux/arm64/v8") && !error.contains("unknown"), "{error}");
    }

    #[test]
    fn of_variants_the_nearest_that_is_not_newer_is_taken() {
        let amd64 =
            |variant: Option<&str>| Platform { architecture: "amd64".into(), variant: variant.map(str::to_owned) };
        let plain = entry(1, &on("linux", "amd64", ""));
        let [second, third] = [(2, "v2"), (3, "v3")].map(|(number, v)| entry(number, &on("linux", "amd64", v)));
        for (entries, wanted, number) in [
            (vec![&plain, &second], Some("v3"), 2),
            (vec![&second, &plain], Some("v3"), 2),
            (vec![&plain, &third], Some("v2"), 1),
            (vec![&plain, &second, &third], Some("v3"), 3),
            (vec![&third, &second], None, 2),
        ] {
            let entries: Vec<String> = entries.into_iter().cloned().collect();
            assert_eq!(chosen(&entries, &amd64(wanted)).unwrap(), number, "{wanted:?}");
        }
        assert!(chosen(&[third], &amd64(Some("v2"))).is_err(), "a machine of v2 cannot run it");
    }

    #[test]
    fn platforms_are_written_in_many_ways() {
        let amd64 = Platform { architecture: "amd64".into(), variant: None };
        for words in [
            r#"{"os":"Linux","architecture":"x86_64"}"#,
            r#"{"os":"linux","architecture":"AMD64","variant":null}"#,
            r#"{"os":null,"architecture":null}"#,
            r#"{"architecture":"amd64"}"#,
            r#"{"os":"","architecture":""}"#,
            "{}",
            "null",
        ] {
            let index = [entry(1, &on("linux", "s390x", "")), entry(2, &format!(r#","platform":{words}"#))];
            assert_eq!(chosen(&index, &amd64).unwrap(), 2, "{words}");
            if words != "null" {
                assert!(check_config(words.as_bytes(), &amd64).is_ok(), "{words}");
            }
        }
        let nulls =
            r#"{"schemaVersion":2,"mediaType":null,"manifests":null,"config":{"mediaType":null,"digest":"sha256:"#;
        let nulls = format!(r#"{nulls}{}","size":5,"platform":null}},"layers":[]}}"#, "01".repeat(32));
        assert!(Manifest::parse(nulls.as_bytes()).is_ok());
    }

    #[test]
    fn names_of_fields_have_any_case_and_what_is_beside_an_image_may_say_nothing() {
        let amd64 = Platform { architecture: "amd64".into(), variant: None };
        let ours = entry(2, &on("linux", "amd64", ""));
        let odd = [
            r#"{"mediaType":"x/y","platform":{"os":"windows"}}"#.to_owned(),
            r#"{"digest":null,"size":null,"annotations":{"x":null},"platform":{"os":"windows"}}"#.to_owned(),
            entry(1, &on("windows", "amd64", "")).replace(":5", ":-1"),
            ours.replace("digest", "Digest").replace("size", "Size").replace("platform", "PLATFORM"),
        ];
        assert_eq!(chosen(&odd, &amd64).unwrap(), 2);
        let image = format!(r#"{{"SchemaVersion":2,"Config":{ours},"LAYERS":[{ours}]}}"#);
        assert!(matches!(Manifest::parse(image.as_bytes()).unwrap(), Manifest::Image { .. }));
        assert!(check_config(br#"{"OS":"linux","Architecture":"s390x"}"#, &amd64).is_err());
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let layer = entry(1, "");
        let image = |layers: &str| format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layers}]}}"#);
        assert!(Manifest::parse(image(&layer).as_bytes()).is_ok());
        for bad in [
            String::new(),
            "[]".to_owned(),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            r#"{"schemaVersion":2}"#.to_owned(),
            image(r#"{"digest":"sha512:00","size":5}"#),
            image(r#"{"digest":"sha256:../../../etc/passwd","size":5}"#),
            image(&layer.replace(":5", ":0")),
            image(&layer.replace(":5", ":-1")),
            image(&vec![layer.clone(); MAX_LAYERS + 1].join(",")),
        ] {
            assert!(Manifest::parse(bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }

    #[test]
    fn platforms() {
        let host = Platform::of_host();
        assert_eq!(Platform::parse(&host.to_string()).unwrap(), host);
        assert_eq!(Platform::parse(&format!("{host}/v3")).unwrap().to_string(), format!("{host}/v3"));
        for bad in ["", "linux", "windows/amd64", "linux/s390x", "linux/amd64/v3/x"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        assert!(check_config(b"{}", &host).is_ok());
        assert!(check_config(br#"{"os":"linux","architecture":"s390x"}"#, &host).is_err());
    }
}
