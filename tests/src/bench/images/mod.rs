//! What imports take on this machine, as `make bench` prints it: beside what other tools need for
//! the same image, beside the least that could do it, and by size. Nothing is judged: what else the
//! machine does shows in seconds, and less in ratios, whose sides take turns.

mod material;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use material::Files;

use super::shown;

/// The importer, built for speed.
const BUILD: Duration = Duration::from_secs(30 * 60);
const IMPORTER: &str = "target/release/examples/import";
/// Of each side of a comparison.
const ROUNDS: usize = 7;
/// Of what is large, and of a cell of the table.
const FEW: usize = 3;
/// What an image may hold, bytes.
const MOST: &str = "17179869184";
const MIB: u64 = 1 << 20;

/// Shell lines: `$1` is an OCI archive, `$2` an empty folder, `$3` the size.
const OTHERS: &str = "skopeo copy --quiet --insecure-policy oci-archive:$1 oci:$2/layout:a && \
    umoci unpack --image $2/layout:a $2/bundle && mke2fs -q -t ext4 -d $2/bundle/rootfs $2/disk.ext4 $(($3 / 1024))k";
const PROGRAMS: [&str; 5] = ["skopeo", "umoci", "mke2fs", "mmdebstrap", "sha256sum"];

/// Writes an archive.
type Make<'a> = &'a dyn Fn(&Path) -> Result<()>;

/// One run of a program: seconds, and what it says of its memory, MiB.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    memory: f64,
}

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) fn run() -> Result<()> {
    if let Some(why) = missing() {
        println!("images: skipped: {why}");
        return Ok(());
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args("build --quiet --release --locked --workspace --example import".split(' '));
    shown::must(build, BUILD)?;
    let bench = Bench { folder: tempfile::tempdir_in("target").context("a folder for images")? };
    println!("images: seconds are medians; memory is the most that the importer had resident");
    let debian = bench.path("debian.tar");
    crate::hostvm::debian(&debian)?;
    let layers = material::five_layers(&debian, &bench.path("layers"))?;
    for (what, layers) in [("Debian, one layer", &layers[..1]), ("Debian, five layers", &layers[..])] {
        let archive = bench.path("image.tar");
        material::oci(layers, true, &archive)?;
        println!("images: {what}: {}", bench.beside(&archive)?);
    }
    let archive = bench.path("large.tar");
    let large: [(&str, Make<'_>, usize); 3] = [
        ("64 files of 16 MiB", &|path| material::noise(path, 64, 16 * MIB), FEW),
        ("100,000 files in one folder", &|path| Files { folders: 1, each: 100_000 }.write(path, "srv"), FEW),
        ("1,000,000 files in 1,000 folders", &|path| Files { folders: 1000, each: 1000 }.write(path, "srv"), 1),
    ];
    for (what, make, rounds) in large {
        make(&archive)?;
        let run = median(&(0..rounds).map(|_| bench.import(&archive)).collect::<Result<Vec<_>>>()?);
        println!("images: {what}: {:.2} s, {:.0} MiB, {rounds} times", run.seconds, run.memory);
    }
    bench.table()
}

/// Why nothing can be compared here.
fn missing() -> Option<String> {
    let is_there = |program: &str| {
        let mut look = Command::new("sh");
        look.args(["-c", "command -v \"$0\" >/dev/null", program]);
        look.status().is_ok_and(|status| status.success())
    };
    if !nix::unistd::geteuid().is_root() {
        return Some("not root: umoci keeps owners and devices as root only".to_owned());
    }
    PROGRAMS.into_iter().find(|program| !is_there(program)).map(|program| format!("{program} is not installed"))
}

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// In turns: the import, the other tools, the least.
    fn beside(&self, archive: &Path) -> Result<String> {
        let (mut ours, mut others, mut least) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(self.import(archive)?);
            others.push(self.others(archive)?);
            least.push(self.importer("floor", archive, &[])?);
        }
        let [ours, others, least] = [ours, others, least].map(|runs| median(&runs));
        Ok(format!(
            "import {:.2} s, {:.0} MiB; skopeo, umoci and mke2fs {:.2} s, of which the import is {:.2}; \
            decompressing and writing {:.2} s, of which the import is {:.2}; {ROUNDS} times in turns",
            ours.seconds,
            ours.memory,
            others.seconds,
            ours.seconds / others.seconds,
            least.seconds,
            ours.seconds / least.seconds
        ))
    }

    /// Cost against the number of layers and of files.
    #[expect(clippy::print_stdout, reason = "the result is what was asked for")]
    fn table(&self) -> Result<()> {
        const LAYERS: [u32; 4] = [1, 5, 25, 100];
        const FILES: [u32; 3] = [1000, 10_000, 100_000];
        let heads = LAYERS.map(|layers| format!("{:>16}", format!("{layers} layers")));
        println!("images: {:>12}{}   {FEW} times", "files", heads.concat());
        for files in FILES {
            let mut cells = String::new();
            for layers in LAYERS {
                let plain = (0..layers)
                    .map(|number| {
                        let path = self.path(&format!("plain-{number}"));
                        Files { folders: 1, each: files / layers }.write(&path, &format!("srv/{number}"))?;
                        Ok(path)
                    })
                    .collect::<Result<Vec<_>>>()?;
                let archive = self.path("image.tar");
                material::oci(&plain, false, &archive)?;
                let run = median(&(0..FEW).map(|_| self.import(&archive)).collect::<Result<Vec<_>>>()?);
                cells += &format!("{:>16}", format!("{:.2} s {:.0} MiB", run.seconds, run.memory));
            }
            println!("images: {files:>12}{cells}");
        }
        Ok(())
    }

    fn import(&self, archive: &Path) -> Result<Run> {
        self.importer("rootfs", archive, &[MOST])
    }

    fn importer(&self, what: &str, archive: &Path, more: &[&str]) -> Result<Run> {
        self.timed(|into| {
            let mut command = Command::new(IMPORTER);
            command.arg(what).arg(archive).arg(into).args(more);
            command
        })
    }

    fn others(&self, archive: &Path) -> Result<Run> {
        self.timed(|into| {
            let mut command = Command::new("sh");
            command.args(["-c", OTHERS, "sh"]).arg(archive).arg(into).arg(MOST);
            command
        })
    }

    /// Runs a program that fills a folder, which is removed afterwards.
    fn timed(&self, program: impl FnOnce(&Path) -> Command) -> Result<Run> {
        let into = self.path("into");
        fs::create_dir(&into).context("a folder for results")?;
        // What was written before would be written back while this runs.
        nix::unistd::sync();
        let mut command = program(&into);
        let begun = Instant::now();
        let output = command.output().with_context(|| format!("run {command:?}"))?;
        let seconds = begun.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        fs::remove_dir_all(&into).context("remove the results")?;
        let kib = said.lines().find_map(|line| line.strip_suffix(" KiB of memory at most")?.parse::<f64>().ok());
        Ok(Run { seconds, memory: kib.unwrap_or_default() / 1024.0 })
    }
}

fn median(runs: &[Run]) -> Run {
    let middle = |of: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Run { seconds: middle(|run| run.seconds), memory: middle(|run| run.memory) }
}
