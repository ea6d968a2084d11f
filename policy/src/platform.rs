//! What an image is made for, in the words of Go, which images use (OCI image specification,
//! `image-index.md` and `config.md`), and what makes its configuration one of an image.
//!
//! Read by the importer and by the registry's client, so that both take and leave the same.

use crate::json;
use serde::{Deserialize, Deserializer};

/// Media types of configurations that make an image; all others make artifacts. The last ones are
/// those of Moby's `defaultImageTypes`: docker's registry said them of old pushes.
const CONFIGS: [&str; 6] = [
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "application/json",
    "text/html",
];

/// Characters of a word that a message shows.
const SHOWN: usize = 20;

/// Whether a configuration of this media type makes an image, if it names layers.
#[must_use]
pub fn is_image_config(media_type: &str) -> bool {
    CONFIGS.contains(&media_type)
}

/// The operating system and machine that an index or a configuration names. What is absent, `null`
/// or empty is empty here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64`.
    pub architecture: String,
    /// Of the architecture, such as `v3`; `None` when each machine of the architecture runs it.
    pub variant: Option<String>,
}

/// The words as they stand.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Words {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let words: Words = json::fields(from)?;
        let word = Option::unwrap_or_default;
        Ok(Self {
            os: word(words.os).to_ascii_lowercase(),
            architecture: go_architecture(&word(words.architecture)),
            variant: go_variant(&word(words.variant)),
        })
    }
}

impl Platform {
    /// Whether a machine of this architecture may run it: what is empty says nothing against it.
    #[must_use]
    pub fn may_be(&self, os: &str, architecture: &str) -> bool {
        (self.os.is_empty() || self.os == os) && (self.architecture.is_empty() || self.architecture == architecture)
    }

    /// For messages: the words that there are, cut, without control characters.
    #[must_use]
    pub fn shown(&self) -> String {
        let words = [self.os.as_str(), &self.architecture, self.variant.as_deref().unwrap_or_default()];
        let words = words.into_iter().filter(|word| !word.is_empty());
        let words = words.map(|word| word.chars().filter(|c| !c.is_control()).take(SHOWN).collect());
        words.collect::<Vec<String>>().join("/")
    }

    /// Whether it names neither system nor machine.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }
}

/// Go's name for an architecture.
#[must_use]
pub fn go_architecture(word: &str) -> String {
    let word = word.to_ascii_lowercase();
    match word.as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        _ => word,
    }
}

/// A variant; `None` for `v1` of amd64, which every machine has.
#[must_use]
pub fn go_variant(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase();
    (!["", "v1"].contains(&word.as_str())).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_all_kinds() {
        for (text, os, architecture, variant) in [
            (r#"{"os":"Linux","architecture":"x86_64","variant":"V3"}"#, "linux", "amd64", Some("v3")),
            (r#"{"OS":"linux","Architecture":"X86-64","Variant":"v1"}"#, "linux", "amd64", None),
            (r#"{"os":null,"architecture":null,"variant":null}"#, "", "", None),
            (r#"{"architecture":"aarch64","variant":"v8"}"#, "", "arm64", Some("v8")),
            ("{}", "", "", None),
        ] {
            let platform: Platform = serde_json::from_str(text).unwrap();
            let found = (platform.os.as_str(), platform.architecture.as_str(), platform.variant.as_deref());
            assert_eq!(found, (os, architecture, variant), "{text}");
        }
        assert!(serde_json::from_str::<Platform>(r#"{"os":5}"#).is_err());
        let wide = Platform { os: "plan9".to_owned(), architecture: format!("\n{}", "x".repeat(99)), variant: None };
        assert_eq!(wide.shown(), format!("plan9/{}", "x".repeat(20)));
    }

    #[test]
    fn what_is_not_said_is_not_denied() {
        let platform = |os: &str, architecture: &str| Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        };
        for (os, architecture) in [("", ""), ("linux", ""), ("", "amd64"), ("linux", "amd64")] {
            assert!(platform(os, architecture).may_be("linux", "amd64"), "{os} {architecture}");
        }
        assert!(!platform("windows", "amd64").may_be("linux", "amd64"));
        assert!(!platform("linux", "arm64").may_be("linux", "amd64"));
        assert!(platform("", "").is_empty() && !platform("", "amd64").is_empty());
    }

    #[test]
    fn artifacts_have_configurations_of_other_types() {
        assert!(["", "application/vnd.oci.image.config.v1+json", "text/html"].into_iter().all(is_image_config));
        assert!(!is_image_config("application/vnd.cncf.helm.config.v1+json"));
    }
}
