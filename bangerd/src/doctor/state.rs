//! What the daemon keeps: its database and the copies of it, room on the disk, kernels and images,
//! leaks.

use crate::db::DbError;
use crate::vm::Context;
use banger_proto::model::{ApiError, Check};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Below this no VM can be made with the default sizes, bytes.
const FREE_FLOOR: u64 = 16 << 30;
/// Files that can still be made, at least.
const FILES_FLOOR: u64 = 10_000;
/// The database is copied once a day.
const COPY_AGE: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// What a user can give back; an administrator sees everybody's.
const PRUNE: &str = "banger vm prune   # and: banger image list; for all users: banger vm list --all";

pub(super) async fn checks(ctx: &Context) -> Vec<Check> {
    let kernels = ctx.db.kernels(None).await;
    let kernels = kernels.map(|all| (all.iter().filter(|kernel| kernel.shared).count(), all.len()));
    let images = ctx.db.images(&ctx.paths, None).await;
    let images = images.map(|all| (all.iter().filter(|image| image.shared).count(), all.len()));
    vec![
        database(&kernels),
        copies(newest(&ctx.paths.backups()), SystemTime::now()),
        free_space(&ctx.paths.state),
        free_files(&ctx.paths.state),
        kernel(&kernels),
        image(&images),
        leaks(ctx).await,
    ]
}

/// Shared ones, and all.
type Counts = Result<(usize, usize), DbError>;

fn database(answered: &Counts) -> Check {
    match answered {
        Ok(_) => Check::pass("database", "answers"),
        Err(error) => Check::fail(
            "database",
            crate::error::chain(error),
            "sudo -u bangerd /usr/libexec/banger/bangerd --check   # says what is wrong with it, and what to do",
        ),
    }
}

/// When the newest copy was made.
fn newest(folder: &Path) -> Option<SystemTime> {
    let files = std::fs::read_dir(folder).ok()?.flatten();
    files.filter_map(|file| file.metadata().ok()?.modified().ok()).max()
}

fn copies(newest: Option<SystemTime>, now: SystemTime) -> Check {
    const NAME: &str = "database's copies";
    // A copy from the future: the clock was wrong, and says so elsewhere.
    let age = newest.map(|made| now.duration_since(made).unwrap_or_default());
    match age {
        Some(age) if age <= COPY_AGE => Check::pass(NAME, format!("the last is {} h old", age.as_secs() / 3600)),
        // The first one is made within a day.
        None => Check::pass(NAME, "none yet"),
        Some(age) => Check::warn(
            NAME,
            format!("the last is {} days old", age.as_secs() / (24 * 3600)),
            "sudo systemctl restart bangerd   # copies; sudo journalctl --unit bangerd --grep copy says why it does not",
        ),
    }
}

fn free_space(folder: &Path) -> Check {
    match crate::room::free(folder) {
        Ok(free) => space(free, folder),
        Err(error) => Check::warn(
            "disk space",
            format!("cannot look at {}: {error}", folder.display()),
            format!("df {}", folder.display()),
        ),
    }
}

fn space(free: u64, folder: &Path) -> Check {
    let found = format!("{} GiB free at {}", free >> 30, folder.display());
    if let Err(short) = banger_policy::room::check(0, free) {
        return Check::fail("disk space", format!("{found}: {short}"), PRUNE);
    }
    if free < FREE_FLOOR {
        let more = "a VM with the default sizes reserves 8 GiB at once and may use 8 GiB more";
        return Check::warn("disk space", format!("{found}; {more}"), PRUNE);
    }
    Check::pass("disk space", found)
}

fn free_files(folder: &Path) -> Check {
    match rustix::fs::statvfs(folder) {
        // A file system that counts none (btrfs) has no limit.
        Ok(stat) if stat.f_files > 0 && stat.f_favail < FILES_FLOOR => few_files(stat.f_favail, folder),
        Ok(_) => Check::pass("inodes", format!("enough at {}", folder.display())),
        Err(error) => {
            Check::warn("inodes", format!("cannot look: {error}"), format!("df --inodes {}", folder.display()))
        }
    }
}

fn few_files(left: u64, folder: &Path) -> Check {
    let found = format!("only {left} files can still be made at {}", folder.display());
    Check::fail("inodes", found, format!("sudo du --inodes --max-depth 2 {} | sort -n", folder.display()))
}

fn kernel(counts: &Counts) -> Check {
    const NAME: &str = "kernel of guests";
    let in_boot = format!("/boot/vmlinuz-{}", rustix::system::uname().release().to_string_lossy());
    let mend = import(Path::new(&in_boot).try_exists().unwrap_or(true));
    match counts {
        Ok((0, 0)) => Check::fail(NAME, "there is none: no VM can start", mend),
        Ok((0, _)) => Check::warn(NAME, "none is shared: each user needs one of their own", mend),
        Ok((shared, _)) => Check::pass(NAME, format!("{shared} shared with everybody")),
        Err(_) => Check::warn(NAME, "the database does not answer", "see the check of the database"),
    }
}

/// The host's own kernel. Where it is not in /boot, Fedora and its kin have it beside its modules,
/// which the daemon cannot see (ProtectKernelModules= of its unit).
fn import(in_boot: bool) -> String {
    let own = if in_boot { "/boot/vmlinuz-$(uname -r)" } else { "/lib/modules/$(uname -r)/vmlinuz" };
    format!("sudo banger kernel import --shared {own}")
}

fn image(counts: &Counts) -> Check {
    const NAME: &str = "image";
    match counts {
        // `vm run --image` pulls what is not there.
        Ok((0, 0)) => Check::pass(NAME, "none yet: banger image pull debian"),
        Ok((shared, all)) => Check::pass(NAME, format!("{all}, {shared} of them shared with everybody")),
        Err(_) => Check::warn(NAME, "the database does not answer", "see the check of the database"),
    }
}

async fn leaks(ctx: &Context) -> Check {
    match crate::vm::sweep::count(ctx).await {
        Ok(count) => left_behind(count),
        Err(error) => {
            let error = ApiError::from(error);
            Check::warn("leaks", format!("cannot look: {}", error.message), super::product::RESTART)
        }
    }
}

fn left_behind(count: usize) -> Check {
    if count == 0 {
        return Check::pass("leaks", "nothing is left behind");
    }
    Check::warn(
        "leaks",
        format!("{count} things belong to no VM"),
        "sudo banger doctor --leaks   # lists them, and says how to remove them",
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    #[test]
    fn a_database_that_does_not_answer() {
        let closed: Counts = Err(DbError::Closed);
        assert_eq!(database(&closed).status, Fail);
        assert_eq!((kernel(&closed).status, image(&closed).status), (Warn, Warn));
        assert_eq!(database(&Ok((0, 0))).status, Pass);
    }

    #[test]
    fn copies_that_are_no_longer_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(dir.path()).is_none() && newest(&dir.path().join("missing")).is_none());
        std::fs::write(dir.path().join("copy"), "").unwrap();
        let made = newest(dir.path()).unwrap();
        assert_eq!(copies(Some(made), made).status, Pass);
        assert_eq!(copies(Some(made), made - Duration::from_secs(9)).status, Pass, "a clock that went back");
        assert_eq!(copies(None, made).status, Pass);
        let check = copies(Some(made), made + 2 * COPY_AGE);
        assert!(check.status == Warn && check.detail.contains("4 days"), "{check:?}");
    }

    #[test]
    fn a_disk_that_gets_full() {
        let folder = Path::new("/var/lib/banger");
        assert_eq!(space(1 << 40, folder).status, Pass);
        assert_eq!(space(8 << 30, folder).status, Warn);
        let full = space(100 << 20, folder);
        assert!(full.status == Fail && full.detail.contains("reserve"), "{full:?}");
        assert_eq!(few_files(3, folder).status, Fail);
        assert_eq!(free_space(&std::env::temp_dir()).name, "disk space");
        assert_eq!(free_files(Path::new("/nowhere")).status, Warn);
    }

    #[test]
    fn nothing_to_boot() {
        assert_eq!(kernel(&Ok((0, 0))).status, Fail);
        assert_eq!((kernel(&Ok((0, 2))).status, kernel(&Ok((1, 2))).status), (Warn, Pass));
        assert_eq!(image(&Ok((0, 0))).status, Pass);
        assert!(import(false).ends_with(" /lib/modules/$(uname -r)/vmlinuz"));
        assert!(import(true).ends_with(" /boot/vmlinuz-$(uname -r)"));
    }

    #[test]
    fn what_is_left_behind() {
        assert_eq!(left_behind(0).status, Pass);
        let check = left_behind(3);
        assert!(check.status == Warn && check.mend.contains("--leaks"), "{check:?}");
    }
}
