//! Archives for the bench of imports. Only what is measured is made fast; this is a program without
//! optimisation, so hashing and compressing are left to other programs.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

type Tar = tar::Builder<BufWriter<File>>;

/// What of Debian the upper layers have again, and where: new files, files in the place of others,
/// and folders that a whiteout empties before.
const UPPER: [(&str, &str, &[&str]); 4] = [
    ("usr/lib", "opt/lib", &[]),
    ("usr/share", "opt/share", &["opt/lib/.wh.terminfo"]),
    ("usr/bin", "usr/bin", &["usr/sbin/.wh..wh..opq"]),
    ("etc", "srv/etc", &["opt/share/.wh.zoneinfo", ".wh.media"]),
];

/// Debian itself, and four layers of its own files over it.
pub(super) fn five_layers(debian: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir(folder).context("a folder for layers")?;
    let mut layers = vec![debian.to_owned()];
    for (number, (from, to, hidden)) in UPPER.iter().enumerate() {
        let path = folder.join(number.to_string());
        let mut layer = create(&path)?;
        for name in *hidden {
            layer.append_data(&mut header(0), name, &b""[..])?;
        }
        let mut archive = tar::Archive::new(BufReader::new(File::open(debian).context("open Debian's archive")?));
        for entry in archive.entries()? {
            let entry = entry?;
            let name = entry.path()?.into_owned();
            let Ok(below) = name.strip_prefix(".").unwrap_or(&name).strip_prefix(from) else { continue };
            let (at, mut header) = (Path::new(to).join(below), entry.header().clone());
            match header.entry_type() {
                tar::EntryType::Regular | tar::EntryType::Directory => layer.append_data(&mut header, at, entry)?,
                tar::EntryType::Symlink => {
                    let target = entry.link_name()?.context("a link without a target")?.into_owned();
                    layer.append_link(&mut header, at, target)?;
                }
                _ => {}
            }
        }
        finish(layer)?;
        layers.push(path);
    }
    Ok(layers)
}

/// Small files, every fourth with a line in it.
pub(super) struct Files {
    pub(super) folders: u32,
    pub(super) each: u32,
}

impl Files {
    pub(super) fn write(&self, path: &Path, below: &str) -> Result<()> {
        let mut archive = create(path)?;
        let line = [b'x'; 100];
        for folder in 0..self.folders {
            for number in 0..self.each {
                let data = if number % 4 == 0 { &line[..] } else { &[] };
                let name = format!("{below}/{folder:04}/a-file-of-the-bench-{number:06}");
                archive.append_data(&mut header(data.len() as u64), name, data)?;
            }
        }
        finish(archive)
    }
}

/// Files that cannot be compressed.
pub(super) fn noise(path: &Path, files: u32, each: u64) -> Result<()> {
    let mut archive = create(path)?;
    let mut random = File::open("/dev/urandom").context("open /dev/urandom")?;
    for number in 0..files {
        let data = BufReader::with_capacity(1 << 20, (&mut random).take(each));
        archive.append_data(&mut header(each), format!("srv/{number}"), data)?;
    }
    finish(archive)
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

fn create(path: &Path) -> Result<Tar> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Ok(tar::Builder::new(BufWriter::with_capacity(1 << 20, file)))
}

fn finish(archive: Tar) -> Result<()> {
    archive.into_inner()?.flush().context("write an archive")
}

/// An archive of a layout with one image of these plain layers.
pub(super) fn oci(layers: &[PathBuf], compressed: bool, archive: &Path) -> Result<()> {
    let layout = archive.with_extension("layout");
    let _ = fs::remove_dir_all(&layout);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("a folder for blobs")?;
    let (mut ids, mut kept) = (Vec::new(), Vec::new());
    let new = blobs.join("new");
    for layer in layers {
        ids.push(format!("sha256:{}", sha256(layer)?));
        if compressed {
            let mut gzip = Command::new("gzip");
            gzip.args(["-n", "-c"]).arg(layer).stdout(File::create(&new).context("create a blob")?);
            ensure!(gzip.status().context("run gzip")?.success(), "gzip {}", layer.display());
        } else {
            fs::copy(layer, &new).context("copy a layer")?;
        }
        let ending = if compressed { "tar+gzip" } else { "tar" };
        kept.push(keep(&new, &format!("application/vnd.oci.image.layer.v1.{ending}"))?);
    }
    let document = |value: &Value, kind: &str| {
        fs::write(&new, value.to_string()).context("write a document")?;
        keep(&new, &format!("application/vnd.oci.image.{kind}.v1+json"))
    };
    let rootfs = json!({"type": "layers", "diff_ids": ids});
    let config = json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs});
    let config = document(&config, "config")?;
    let mut manifest = document(&json!({"schemaVersion": 2, "config": config, "layers": kept}), "manifest")?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "a"});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&layout).arg("-cf").arg(archive).args(["oci-layout", "index.json", "blobs"]);
    ensure!(tar.status().context("run tar")?.success(), "tar of {}", layout.display());
    fs::remove_dir_all(&layout).context("remove the layout")
}

/// Gives a blob its name, and describes it.
fn keep(blob: &Path, media_type: &str) -> Result<Value> {
    let (digest, size) = (sha256(blob)?, fs::metadata(blob).context("look at a blob")?.len());
    fs::rename(blob, blob.with_file_name(&digest)).context("name a blob")?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}))
}

fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").stdin(Stdio::from(File::open(path)?)).output().context("run sha256sum")?;
    let line = String::from_utf8(output.stdout).context("its output is no text")?;
    line.split_once(' ').map(|(sum, _)| sum.to_owned()).context("sha256sum has printed no sum")
}
