//! The file system that comes out, seen by e2fsprogs.

use super::super::work_disk::{self, WorkDisk};
use super::super::{ImportedRootfs, Limits, ROOTFS_FILE, SEED_FILE, import};
use super::maker::{Item, Tar, file_of, fsck, gzip, hasher, import_bytes, item, tool};
use banger_policy::limits::{MAX_DISK_BYTES, ROOT_STEP_BYTES};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

fn debugfs(image: &Path, command: &str) -> Option<String> {
    tool("debugfs", &["-R", command, image.to_str().unwrap()])
}

fn imported(tar: &[u8]) -> (tempfile::TempDir, ImportedRootfs) {
    let dir = tempfile::tempdir().unwrap();
    let result = import_bytes(tar, dir.path()).unwrap();
    (dir, result)
}

/// A root file system with one of everything.
fn zoo() -> Tar {
    let long = "n".repeat(200);
    let deep = format!("usr/{}/{}", "d".repeat(120), "f".repeat(90));
    Tar::default()
        .add(&Item { mode: 0o755, ..item(b'5', "./") })
        .add(&Item { mode: 0o41_777, ..item(b'5', "./tmp/") })
        .dir("bin")
        .add(&Item {
            data: b"ping",
            mode: 0o755,
            pax: vec![("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0")],
            ..item(b'0', "bin/ping")
        })
        .add(&Item { data: b"su", mode: 0o104_755, ..item(b'0', "bin/su") })
        .hardlink("bin/su2", "./bin/su")
        .symlink("sh", "/bin/dash")
        .add(&Item { mode: 0o600, device: (5, 1), ..item(b'3', "dev/console") })
        .add(&Item { mode: 0o660, device: (8, 300), owner: (0, 6), ..item(b'4', "dev/sda") })
        .add(&item(b'6', "run/fifo"))
        .file(r"etc/system-systemd\x2dcryptsetup.slice", b"unit")
        .file("etc/a \"quoted\" na'me", b"q")
        .gnu_long(b'L', long.as_bytes())
        .file("short", b"gnu")
        .gnu_long(b'K', "t".repeat(150).as_bytes())
        .symlink("longlink", "short")
        .add(&Item { data: b"pax", pax: vec![("path", deep.as_bytes())], ..item(b'0', "short") })
        .add(&Item {
            owner: (0, 0),
            pax: vec![("uid", b"2000000000"), ("gid", b"100000"), ("mtime", b"1234567890.5")],
            data: b"o",
            ..item(b'0', "owned")
        })
        .add(&Item { mode: 0o700, ..item(b'5', "root") })
        .file("root/.profile", b"export A=1\n")
        .symlink("root/link", "/etc/passwd")
        .hardlink("root/.profile2", "root/.profile")
}

#[test]
fn everything_arrives() {
    let (_dir, result) = imported(&zoo().end());
    let image = &result.rootfs_path;
    fsck(image);
    let has = |command: &str, words: &[&str]| {
        if let Some(text) = debugfs(image, command) {
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for word in words {
                assert!(flat.contains(word), "{command}: no {word:?} in {flat}");
            }
        }
    };
    has("stat /tmp", &["Type: directory", "Mode: 01777"]);
    has("stat /bin/su", &["Mode: 04755", "Links: 2", "Type: regular"]);
    has("stat /sh", &["Type: symlink", "Fast link dest: \"/bin/dash\""]);
    has("stat /dev/console", &["Type: character special", "Device major/minor number: 05:01", "Mode: 0600"]);
    has("stat /dev/sda", &["Type: block special", "08:300", "Group: 6"]);
    has("stat /run/fifo", &["Type: FIFO"]);
    has("stat /owned", &["User: 2000000000 Group: 100000", "mtime: 0x499602d2:77359400"]);
    has("ea_list /bin/ping", &["security.capability (20) = 01 00 00 02 00 0a"]);
    has("ls -p /etc", &[r"/system-systemd\x2dcryptsetup.slice/", "/a \"quoted\" na'me/"]);
    has("cat /etc/system-systemd\\x2dcryptsetup.slice", &["unit"]);
    has(&format!("cat /{}", "n".repeat(200)), &["gnu"]);
    has(&format!("cat /usr/{}/{}", "d".repeat(120), "f".repeat(90)), &["pax"]);
    has("stat /longlink", &["Size: 150"]);
}

/// Archives say modes with and without the bits of the type, and root's own folder may be missing.
#[test]
fn the_root_folder_is_a_folder_however_its_mode_is_written() {
    let roots = [Some(0o755), Some(0o40_755), None];
    for mode in roots {
        let tar = mode.map_or_else(Tar::default, |mode| Tar::default().add(&Item { mode, ..item(b'5', "./") }));
        let (_dir, result) = imported(&tar.file("etc/x", b"x").end());
        fsck(&result.rootfs_path);
        for folder in ["/", "/etc"] {
            if let Some(text) = debugfs(&result.rootfs_path, &format!("stat {folder}")) {
                let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(flat.contains("Type: directory Mode: 0755"), "{mode:?} {folder}: {flat}");
            }
        }
    }
}

#[test]
fn the_same_source_gives_the_same_image_however_it_is_packed() {
    let (dir, plain) = imported(&zoo().end());
    let (other, packed) = imported(&gzip(&zoo().end()));
    assert_eq!(plain.digest, packed.digest);
    // Behind the file system the file is one hole.
    let read = |dir: &tempfile::TempDir, name: &str| {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(dir.path().join(name)).unwrap();
        file.take(plain.build_size).read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert!(read(&dir, ROOTFS_FILE) == read(&other, ROOTFS_FILE), "same digest, other bytes");
    assert!(read(&dir, SEED_FILE) == read(&other, SEED_FILE));
    let (_dir, third) = imported(&zoo().file("more", b"").end());
    assert_ne!(plain.digest, third.digest);
}

#[test]
fn the_files_are_sparse_and_read_only() {
    let (dir, result) = imported(&zoo().end());
    let metadata = std::fs::metadata(&result.rootfs_path).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (MAX_DISK_BYTES, 0o440));
    assert_eq!(result.build_size, ROOT_STEP_BYTES, "as small as it can be");
    assert!(metadata.blocks() * 512 < 8 << 20, "{} bytes allocated", metadata.blocks() * 512);
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_work_disk_has_what_root_had() {
    let (dir, result) = imported(&zoo().end());
    let path = dir.path().join("work.ext4");
    let disk = WorkDisk { size: 64 << 20, seed: Some(std::fs::File::open(&result.seed_path).unwrap()), uuid: [7; 16] };
    work_disk::create(disk, &path, &()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    fsck(&path);
    let Some(root) = debugfs(&path, "stat /") else {
        return;
    };
    assert!(root.contains("Mode:  0700") && root.contains("User:     0"), "{root}");
    assert_eq!(debugfs(&path, "cat /.profile").unwrap(), "export A=1\n");
    assert_eq!(debugfs(&path, "cat /.profile2").unwrap(), "export A=1\n");
    assert!(debugfs(&path, "stat /link").unwrap().contains("/etc/passwd"));
    assert!(tool("dumpe2fs", &["-h", path.to_str().unwrap()]).unwrap().contains("volume name:   work"));
}

/// As the image has it, not as we would.
#[test]
fn the_mode_of_root_is_kept() {
    let tar = Tar::default().add(&Item { mode: 0o1771, owner: (5, 6), ..item(b'5', "root") }).end();
    let (dir, result) = imported(&tar);
    let path = dir.path().join("work.ext4");
    let disk = WorkDisk { size: 64 << 20, seed: Some(std::fs::File::open(&result.seed_path).unwrap()), uuid: [7; 16] };
    work_disk::create(disk, &path, &()).unwrap();
    if let Some(root) = debugfs(&path, "stat /") {
        let flat = root.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains("Mode: 01771") && flat.contains("User: 5 Group: 6"), "{flat}");
    }
}

#[test]
fn the_seed_carries_everything_that_root_can_hold() {
    let entry = |tag: u8, allowed: u8, id: [u8; 4]| [tag, 0, allowed, 0, id[0], id[1], id[2], id[3]];
    let any = [255; 4];
    let acl = [
        &[2, 0, 0, 0][..],
        &entry(1, 7, any),
        &entry(2, 5, [0xe8, 3, 0, 0]),
        &entry(4, 5, any),
        &entry(16, 5, any),
        &entry(32, 0, any),
    ];
    let acl = acl.concat();
    let long = format!("root/{}", "l".repeat(180));
    let tar = Tar::default()
        .add(&Item {
            data: b"x",
            pax: vec![
                ("path", long.as_bytes()),
                ("uid", b"3000000000"),
                ("mtime", b"-5.25"),
                ("SCHILY.xattr.user.note", b"a\nb=c"),
                ("SCHILY.xattr.system.posix_acl_access", &acl),
            ],
            ..item(b'0', "x")
        })
        .add(&Item { device: (1, 3), ..item(b'3', "root/null") })
        .add(&Item {
            data: b"abc",
            pax: vec![("GNU.sparse.size", b"1000000"), ("GNU.sparse.map", b"5,1,999998,2")],
            ..item(b'0', "root/sparse")
        })
        .add(&Item { data: b"latin", pax: vec![("path", b"root/caf\xe9")], ..item(b'0', "x") })
        .end();
    let (dir, result) = imported(&tar);
    let path = dir.path().join("work.ext4");
    let disk = WorkDisk { size: 64 << 20, seed: Some(std::fs::File::open(&result.seed_path).unwrap()), uuid: [7; 16] };
    work_disk::create(disk, &path, &()).unwrap();
    fsck(&path);
    if let Some(text) = debugfs(&path, "stat /sparse") {
        assert!(text.contains("Size: 1000000") && text.contains("Blockcount: 16"), "{text}");
        assert!(debugfs(&path, "cat /sparse").unwrap().ends_with("\0bc"));
        assert!(tool("debugfs", &["-R", "ls -p /", path.to_str().unwrap()]).unwrap().contains("caf"), "byte for byte");
    }
    let name = "l".repeat(180);
    for command in ["stat", "ea_list"] {
        let (a, b) = (format!("{command} /root/{name}"), format!("{command} /{name}"));
        let lines = |text: Option<String>| -> Vec<String> {
            let keep =
                |line: &&str| ["User:", "time:", "user.note", "posix_acl"].iter().any(|word| line.contains(word));
            text.unwrap_or_default().lines().filter(keep).map(|l| l.trim().to_owned()).collect()
        };
        assert_eq!(lines(debugfs(&result.rootfs_path, &a)), lines(debugfs(&path, &b)), "{command}");
    }
    if let Some(list) = debugfs(&path, &format!("ea_list /{name}")) {
        assert!(list.contains("user.note (5)") && list.contains("posix_acl_access"), "{list}");
    }
}

/// Found by fuzzing: the image was taken, and then no VM could be made of it.
#[test]
fn a_work_disk_has_its_own_lost_and_found() {
    let folder = Tar::default().dir("root/lost+found").file("root/lost+found/a", b"x");
    let file = Tar::default().file("root/lost+found", b"x").file("root/x/lost+found", b"x");
    for (tar, kept) in [(folder, "/lost+found/a"), (file, "/x/lost+found")] {
        let (dir, result) = imported(&tar.end());
        let path = dir.path().join("work.ext4");
        let seed = Some(std::fs::File::open(&result.seed_path).unwrap());
        work_disk::create(WorkDisk { size: 64 << 20, seed, uuid: [1; 16] }, &path, &()).unwrap();
        fsck(&path);
        if let Some(text) = debugfs(&path, &format!("cat {kept}")) {
            assert_eq!(text, "x", "{kept}");
        }
    }
}

#[test]
fn an_image_without_root_has_an_empty_work_disk() {
    let (dir, result) = imported(&Tar::default().symlink("root", "/nowhere").file("init", b"x").end());
    let path = dir.path().join("work.ext4");
    let disk = WorkDisk { size: 64 << 20, seed: Some(std::fs::File::open(&result.seed_path).unwrap()), uuid: [1; 16] };
    work_disk::create(disk, &path, &()).unwrap();
    fsck(&path);
    let empty = || WorkDisk { size: 64 << 20, seed: None, uuid: [1; 16] };
    let bare = dir.path().join("bare.ext4");
    work_disk::create(empty(), &bare, &()).unwrap();
    fsck(&bare);
    let error = work_disk::create(empty(), &path, &()).unwrap_err();
    assert!(error.to_string().contains("work.ext4"), "an existing disk is never overwritten");
}

/// Trees that are awkward for the estimate of their size: the writer never finds it too small,
/// e2fsck finds nothing, and there is room left.
#[test]
fn the_smallest_file_system_is_large_enough() {
    let large = vec![0x5a; 70 << 20];
    let long = "x".repeat(200);
    let many = |count: usize, name: &dyn Fn(usize) -> String, data: &[u8]| {
        (0..count).fold(Tar::default(), |tar, n| tar.file(&name(n), data))
    };
    let cases = [
        ("one large file", Tar::default().file("large", &large)),
        ("many small files", many(9_000, &|n| format!("f{n}"), b"x")),
        ("many folders", many(3_000, &|n| format!("d{n}/f"), b"")),
        ("long names in one folder", many(2_500, &|n| format!("{n}{}", &long[..80]), b"")),
        ("long links", (0..2_000).fold(Tar::default(), |tar, n| tar.symlink(&format!("l{n}"), &long[..90]))),
        ("next to nothing", Tar::default().file("x", b"x")),
    ];
    for (what, tar) in cases {
        let dir = tempfile::tempdir().unwrap();
        let result =
            import(file_of(&tar.end()), dir.path(), 1 << 30, None, Limits::for_build_size(1 << 30), &hasher(), &());
        let result = result.map_err(|error| format!("{what}: {error}")).unwrap();
        assert!(result.build_size <= 3 * ROOT_STEP_BYTES, "{what}: {}", result.build_size);
        fsck(&result.rootfs_path);
        let Some(text) = tool("dumpe2fs", &["-h", result.rootfs_path.to_str().unwrap()]) else { continue };
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        assert_eq!(field("Block count:") * 4096, result.build_size, "{what}");
        assert!(field("Free blocks:") >= 1024 && field("Free inodes:") >= 500, "{what}: {text}");
        assert_eq!(field("Inodes per group:"), 8192, "{what}");
    }
}

#[test]
fn an_image_that_holds_more_than_is_allowed_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::default().file("large", &vec![1; 120 << 20]).end();
    let limits = Limits::for_build_size(1 << 30);
    let why = import(file_of(&tar), dir.path(), 128 << 20, None, limits, &hasher(), &()).unwrap_err().to_string();
    assert!(why.contains("128M") && why.contains("larger size"), "{why}");
}

/// Eight MB of an archive may have gigabytes of them.
#[test]
fn zeros_in_root_become_holes_of_the_seed_and_are_the_same_bytes() {
    use std::os::unix::fs::MetadataExt as _;
    let mut data = vec![0; 3 << 20];
    data[1 << 20] = 7;
    let tar = Tar::default().add(&Item { data: &data, ..item(b'0', "root/zeros") }).end();
    let (_dir, result) = imported(&tar);
    let meta = std::fs::metadata(&result.seed_path).unwrap();
    assert!(meta.len() > 3 << 20 && meta.blocks() * 512 < 1 << 20, "{} in {} bytes", meta.blocks() * 512, meta.len());
    let mut archive = tar::Archive::new(std::fs::File::open(&result.seed_path).unwrap());
    let mut entry = archive.entries().unwrap().map(Result::unwrap).find(|entry| entry.size() > 1 << 20).unwrap();
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut read).unwrap();
    assert!(read == data);
}
