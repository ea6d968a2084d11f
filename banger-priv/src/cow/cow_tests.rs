#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use crate::record;
use banger_policy::Digest;
use rustix::fs::OFlags;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn vm() -> VmId {
    VmId::from_bytes([3; 32]).unwrap()
}

fn cow(bytes: u64) -> Cow {
    Cow {
        vm: vm(),
        owner: 1,
        image: Digest::from_bytes([4; 32]).unwrap(),
        base_bytes: MIB,
        root_bytes: bytes,
        file_bytes: bytes,
        growing_to: None,
        generation: 2,
        ready: false,
    }
}

fn cows(path: &Path) -> Cows {
    Cows::open(record::folder(path, OFlags::RDONLY).unwrap()).unwrap()
}

/// Makes a whole file, as an operation does.
fn make(cows: &mut Cows) -> Cow {
    let folder = cows.folder();
    let file = folder.begin(&cow(MIB)).unwrap();
    assert_eq!(folder.reserve_piece(file.as_fd(), 0, MIB), Ok(MIB));
    cows.keep(folder.finish(file.as_fd(), cow(MIB)).unwrap());
    kept(cows)
}

fn kept(cows: &Cows) -> Cow {
    cows.get(&vm()).unwrap().cow.clone()
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

#[test]
fn a_finished_file_survives_a_restart_and_an_attempt_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = cows(folder.path());
    drop(first.folder().begin(&cow(MIB)).unwrap());
    first = cows(folder.path());
    assert!(first.get(&vm()).is_none());
    assert_eq!(entries(folder.path()), 0, "the attempt is undone whole");
    make(&mut first);
    let second = cows(folder.path());
    assert_eq!(kept(&second), Cow { ready: true, ..cow(MIB) });
    assert!(second.get(&vm()).unwrap().allocated_bytes >= MIB);
    drop(second.folder().file(&kept(&second)).unwrap());
    assert_eq!(second.folder().erase_piece(&kept(&second)), Ok(false));
    assert_eq!(second.folder().erase_piece(&kept(&second)), Ok(false), "gone already is success");
    assert_eq!(entries(folder.path()), 0);
}

/// A helper that dies between any two pieces of a create leaves what its next start removes.
#[test]
fn a_create_that_was_cut_short_after_any_piece_is_undone_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let whole = 3 * PIECE / 2;
    for pieces in 0..=2 {
        let files = cows(folder.path()).folder();
        let file = files.begin(&cow(whole)).unwrap();
        let mut reserved = 0;
        for _ in 0..pieces {
            reserved = files.reserve_piece(file.as_fd(), reserved, whole).unwrap();
        }
        assert_eq!(reserved, (pieces * PIECE).min(whole));
        assert_eq!(fs::metadata(folder.path().join(vm().to_string())).unwrap().len(), reserved);
        assert!(cows(folder.path()).get(&vm()).is_none(), "{pieces}");
        assert_eq!(entries(folder.path()), 0, "{pieces}");
    }
}

/// A large file goes piece by piece; a helper that dies in between goes on at its next start.
#[test]
fn an_attempt_that_cannot_be_erased_does_not_end_the_helper() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(vm().to_string());
    drop(cows(folder.path()).folder().begin(&cow(MIB)).unwrap());
    // In the place of an inode that the disk does not let go of.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let mut again = cows(folder.path());
    assert!(again.attempt(&vm()).is_some() && again.get(&vm()).is_none(), "known as what it is");
    fs::remove_dir(&path).unwrap();
    assert_eq!(again.folder().erase_piece(&cow(MIB)), Ok(false), "tried again, it goes");
    again.erased(&vm());
    assert_eq!(entries(folder.path()), 0);
}

#[test]
fn a_large_file_is_freed_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(vm().to_string());
    for restart in [false, true] {
        let files = cows(folder.path()).folder();
        let file = files.begin(&cow(MIB)).unwrap();
        // Sparse, so that the test takes no room.
        file_of(&path).set_len(5 << 29).unwrap();
        let kept = files.finish(file.as_fd(), cow(MIB)).unwrap().cow;
        for left in [3_u64 << 29, 1 << 29] {
            assert_eq!(files.erase_piece(&kept), Ok(true));
            assert_eq!(fs::metadata(&path).unwrap().len(), left);
        }
        if restart {
            drop(cows(folder.path()));
        } else {
            assert_eq!(files.erase_piece(&kept), Ok(false));
        }
        assert_eq!(entries(folder.path()), 0);
    }
}

fn file_of(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

#[test]
fn another_attempt_is_not_erased_in_an_older_ones_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut cows = cows(folder.path());
    let kept = make(&mut cows);
    let older = Cow { generation: kept.generation + 1, ..kept.clone() };
    assert_eq!(cows.folder().erase_piece(&older).unwrap_err().errno, libc::ESTALE);
    drop(cows.folder().file(&kept).unwrap());
}

#[test]
fn a_growth_that_was_interrupted_is_undone_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(vm().to_string());
    let before = make(&mut cows(folder.path()));
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    // Before, in the middle of, and after the reservation.
    for end in [MIB, MIB + 4096, 2 * MIB] {
        let files = cows(folder.path()).folder();
        let (growing, file) = files.begin_growth(before.clone(), 2 * MIB).unwrap();
        assert_eq!(growing, Cow { growing_to: Some(2 * MIB), ..before.clone() });
        if end > MIB {
            files.reserve_piece(file.as_fd(), MIB, end).unwrap();
        }
        let again = cows(folder.path());
        assert_eq!(kept(&again), before, "{end}");
        drop(again.folder().file(&before).unwrap());
        assert!(fs::read(&path).unwrap() == vec![7; 1 << 20], "what was written is kept");
    }
    // Finished, it stays.
    let files = cows(folder.path()).folder();
    let (growing, file) = files.begin_growth(before, 2 * MIB).unwrap();
    files.reserve_piece(file.as_fd(), MIB, 2 * MIB).unwrap();
    files.finish(file.as_fd(), Cow { root_bytes: 2 * MIB, file_bytes: 2 * MIB, ..growing }).unwrap();
    let again = cows(folder.path());
    let grown = kept(&again);
    assert_eq!((grown.root_bytes, grown.growing_to, grown.ready), (2 * MIB, None, true));
    drop(again.folder().file(&grown).unwrap());
    assert_eq!(fs::read(&path).unwrap().get(..1 << 20), Some(&[7; 1 << 20][..]));
}

#[test]
fn a_file_that_was_cut_while_it_grew_is_not_filled_up_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let before = make(&mut cows(folder.path()));
    drop(cows(folder.path()).folder().begin_growth(before, 2 * MIB).unwrap());
    let path = folder.path().join(vm().to_string());
    file_of(&path).set_len(4096).unwrap();
    let again = cows(folder.path());
    assert_eq!(kept(&again).growing_to, Some(2 * MIB), "it is not taken for settled");
    assert_eq!(again.folder().shrink_back(kept(&again)).unwrap_err().errno, libc::ESTALE);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn a_file_without_a_record_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(vm().to_string());
    fs::write(&path, b"somebody's").unwrap();
    let files = cows(folder.path()).folder();
    assert_eq!(files.begin(&cow(MIB)).unwrap_err().errno, libc::EEXIST);
    assert_eq!(files.erase_piece(&cow(MIB)), Ok(false));
    assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    assert_eq!(entries(folder.path()), 1, "and no record is made for it");
}

#[test]
fn a_file_that_was_exchanged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut cows = cows(folder.path());
    let record = make(&mut cows);
    let path = folder.path().join(vm().to_string());
    let refuse = |why: &str| assert!(cows.folder().file(&record).is_err(), "{why}");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    refuse("readable by others");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&path, folder.path().join("second")).unwrap();
    refuse("a second name");
    fs::remove_file(folder.path().join("second")).unwrap();
    drop(cows.folder().file(&record).unwrap());
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

/// In the place of one that lies on a bad sector.
#[test]
fn a_record_that_cannot_be_read_keeps_no_other_vm_from_being_served() {
    let folder = tempfile::tempdir().unwrap();
    let good = make(&mut cows(folder.path()));
    let other = VmId::from_bytes([5; 32]).unwrap();
    fs::create_dir(folder.path().join(format!("{other}.json"))).unwrap();
    let cows = cows(folder.path());
    assert!(cows.is_damaged(&other) && cows.get(&other).is_none());
    assert_eq!((kept(&cows), cows.is_damaged(&vm())), (good, false));
}

/// What is being made counts, so that many creates at once do not get past the limit together.
#[test]
fn attempts_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut cows = cows(folder.path());
    cows.attempted(cow(MIB));
    assert_eq!((cows.count(), cows.attempt(&vm()).is_some()), (1, true));
    make(&mut cows);
    assert_eq!((cows.count(), cows.attempt(&vm()).is_some()), (1, false));
    cows.attempted(cow(MIB));
    assert_eq!((cows.count(), cows.get(&vm()).is_none()), (1, true));
    cows.erased(&vm());
    assert_eq!(cows.count(), 0);
}
