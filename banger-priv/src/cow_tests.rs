#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn vm() -> VmId {
    VmId::from_bytes([3; 32]).unwrap()
}

fn image() -> Digest {
    Digest::from_bytes([4; 32]).unwrap()
}

fn cow(bytes: u64) -> Cow {
    Cow {
        vm: vm(),
        owner: 1,
        image: image(),
        base_bytes: 1 << 20,
        cow_bytes: bytes,
        file_bytes: bytes,
        generation: 2,
        ready: false,
    }
}

fn cows(path: &Path) -> Cows {
    Cows::open(record::folder(path).unwrap()).unwrap()
}

fn make(cows: &mut Cows) {
    let file = cows.begin(&cow(1 << 20)).unwrap();
    reserve(file.as_fd(), 0, 1 << 20).unwrap();
    cows.finish(file.as_fd(), &cow(1 << 20)).unwrap();
}

#[test]
fn a_finished_file_survives_a_restart_and_an_attempt_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = cows(folder.path());
    drop(first.begin(&cow(1 << 20)).unwrap());
    first = cows(folder.path());
    assert!(first.get(&vm()).is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the attempt is undone whole");
    make(&mut first);
    let second = cows(folder.path());
    assert_eq!(second.get(&vm()), Some(&Cow { ready: true, ..cow(1 << 20) }));
    assert!(second.allocated(&vm()) >= 1 << 20);
    drop(second.file(second.get(&vm()).unwrap()).unwrap());
    let mut second = second;
    second.remove(vm()).unwrap();
    second.remove(vm()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_without_a_record_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(vm().to_string());
    fs::write(&path, b"somebody's").unwrap();
    let cows = cows(folder.path());
    assert_eq!(cows.begin(&cow(1 << 20)).unwrap_err().errno, libc::EEXIST);
    assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    assert!(!folder.path().join(format!("{}.json", vm())).exists(), "and no record is made for it");
}

#[test]
fn a_file_that_was_exchanged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut cows = cows(folder.path());
    make(&mut cows);
    let record = cows.get(&vm()).unwrap().clone();
    let path = folder.path().join(vm().to_string());
    let refuse = |why: &str| assert!(cows.file(&record).is_err(), "{why}");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    refuse("readable by others");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&path, folder.path().join("second")).unwrap();
    refuse("a second name");
    fs::remove_file(folder.path().join("second")).unwrap();
    drop(cows.file(&record).unwrap());
    fs::write(&path, b"short").unwrap();
    refuse("another size");
    fs::remove_file(&path).unwrap();
    refuse("gone");
}

#[test]
fn a_damaged_record_quarantines_its_vm_alone() {
    let folder = tempfile::tempdir().unwrap();
    make(&mut cows(folder.path()));
    let path = folder.path().join(format!("{}.json", vm()));
    let bytes = fs::read(&path).unwrap();
    for cut in 0..bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let cows = cows(folder.path());
        assert!(cows.is_damaged(&vm()) && cows.get(&vm()).is_none(), "cut at {cut}");
        assert!(folder.path().join(vm().to_string()).exists());
    }
}

/// Everything that must not become a loop device.
#[test]
fn only_a_plain_read_only_file_of_the_daemon_is_a_base() {
    let images = tempfile::tempdir().unwrap();
    let me = rustix::process::geteuid().as_raw();
    let directory = images.path().join(image().to_string());
    let path = directory.join("rootfs.ext4");
    let attempt = |uid| Images::open(images.path().to_owned(), uid).base(&image());
    assert_eq!(attempt(me).unwrap_err().errno, libc::ENOENT);
    fs::create_dir(&directory).unwrap();
    let good = |bytes: usize| {
        drop(fs::remove_file(&path));
        fs::write(&path, vec![0; bytes]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
    };
    good(8192);
    assert_eq!(attempt(me).unwrap().1, 8192);
    assert_eq!(attempt(me + 1).unwrap_err().step, "base-refused", "another owner");
    for size in [0, 4095, 4097] {
        good(size);
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "{size} bytes");
    }
    good(4096);
    fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
    assert_eq!(attempt(me).unwrap_err().step, "base-refused", "writable");
    good(4096);
    fs::hard_link(&path, directory.join("second")).unwrap();
    assert_eq!(attempt(me).unwrap_err().step, "base-refused", "two names");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("second", &path).unwrap();
    assert_eq!(attempt(me).unwrap_err().errno, libc::ELOOP, "a symbolic link");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(attempt(me).unwrap_err().step, "base-refused", "a fifo");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(attempt(me).unwrap_err().step, "base-refused", "a folder");
    fs::remove_dir(&path).unwrap();
    fs::remove_file(directory.join("second")).unwrap();
    fs::remove_dir(&directory).unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("rootfs.ext4"), vec![0; 4096]).unwrap();
    std::os::unix::fs::symlink(outside.path(), &directory).unwrap();
    assert_eq!(attempt(me).unwrap_err().errno, libc::ELOOP, "a folder that is a link");
}
