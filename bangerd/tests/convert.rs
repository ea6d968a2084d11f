//! The real converter: `bangerd convert` in a process of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use banger_image::hashing::Hasher;
use banger_image::{Limits, Progress};
use banger_vmm::cgroup::Cgroups;
use bangerd::convert::{ConvertError, Converter, Made, What};
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

const MOST: u64 = 256 << 20;

fn bangerd() -> Converter {
    Converter::Process(env!("CARGO_BIN_EXE_bangerd").into(), Cgroups::untracked())
}

fn tar(files: &[(&str, usize)]) -> File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    for (name, size) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(u64::try_from(*size).unwrap());
        builder.append_data(&mut header, name, vec![0x5a; *size].as_slice()).unwrap();
    }
    let mut file = builder.into_inner().unwrap();
    file.rewind().unwrap();
    file
}

fn image(converter: &Converter, source: File, staging: &Path, progress: &dyn Progress) -> Result<Made, ConvertError> {
    converter.run(What::Image { most: MOST, reference: None }, source, staging, progress)
}

/// What /proc says of the children of this process that convert: of each, its threads.
fn children() -> Vec<Vec<String>> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let status = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("status")).ok();
    let threads = |entry: fs::DirEntry| -> Option<Vec<String>> {
        Some(fs::read_dir(entry.path().join("task")).ok()?.flatten().filter_map(status).collect())
    };
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(threads);
    all.filter(|of| of.iter().any(|main| main.contains(&own) && main.starts_with("Name:\tbangerd\n"))).collect()
}

#[derive(Default)]
struct Looks {
    seen: RefCell<Vec<Vec<String>>>,
    stages: RefCell<Vec<&'static str>>,
    cancel: Cell<bool>,
    warnings: Cell<u32>,
}

impl Progress for Looks {
    fn stage(&self, name: &'static str) {
        self.stages.borrow_mut().push(name);
        self.seen.borrow_mut().extend(children());
    }

    fn warn(&self, _: &str) {
        self.warnings.set(self.warnings.get() + 1);
    }

    fn cancelled(&self) -> bool {
        self.cancel.get()
    }
}

#[test]
fn a_confined_process_makes_what_this_one_would() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = [("etc/hostname", 5), ("root/notes", 70_000), ("usr/large", 30 << 20)];
    let looks = Looks::default();
    let Made::Image(made) = image(&bangerd(), tar(&files), there.path(), &looks).unwrap() else { unreachable!() };
    let (limits, hasher) = (Limits::for_build_size(MOST), Hasher::start(|| Ok(())).unwrap());
    let same = banger_image::import(tar(&files), here.path(), MOST, None, limits, &hasher, &()).unwrap();
    assert_eq!((made.digest, made.build_size, made.entries), (same.digest, same.build_size, same.entries));
    for name in ["rootfs.ext4", "work-seed.tar"] {
        let mut same = std::process::Command::new("cmp");
        same.args(["-n", &MOST.to_string()]).args([there.path().join(name), here.path().join(name)]);
        assert!(same.status().unwrap().success(), "{name}");
    }
    assert_eq!(looks.stages.borrow().last(), Some(&"write root file system"));
    let seen = looks.seen.borrow();
    // Of the address space, which is limited, a heap of the second thread's own would take 128 MiB.
    let peak = |status: &String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?.trim().strip_suffix(" kB")?.parse().ok()
    };
    let peak = seen.iter().flatten().filter_map(peak).max();
    assert!(peak.is_some_and(|peak| peak < 128 << 10), "{peak:?} KiB");
    let confined = |status: &String| status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1");
    let both = |threads: &Vec<String>| threads.len() == 2 && threads.iter().all(confined);
    assert!(!seen.is_empty() && seen.iter().any(both), "{seen:?}");
    assert!(children().is_empty(), "nothing is left running");
}

/// Its spool is a file of the folder, too.
#[test]
fn a_compressed_archive_is_unpacked_inside_the_folder() {
    let mut plain = Vec::new();
    tar(&[("etc/hostname", 5), ("root/x", 3 << 20)]).read_to_end(&mut plain).unwrap();
    let mut packed = flate2::write::GzEncoder::new(tempfile::tempfile().unwrap(), flate2::Compression::fast());
    packed.write_all(&plain).unwrap();
    let mut packed = packed.finish().unwrap();
    packed.rewind().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let result = image(&bangerd(), packed, folder.path(), &());
    assert!(matches!(&result, Ok(Made::Image(image)) if image.entries == 2), "{result:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the image and its seed");
}

#[test]
fn what_is_wrong_with_an_archive_is_said_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let looks = Looks::default();
    let error = image(&bangerd(), tar(&[("root.x86_64/etc/x", 1)]), folder.path(), &looks).unwrap_err();
    assert!(matches!(&error, ConvertError::Refused(why) if why.contains("root.x86_64")), "{error:?}");
    let folder = tempfile::tempdir().unwrap();
    image(&bangerd(), tar(&[("only-this", 1)]), folder.path(), &looks).unwrap();
    assert_eq!(looks.warnings.get(), 1);
    let kernel = bangerd().run(What::Kernel, tar(&[("vmlinuz", 1000)]), folder.path(), &());
    assert!(matches!(&kernel, Err(ConvertError::Refused(why)) if why.contains("not a Linux kernel")), "{kernel:?}");
}

#[test]
fn a_cancelled_conversion_is_ended_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let looks = Looks { cancel: Cell::new(true), ..Looks::default() };
    let begun = Instant::now();
    let result = image(&bangerd(), tar(&[("usr/x", 60 << 20)]), folder.path(), &looks);
    assert!(matches!(result, Err(ConvertError::Cancelled)), "{result:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(children().is_empty());
}

/// A kernel whose module leads out of its folder.
const IMPLAUSIBLE: &str = concat!(
    r#"echo '{"Ended":{"Ok":{"Kernel":{"digest":"1000000000000000000000000000000000000000000000000000000000000000","#,
    r#""version":"6.12","vmlinux":"x","modules_dir":"y","modules":["../../x"],"has_disk":false}}}}'"#,
);

/// Whatever was taken over: what it says is bounded, and that it says nothing is an error of this
/// import.
#[test]
fn a_converter_that_misbehaves_fails_its_own_import() {
    let folder = tempfile::tempdir().unwrap();
    let program = |line: &str| {
        let path = folder.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Converter::Process(path, Cgroups::untracked())
    };
    for (line, words) in [
        ("exit 0", "without a result"),
        ("kill -KILL $$", "signal: 9"),
        ("echo nonsense", "the converter"),
        // What no import comes to, said in the right way.
        (IMPLAUSIBLE, "has said what no import comes to"),
        ("/usr/bin/head -c 10000000 /dev/zero; exec /usr/bin/sleep 100", "without a result"),
    ] {
        let begun = Instant::now();
        let error = image(&program(line), tar(&[("etc/x", 1)]), folder.path(), &()).unwrap_err();
        assert!(error.to_string().contains(words), "{line}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{line}");
    }
    let missing = image(
        &Converter::Process("/nonexistent".into(), Cgroups::untracked()),
        tar(&[("etc/x", 1)]),
        folder.path(),
        &(),
    );
    assert!(matches!(missing, Err(ConvertError::Host(_))), "{missing:?}");
}

/// The work disk of a VM: the same bytes as without a process, from the seed and nothing else.
#[test]
fn a_work_disk_is_made_by_a_confined_process() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (size, uuid) = (64 << 20, [9; 16]);
    let make = |seed: File, has_seed: bool| {
        bangerd().run(What::WorkDisk { size, uuid, has_seed }, seed, there.path(), &Looks::default())
    };
    let seed = || tar(&[("notes", 70_000)]);
    assert!(matches!(make(seed(), true), Ok(Made::WorkDisk)));
    let disk = banger_image::work_disk::WorkDisk { size, seed: Some(seed()), uuid };
    banger_image::work_disk::create(disk, &here.path().join("work.ext4"), &()).unwrap();
    assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1);
    let made = there.path().join("work.ext4");
    assert!(fs::read(&made).unwrap() == fs::read(here.path().join("work.ext4")).unwrap(), "other bytes");
    assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    // What is there is never overwritten, and a seed that is none is this VM's error alone.
    assert!(matches!(make(seed(), true), Err(ConvertError::Host(_))));
    fs::remove_file(&made).unwrap();
    let mut noise = tempfile::tempfile().unwrap();
    noise.write_all(&[7; 5000]).unwrap();
    noise.rewind().unwrap();
    assert!(matches!(make(noise, true), Err(ConvertError::Refused(_))));
    assert!(matches!(make(File::open("/dev/null").unwrap(), false), Ok(Made::WorkDisk)), "an image without a seed");
    assert!(children().is_empty(), "nothing is left running");
}
