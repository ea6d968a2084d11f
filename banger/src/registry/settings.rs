//! What a user may set: `registries.toml` in `~/.config/banger`, and where the cache is.

use crate::error::explained;
use anyhow::Context as _;
use banger_policy::ByteSize;
use nix::unistd::{Uid, geteuid};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::url::Url;

/// The cache's size when nobody says otherwise, bytes.
const CACHE_SIZE: u64 = 10 << 30;

/// Settings, checked.
#[derive(Debug)]
pub(super) struct Settings {
    /// Bytes.
    pub(super) cache_size: u64,
    /// By registry, in the order in which they are tried.
    pub(super) mirrors: BTreeMap<String, Vec<Url>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    cache_size: Option<String>,
    mirrors: BTreeMap<String, Vec<String>>,
}

/// # Errors
/// With the place of a mistake.
pub(super) fn read() -> anyhow::Result<Settings> {
    let file = own_config_folder().map(|folder| folder.join("registries.toml"));
    let Some(file) = file else { return parse("") };
    match std::fs::read_to_string(&file) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => parse(""),
        Err(error) => Err(error.into()),
    }
    .with_context(|| format!("cannot read {}", file.display()))
}

fn parse(text: &str) -> anyhow::Result<Settings> {
    let File { cache_size, mirrors } =
        toml::from_str(text).map_err(|error| explained(error.to_string().trim(), "correct or remove that file"))?;
    let cache_size = cache_size.map(|size| size.parse::<ByteSize>()).transpose().context("cache_size")?;
    let mirror = |text: &String| {
        let url = Url::parse(text).filter(|url| url.https || url.is_loopback());
        url.ok_or_else(|| explained(format!("the mirror {text:?} is no address"), "such as: https://mirror.example"))
    };
    let mirrors = mirrors.into_iter().map(|(registry, mirrors)| {
        let mirrors = mirrors.iter().map(mirror).collect::<Result<_, _>>();
        mirrors.map(|mirrors| (registry, mirrors))
    });
    Ok(Settings {
        cache_size: cache_size.map_or(CACHE_SIZE, ByteSize::bytes),
        mirrors: mirrors.collect::<Result<_, _>>()?,
    })
}

/// The same folder when it is the caller's. Under `sudo`, HOME may be another user's, who must not
/// choose the mirror, nor the meaning of a short name, by which root pulls an image.
pub(crate) fn own_config_folder() -> Option<PathBuf> {
    config_folder().filter(|folder| belongs_to(folder, geteuid()))
}

fn belongs_to(folder: &Path, caller: Uid) -> bool {
    folder.metadata().is_ok_and(|found| found.uid() == caller.as_raw())
}

/// `~/.config/banger`, for a user who has a home.
pub(crate) fn config_folder() -> Option<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config").map(|folder| folder.join("banger"))
}

/// # Errors
/// When there is no home to look for it in.
pub(super) fn caches() -> anyhow::Result<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
        .ok_or_else(|| explained("there is no HOME for the cache of layers", "set HOME, or XDG_CACHE_HOME"))
}

/// A folder of the XDG base directory specification, in which a relative path does not count.
fn xdg(variable: &str, below_home: &str) -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder(variable).or_else(|| Some(Path::new(&folder("HOME")?).join(below_home)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn another_users_folder_is_as_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(belongs_to(folder.path(), geteuid()));
        assert!(!belongs_to(folder.path(), Uid::from_raw(geteuid().as_raw() + 1)));
    }

    #[test]
    fn settings_and_mistakes() {
        let text = "cache_size = \"2G\"\n[mirrors]\n\"docker.io\" = [\"https://mirror.example/x\", \"http://127.0.0.1:5000\"]\n";
        let settings = parse(text).unwrap();
        assert_eq!((settings.cache_size, settings.mirrors["docker.io"].len()), (2 << 30, 2));
        assert_eq!(parse("").unwrap().cache_size, 10 << 30);
        for bad in [
            "cache-size = \"2G\"",
            "cache_size = \"much\"",
            "[mirrors]\nx = [\"http://mirror.example\"]",
            "[mirrors]\nx = [\"mirror\"]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
