//! Short names of images: what `image pull NAME` fetches when the name is in the catalogue.
//!
//! Three files of the same form: the package's, the host's in `/etc`, and the user's own. A name in
//! a later file replaces the same name in an earlier one. The files are read with the user's rights
//! and only name what is fetched; the registry and the digest decide what arrives.

use crate::error::explained;
use crate::registry::{self, Reference};
use banger_policy::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The package's, then the host's.
const FILES: [&str; 2] = ["/usr/share/banger/catalogue.toml", "/etc/banger/catalogue.toml"];
/// Larger files are something else, bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As `docker pull` takes it.
    pub(crate) reference: String,
    /// The manifest or index that the reference must lead to, as its registry names it.
    pub(crate) digest: Option<Digest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    images: BTreeMap<String, Raw>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    reference: String,
    digest: Option<String>,
}

/// All names with what they stand for. A file that is not there has none.
///
/// # Errors
/// Which file cannot be read or understood, and where.
pub(crate) fn all() -> anyhow::Result<BTreeMap<String, Entry>> {
    let own = registry::own_config_folder().map(|folder| folder.join("catalogue.toml"));
    let files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).chain(own).collect();
    read(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

/// What a name stands for; `None` for a name that the catalogue does not have.
///
/// # Errors
/// As [`all`], except for a name with a registry in it: such a name is never looked up, so that
/// images can be pulled whatever state the catalogue is in.
pub(crate) fn find(name: &str) -> anyhow::Result<Option<Entry>> {
    if Reference::names_registry(name) {
        return Ok(None);
    }
    Ok(all()?.remove(name))
}

fn read(files: &[&Path]) -> anyhow::Result<BTreeMap<String, Entry>> {
    let mut all = BTreeMap::new();
    for path in files {
        let refused = |why: String| {
            explained(
                format!("the catalogue {} cannot be used: {why}", path.display()),
                "correct the file, or ask an administrator to; until then name the image with its registry: docker.io/debian:13",
            )
        };
        let text = match text(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(refused(error.to_string())),
        };
        all.extend(parse(&text).map_err(refused)?);
    }
    Ok(all)
}

fn text(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> Result<BTreeMap<String, Entry>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    file.images.into_iter().map(|(name, raw)| checked(&name, raw).map(|entry| (name, entry))).collect()
}

fn checked(name: &str, raw: Raw) -> Result<Entry, String> {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if name.is_empty() || name.contains(odd) {
        return Err(format!("{name:?} is no name of an image"));
    }
    if Reference::names_registry(name) {
        return Err(format!("{name} begins with a registry, and so is a reference of its own"));
    }
    if raw.reference.is_empty() || raw.reference.contains(odd) || raw.reference.contains('@') {
        let why = "it is registry/repository:tag, and a digest has a line of its own";
        return Err(format!("the reference of {name} cannot be {:?}: {why}", raw.reference));
    }
    let digest = raw.digest.map(|text| {
        let hex = text.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
        hex.ok_or_else(|| format!("the digest of {name} is not sha256: and 64 hexadecimal digits: {text:?}"))
    });
    Ok(Entry { reference: raw.reference, digest: digest.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "1212121212121212121212121212121212121212121212121212121212121212";

    #[test]
    fn the_packages_catalogue_is_sound() {
        let all = parse(include_str!("../../packaging/catalogue.toml")).unwrap_or_default();
        assert!(all.contains_key("debian") && all.len() > 4, "{all:?}");
    }

    #[test]
    fn a_hosts_names_replace_those_of_the_package() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (package, host) = (folder.path().join("package"), folder.path().join("host"));
        std::fs::write(&package, "[images.a]\nreference = \"x/a:1\"\n[images.\"b:2\"]\nreference = \"x/b:2\"\n")?;
        std::fs::write(&host, format!("[images.a]\nreference = \"localhost:5000/a\"\ndigest = \"sha256:{DIGEST}\"\n"))?;
        let all = read(&[&package, &host, &folder.path().join("none")])?;
        assert_eq!(all["a"], Entry { reference: "localhost:5000/a".into(), digest: DIGEST.parse().ok() });
        assert_eq!(all["b:2"], Entry { reference: "x/b:2".into(), digest: None });
        assert!(!all.contains_key("c") && read(&[&folder.path().join("none")])?.is_empty());
        std::fs::write(&host, "[images.a]\nreferense = \"x\"\n")?;
        let refused = read(&[&package, &host]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains(&host.display().to_string()) && refused.contains("referense"), "{refused}");
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("[images.a]\nreference = \"\"\n", "the reference of a"),
            ("[images.a]\nreference = \"a b\"\n", "the reference of a"),
            ("[images.a]\nreference = \"a@sha256:12\"\n", "a digest has a line of its own"),
            ("[images.a]\nreference = \"a\"\ndigest = \"12\"\n", "the digest of a"),
            ("[images.\"a b\"]\nreference = \"a\"\n", "no name of an image"),
            ("[images.\"ghcr.io/a\"]\nreference = \"a\"\n", "begins with a registry"),
            ("[images.a]\n", "reference"),
            ("[image.a]\nreference = \"a\"\n", "unknown field"),
            ("[images", "line 1"),
        ] {
            let refused = parse(text).err().unwrap_or_default();
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }
}
