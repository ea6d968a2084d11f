//! What the packages' tools take: scripts with their common steps in them, compressed pages, and
//! the .rpm's files.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use toml::Table;

use super::files;

/// Made anew each time.
const FOLDER: &str = "target/package";
/// Overwrites parts of `package.metadata.generate-rpm`.
pub(super) const RPM_METADATA: &str = "target/package/rpm.toml";

/// The line of a script in whose place the common steps come, and what stands for the database's
/// schema in them.
pub(super) const STEPS: &str = "#STEPS#\n";
const SCHEMA: &str = "#SCHEMA#";

/// The .rpm's scripts, by the name that its tool gives them.
const RPM_SCRIPTS: [(&str, &str); 4] = [
    ("pre", "pre_install_script"),
    ("post", "post_install_script"),
    ("preun", "pre_uninstall_script"),
    ("postun", "post_uninstall_script"),
];
const DEB_SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

pub(super) fn write() -> Result<()> {
    let folder = Path::new(FOLDER);
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {FOLDER}"));
        }
        _ => {}
    }
    for name in ["deb", "rpm", "man"] {
        fs::create_dir_all(folder.join(name)).with_context(|| format!("create {FOLDER}/{name}"))?;
    }
    let steps = read("packaging/scripts/steps.sh")?.replace(SCHEMA, &schema()?.to_string());
    for name in DEB_SCRIPTS {
        put(&folder.join("deb").join(name), with_steps(&read(&format!("packaging/deb/{name}"))?, &steps)?.as_bytes())?;
    }
    let mut metadata = Table::new();
    for (name, key) in RPM_SCRIPTS {
        metadata.insert(key.into(), with_steps(&read(&format!("packaging/rpm/{name}"))?, &steps)?.into());
    }
    metadata.insert("assets".into(), files::for_rpm(&files::of_deb(&files::manifest()?)?));
    put(Path::new(RPM_METADATA), metadata.to_string().as_bytes())?;
    for entry in fs::read_dir("packaging/man").context("read packaging/man")? {
        let path = entry.context("read packaging/man")?.path();
        let name = path.file_name().context("name of a page")?.display().to_string();
        compress(&path, &folder.join("man").join(format!("{name}.gz")))?;
    }
    compress(Path::new("packaging/deb/changelog"), &folder.join("changelog.gz"))
}

/// The newest schema of the database that the daemon knows: a file per step.
fn schema() -> Result<usize> {
    let folder = "bangerd/src/db/schema";
    let count = fs::read_dir(folder).with_context(|| format!("read {folder}"))?.count();
    ensure!(count > 0, "{folder} is empty");
    Ok(count)
}

pub(super) fn with_steps(script: &str, steps: &str) -> Result<String> {
    let (before, after) = script.split_once(STEPS).context("a script has no line #STEPS#")?;
    Ok(format!("{before}{steps}{after}"))
}

/// The same bytes for the same text: no time and no name in the header.
fn compress(from: &Path, to: &Path) -> Result<()> {
    let text = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(&text).with_context(|| format!("compress {}", from.display()))?;
    put(to, &encoder.finish().with_context(|| format!("compress {}", from.display()))?)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_has_the_common_steps_once_and_is_understood_by_the_shell() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let steps = fs::read_to_string(root.join("packaging/scripts/steps.sh")).unwrap();
        let scripts = DEB_SCRIPTS.map(|name| format!("deb/{name}"));
        let scripts = scripts.into_iter().chain(RPM_SCRIPTS.map(|(name, _)| format!("rpm/{name}")));
        for name in scripts {
            let script = fs::read_to_string(root.join("packaging").join(&name)).unwrap();
            let whole = with_steps(&script, &steps).unwrap();
            assert_eq!(whole.matches("database_fits() {").count(), 1, "{name}");
            let ended = std::process::Command::new("sh").args(["-n", "-c", &whole]).output().unwrap();
            assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        assert!(with_steps("#!/bin/sh\n", &steps).is_err());
    }

    /// The scripts read SQLite's file themselves: the daemon of the package that is to come is not
    /// there yet.
    #[test]
    fn a_database_of_a_newer_schema_is_refused_with_the_way_out() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("banger.db");
        let steps = fs::read_to_string(root.join("packaging/scripts/steps.sh")).unwrap();
        let steps = steps.replace(SCHEMA, "4").replace("/var/lib/banger/banger.db", database.to_str().unwrap());
        let ask = || {
            let line = format!("set -e\n{steps}\ndatabase_fits\n");
            let ended = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
        };
        assert_eq!(ask(), (true, String::new()), "no database");
        for (schema, fits) in [(0_u32, true), (4, true), (5, false), (300, false)] {
            let mut header = vec![0_u8; 100];
            header[60..64].copy_from_slice(&schema.to_be_bytes());
            fs::write(&database, header).unwrap();
            let (fitted, said) = ask();
            assert_eq!(fitted, fits, "schema {schema}: {said}");
            assert_eq!(said.contains(&format!("schema {schema}, this package knows 4")), !fits, "{said}");
            assert!(fits || said.contains("backups/COPY"), "{said}");
        }
        fs::write(&database, "").unwrap();
        assert_eq!(ask(), (true, String::new()), "an empty file");
    }

    #[test]
    fn compressed_pages_are_the_same_each_time_and_carry_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let (page, one, two) = (dir.path().join("page.1"), dir.path().join("1.gz"), dir.path().join("2.gz"));
        fs::write(&page, ".TH BANGER 1\n".repeat(50)).unwrap();
        compress(&page, &one).unwrap();
        compress(&page, &two).unwrap();
        let bytes = fs::read(one).unwrap();
        assert_eq!(bytes, fs::read(two).unwrap());
        // RFC 1952: no flag, time 0, the best compression.
        assert_eq!(bytes[3..9], [0, 0, 0, 0, 0, 2]);
    }
}
