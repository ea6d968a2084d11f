//! What an import writes, in the hands of the kernel: mounted as a guest mounts it, grown to root
//! disks of several sizes, filled, and looked at by e2fsck. Needs root with CAP_SYS_RESOURCE, loop
//! devices and e2fsprogs; what is missing is said.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a test fails by panicking, and says why it is skipped"
)]

use banger_image::hashing::Hasher;
use banger_image::{Limits, ROOTFS_FILE, import};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output};

fn shell(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap()
}

fn run(line: &str) -> String {
    let output = shell(line);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {said} {}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Bit 24 of the effective capabilities (capabilities(7)).
fn may_resize() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << 24 != 0
}

/// One folder and a file of some size.
fn tar() -> File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    let data = vec![0x5a; 9 << 20];
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(u64::try_from(data.len()).unwrap());
    builder.append_data(&mut header, "etc/kept", data.as_slice()).unwrap();
    let mut file = builder.into_inner().unwrap();
    file.rewind().unwrap();
    file.flush().unwrap();
    file
}

#[test]
fn the_kernel_grows_what_was_written() {
    if !may_resize() {
        println!("skipped: no CAP_SYS_RESOURCE, without which the kernel grows no file system");
        return;
    }
    let tools =
        "test -e /dev/loop-control && command -v losetup mount resize2fs e2fsck && grep -qw ext4 /proc/filesystems";
    if !shell(tools).status.success() {
        println!("skipped: no loop devices, no ext4 or no e2fsprogs");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (limits, hasher) = (Limits::for_build_size(1 << 30), Hasher::start(|| Ok(())).unwrap());
    let made = import(tar(), folder.path(), 1 << 30, None, limits, &hasher, &()).unwrap();
    assert_eq!(made.build_size, 128 << 20);
    let image = folder.path().join(ROOTFS_FILE);
    for mib in [128_u64, 256, 1024, 8192] {
        // In place of the snapshot: a file of the root disk's length, whose beginning is the
        // image's.
        let (disk, at) = (folder.path().join("disk"), folder.path().join("at"));
        let (bytes, disk_path, at_path) = (made.build_size, disk.display(), at.display());
        run(&format!("dd if={} of={disk_path} bs=1M count={} conv=sparse status=none", image.display(), bytes >> 20));
        File::options().write(true).open(&disk).unwrap().set_len(mib << 20).unwrap();
        let before = disk.metadata().unwrap().blocks() * 512;
        // In a mount namespace of its own; the loop goes with the mount. What is free is written
        // until nothing is.
        let script = format!(
            "set -e; mkdir -p {at_path}; mount --make-rprivate /; \
             loop=$(losetup --find --show {disk_path}); trap 'umount {at_path} 2>/dev/null || :; losetup -d $loop' EXIT; \
             mount -o noatime,noinit_itable $loop {at_path}; resize2fs $loop >/dev/null 2>&1; sync; \
             stat -f -c '%b %S' {at_path}; du -k {disk_path} | cut -f1; \
             free=$(stat -f -c '%a' {at_path}); \
             if [ $free -gt 16384 ]; then fallocate -l $(( (free - 8192) * 4096 )) {at_path}/held; fi; \
             dd if=/dev/zero of={at_path}/big bs=1M 2>&1 | grep -o 'No space left on device'; sync; \
             cksum < {at_path}/etc/kept"
        );
        let said = run(&format!("unshare --mount sh -c \"$(cat <<'END'\n{script}\nEND\n)\""));
        println!("{mib} MiB: {}", said.replace('\n', "; "));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.get(2), Some(&"No space left on device"), "{said}");
        let blocks: u64 = lines.first().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap();
        assert!(blocks * 4096 > (mib << 20) * 4 / 5 - (48 << 20), "{mib} MiB: only {blocks} blocks");
        let grown: u64 = lines.get(1).and_then(|line| line.parse().ok()).unwrap();
        let took = (grown * 1024).saturating_sub(before) >> 20;
        // Without `noinit_itable` it would be 2 MiB for each 128.
        assert!(took <= 12 + mib / 1024, "growing to {mib} MiB wrote {took} MiB");
        run(&format!("e2fsck -fn {disk_path}"));
        std::fs::remove_file(&disk).unwrap();
    }
}
