//! Programs that make or read images: the oracles. All of it needs root: owners and devices.

use crate::seen::{Seen, look};
use banger_image::hashing::Hasher;
use banger_image::{ImageError, Limits, ROOTFS_FILE, import};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const SIZE: u64 = 4 << 30;

/// Why the test cannot run here, if that is so.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let is_there = |program: &&str| shell(&format!("command -v {program}")).is_ok();
    if let Some(program) = programs.iter().find(|program| !is_there(program)) {
        return Some(format!("{program} is not installed"));
    }
    let devices = "test -e /dev/loop-control && grep -qw ext4 /proc/filesystems && d=$(mktemp -d) && \
        mknod $d/x c 1 3 && rm -r $d && unshare --mount true";
    shell(devices).err().map(|_| "no loop devices, or no device nodes may be made here".to_owned())
}

/// What a line of the shell prints, or what it says when it fails.
pub(crate) fn shell(line: &str) -> Result<String, String> {
    let output = Command::new("sh")
        .args(["-c", line])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{line}: {}{}", text(&output.stdout), text(&output.stderr)))
    }
}

/// What our importer makes of an archive, as the kernel shows it.
pub(crate) fn imported(archive: &Path) -> Result<Seen, String> {
    let folder = tempfile::tempdir().unwrap();
    let (source, limits) = (File::open(archive).unwrap(), Limits::for_build_size(SIZE));
    let made = import(source, folder.path(), SIZE, None, limits, &Hasher::start(|| Ok(())).unwrap(), &());
    made.map_err(|error: ImageError| format!("{}: {error}", archive.display()))?;
    let image = folder.path().join(ROOTFS_FILE);
    shell(&format!("e2fsck -fn {}", image.display()))?;
    Ok(mounted(&image))
}

/// Mounted in a mount namespace of a child's own, which ends with it, however this test ends.
fn mounted(image: &Path) -> Seen {
    let at = tempfile::tempdir().unwrap();
    let line = format!("mount -o ro,noload,loop {} {} && echo ready && read end", image.display(), at.path().display());
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &line])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut word).unwrap();
    assert_eq!(word, "ready\n", "cannot mount {}", image.display());
    let inside = format!("/proc/{}/root{}", child.id(), at.path().display());
    let seen = look(Path::new(&inside)).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    seen
}
