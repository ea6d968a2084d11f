//! Room on the host's disk that the database may need when there is none: a reserved file beside
//! it, given up piece by piece.
//!
//! Users may fill the host's disk to the last byte with what their guests write. SQLite cannot open
//! a write-ahead log then: it makes a file of 32 KiB beside it first (sqlite.org/wal.html). Without
//! a daemon nobody could delete what fills the disk.

use super::DbError;
use crate::error::is_full;
use crate::room;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How large it is, bytes.
const BYTES: u64 = 8 * PIECE;
/// What is given up at a time, bytes: what SQLite needs, and what guests write until it has that.
const PIECE: u64 = 1 << 20;

/// A file system with less than this has nothing left, bytes: some keep the last blocks to
/// themselves.
const NOTHING: u64 = 1 << 20;

fn of(database: &Path) -> PathBuf {
    database.with_file_name("ballast")
}

/// Does what needs room on the disk of the database; while there is none, again without one more
/// piece.
pub(super) fn with_room<T>(database: &Path, mut work: impl FnMut() -> Result<T, DbError>) -> Result<T, DbError> {
    loop {
        match work() {
            Err(error) if is_for_want_of_room(&error, database) && give_up_a_piece(&of(database)) => {}
            done => return done,
        }
    }
}

/// Of the file beside its log SQLite says no more than that it could not be made.
fn is_for_want_of_room(error: &DbError, database: &Path) -> bool {
    is_full(error) || has_nothing(database)
}

/// Whether the disk of the database is full.
pub(super) fn has_nothing(database: &Path) -> bool {
    room::free(database.parent().unwrap_or(database)).is_ok_and(|free| free < NOTHING)
}

/// Whether there was one.
fn give_up_a_piece(ballast: &Path) -> bool {
    let Ok(file) = File::options().write(true).open(ballast) else { return false };
    let Some(less) = file.metadata().ok().and_then(|now| now.len().checked_sub(PIECE)) else { return false };
    file.set_len(less).is_ok()
}

/// Makes it whole when the disk has room beside its reserve; when it has none, it stays as it is.
///
/// # Errors
/// The kernel's; on a file system that cannot reserve there is none.
pub(super) fn fill_up(database: &Path) -> io::Result<()> {
    let path = of(database);
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
    let missing = BYTES.saturating_sub(crate::util::allocated(&path));
    if missing == 0 || room::claim("the daemon's ballast", &[(&path, missing)]).is_err() {
        return Ok(());
    }
    match fallocate(&file, FallocateFlags::empty(), 0, BYTES) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::print_stdout,
        reason = "a test fails by panicking, and says why it is skipped"
    )]
    use super::super::{Db, open};
    use super::*;
    use banger_policy::access::Owner;
    use rusqlite::Connection;
    use std::process::Command;

    #[test]
    fn it_is_given_up_piece_by_piece_and_filled_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("banger.db");
        let full = || {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
            DbError::Migration { step: 1, source: rusqlite::Error::SqliteFailure(code, None) }
        };
        assert!(with_room::<()>(&database, || Err(full())).is_err(), "there is none yet");
        for _ in 0..2 {
            fill_up(&database).unwrap();
            assert_eq!(crate::util::allocated(&of(&database)), BYTES);
            let mut tries = 0;
            let third = with_room(&database, || {
                tries += 1;
                if tries < 3 { Err(full()) } else { Ok(tries) }
            });
            assert_eq!((third.unwrap(), of(&database).metadata().unwrap().len()), (3, BYTES - 2 * PIECE));
        }
        let mut tries = 0;
        let never = with_room::<()>(&database, || {
            tries += 1;
            Err(full())
        });
        assert!(never.is_err());
        assert_eq!((tries, of(&database).metadata().unwrap().len()), (7, 0), "each of six pieces, and once without");
    }

    /// Set in the process that has the file system of its own.
    const FOLDER: &str = "BANGER_TEST_SMALL_DISK";

    fn fill(folder: &Path, name: &str) {
        let mut file = File::create(folder.join(name)).unwrap();
        while io::Write::write(&mut file, &[7; 4096]).is_ok_and(|written| written > 0) {}
        assert!(room::free(folder).unwrap() < NOTHING);
    }

    /// The host's disk is a file system of its own, in a mount namespace of its own.
    #[test]
    fn a_full_disk_keeps_nobody_from_opening_the_database() {
        let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
            return in_a_small_disk("db::ballast::tests::a_full_disk_keeps_nobody_from_opening_the_database");
        };
        let database = folder.join("banger.db");
        drop(open(&database).unwrap());
        let ballast = File::create(of(&database)).unwrap();
        fallocate(&ballast, FallocateFlags::empty(), 0, BYTES).unwrap();
        drop(ballast);
        fill(&folder, "filler");
        // The file beside the log is gone with the last connection.
        assert!(!folder.join("banger.db-shm").exists());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let db = Db::open(&database).await.unwrap();
            let key = db.add_key(Owner { uid: 1, name: "alice".into() }, "ssh-ed25519 AAAA a".to_owned());
            key.await.unwrap();
        });
        let left = of(&database).metadata().unwrap().len();
        assert!(left == BYTES - PIECE, "one piece of it was enough: {left}");
        // Without any the error says what is wrong, and with what SQLite keeps after a crash the
        // database opens although nothing can be written to it.
        std::fs::remove_file(of(&database)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        fill(&folder, "more");
        let refused = open(&database).unwrap_err();
        assert!(matches!(refused, DbError::Full { .. }), "{refused:?}");
        assert!(refused.to_string().contains("disk is full") && refused.to_string().contains("df "), "{refused}");
    }

    /// Runs one test once more, with a small tmpfs that it may fill.
    fn in_a_small_disk(test: &str) {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs -o size=24M tmpfs {0} && exec \"$0\" --exact {test} --nocapture",
            dir.path().display()
        );
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-c", &script]).arg(std::env::current_exe().unwrap()).env(FOLDER, dir.path());
        let output = shell.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn starts_that_cannot_be_forgotten_end_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("banger.db");
        drop(open(&database).unwrap());
        let raw = Connection::open(&database).unwrap();
        raw.execute_batch(
            "PRAGMA foreign_keys = off;
             INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, starting, created_at, updated_at,
             last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled)
             VALUES ('aa', 1, 'alice', 'a', 'ii', 'i', 'kk', 'created', 0, 1, 1, 1, 1, 1, 1, 1, 1, 0);
             CREATE TRIGGER full BEFORE UPDATE OF starting ON vms BEGIN SELECT RAISE(ABORT, 'no room'); END",
        )
        .unwrap();
        drop(open(&database).unwrap());
        raw.execute_batch("DROP TRIGGER full").unwrap();
        let opened = open(&database).unwrap();
        assert!(!opened.query_row("SELECT starting FROM vms", [], |row| row.get::<_, bool>(0)).unwrap());
    }
}
