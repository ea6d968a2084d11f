//! Which file goes where. The .deb's assets in `banger/Cargo.toml` are the only list: the .rpm's
//! are made from it.

use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

/// Where the distributions of .rpm have another folder than Debian: here and there. Nothing else
/// differs.
const ELSEWHERE: &[(&str, &str)] = &[
    ("/usr/share/zsh/vendor-completions/", "/usr/share/zsh/site-functions/"),
    // Where rpmlint and licence scanners look for it.
    ("/usr/share/doc/banger/copyright", "/usr/share/licenses/banger/copyright"),
];

/// A source (relative to the folder `banger`, or `target/release/...`), where it goes, and its
/// mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asset {
    pub(super) source: String,
    pub(super) dest: String,
    pub(super) mode: String,
}

/// The assets of the .deb, with what cargo-deb adds by itself.
pub(super) fn of_deb(manifest: &str) -> Result<Vec<Asset>> {
    let manifest: Table = manifest.parse().context("banger/Cargo.toml")?;
    let list = ["package", "metadata", "deb", "assets"]
        .iter()
        .try_fold(&Value::Table(manifest), |value, key| value.get(key))
        .and_then(Value::as_array)
        .context("banger/Cargo.toml has no package.metadata.deb.assets")?
        .clone();
    let mut assets = Vec::new();
    for line in &list {
        let word = |index: usize| line.get(index).and_then(Value::as_str).map(str::to_owned);
        let asset = word(0).zip(word(1)).zip(word(2));
        let ((source, dest), mode) = asset.with_context(|| format!("an asset is not three texts: {line}"))?;
        assets.push(Asset { source, dest: format!("/{dest}"), mode });
    }
    for (source, dest) in [
        ("../packaging/deb/copyright", "/usr/share/doc/banger/copyright"),
        ("../target/package/changelog.gz", "/usr/share/doc/banger/changelog.Debian.gz"),
    ] {
        assets.push(Asset { source: source.to_owned(), dest: dest.to_owned(), mode: "644".to_owned() });
    }
    Ok(assets)
}

/// The same files for cargo-generate-rpm.
pub(super) fn for_rpm(assets: &[Asset]) -> Value {
    let list = assets.iter().map(|asset| {
        let dest = in_rpm(&asset.dest);
        let mut entry = Table::new();
        if dest.starts_with("/etc/") {
            // Debian's conffile: what the administrator has changed is kept.
            entry.insert("config".into(), "noreplace".into());
        }
        if ["/usr/share/doc/", "/usr/share/man/"].iter().any(|folder| dest.starts_with(folder)) {
            entry.insert("doc".into(), true.into());
        }
        entry.insert("source".into(), asset.source.as_str().into());
        entry.insert("dest".into(), dest.into());
        entry.insert("mode".into(), asset.mode.as_str().into());
        Value::Table(entry)
    });
    Value::Array(list.collect())
}

/// The path in the .rpm of a file that has this one in the .deb.
pub(super) fn in_rpm(path: &str) -> String {
    let moved = ELSEWHERE.iter().find_map(|(here, there)| Some(format!("{there}{}", path.strip_prefix(here)?)));
    moved.unwrap_or_else(|| path.to_owned())
}

/// The manifest that names the files.
pub(super) fn manifest() -> Result<String> {
    let path = Path::new("banger/Cargo.toml");
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = include_str!("../../../../banger/Cargo.toml");

    #[test]
    fn the_rpm_has_every_file_of_the_deb() {
        let deb = of_deb(MANIFEST).unwrap();
        let rpm = for_rpm(&deb);
        let rpm = rpm.as_array().unwrap();
        assert!(deb.len() > 20 && rpm.len() == deb.len());
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        for (here, there) in deb.iter().zip(rpm) {
            assert_eq!((text(there, "source"), text(there, "mode")), (here.source.clone(), here.mode.clone()));
            assert_eq!(text(there, "dest"), in_rpm(&here.dest));
        }
        let config = rpm.iter().find(|value| text(value, "source").ends_with("banger.toml")).unwrap();
        assert_eq!(text(config, "config"), "noreplace");
        assert!(rpm.iter().any(|value| text(value, "dest") == "/usr/share/zsh/site-functions/"));
    }

    /// A file of packaging that no line names would be in no package.
    #[test]
    fn every_file_to_be_shipped_is_named() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        let assets = of_deb(MANIFEST).unwrap();
        let named = |path: &str| {
            assets.iter().any(|asset| {
                let source = asset.source.trim_start_matches("../packaging/");
                source == path || source.split_once('*').is_some_and(|(a, b)| path.starts_with(a) && path.ends_with(b))
            })
        };
        for folder in [
            "systemd",
            "host-firewall",
            "networkd",
            "networkmanager",
            "resolver",
            "sysusers.d",
            "tmpfiles.d",
            "modules-load.d",
            "sysctl.d",
            "udev",
        ] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let path = format!("{folder}/{}", entry.unwrap().file_name().display());
                assert!(named(&path), "packaging/{path} is in no package");
            }
        }
        assert!(!named("systemd-other/unit"));
    }

    /// The pages lie below `/usr/share/doc/banger` as they lie in the tree: a link to another page
    /// of a user or an administrator leads there.
    #[test]
    fn links_between_installed_pages_lead_somewhere() {
        /// For those who have the tree.
        const OF_THE_TREE: &[&str] = &["CONTRIBUTING.md", "LICENSE-APACHE", "LICENSE-MIT"];
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let installed: Vec<Asset> =
            of_deb(MANIFEST).unwrap().into_iter().filter(|asset| asset.source.ends_with(".md")).collect();
        assert!(installed.iter().any(|asset| asset.source == "../docs/*.md"));
        for asset in &installed {
            let place = asset.source.trim_start_matches("../");
            let (folder, _) = place.rsplit_once('/').map_or(("", place), |(folder, name)| (folder, name));
            let dest = format!("/usr/share/doc/banger/{folder}");
            assert_eq!(
                asset.dest.trim_end_matches('/'),
                dest.trim_end_matches('/'),
                "{place} lies elsewhere in the tree"
            );
        }
        let here = |path: &str| {
            installed.iter().any(|asset| {
                let source = asset.source.trim_start_matches("../");
                source == path || (source == "docs/*.md" && path.starts_with("docs/") && path.ends_with(".md"))
            })
        };
        let mut pages: Vec<String> = std::fs::read_dir(root.join("docs"))
            .unwrap()
            .map(|entry| format!("docs/{}", entry.unwrap().file_name().display()))
            .filter(|page| page.ends_with(".md"))
            .collect();
        pages.extend(["README.md", "SECURITY.md", "CHANGELOG.md"].map(str::to_owned));
        for page in &pages {
            assert!(here(page), "{page} is in no package");
            let text = std::fs::read_to_string(root.join(page)).unwrap();
            for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = link.split('#').next().unwrap_or_default();
                if path.is_empty() || path.contains("://") || OF_THE_TREE.contains(&path.trim_start_matches("../")) {
                    continue;
                }
                let path = match (page.split_once('/'), path.strip_prefix("../")) {
                    (Some(_), Some(above)) => above.to_owned(),
                    (Some((folder, _)), None) => format!("{folder}/{path}"),
                    (None, _) => path.to_owned(),
                };
                assert!(root.join(&path).exists() && here(&path), "{page}: the link to {path} leads nowhere");
            }
        }
    }
}
