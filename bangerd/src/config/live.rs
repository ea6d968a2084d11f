//! The configuration that counts now. All parts of the daemon share one [`Live`]; [`super::reload`]
//! swaps what is in it.
//!
//! Who needs a value asks for it when it is needed and keeps no copy. A loop whose pace is
//! configured waits for [`Live::changes`] as well.

use super::Config;
use crate::start_error::StartError;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// A handle to the shared value; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<watch::Sender<Read>>);

/// A configuration, and of which file it is.
#[derive(Clone, Debug)]
struct Read {
    config: Arc<Config>,
    file: FileState,
    /// Keys of that file that count after a restart.
    waiting: Vec<&'static str>,
}

/// What tells a file from the one that it was. Its time of modification is not enough: `mv`, and
/// `cp --preserve`, bring files with times of long ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum FileState {
    #[default]
    Absent,
    There {
        device: u64,
        inode: u64,
        /// Seconds and nanoseconds of the last change of content or attributes (inode(7)).
        changed: (i64, i64),
    },
}

impl FileState {
    /// To be asked before the file is read: a change meanwhile is seen then.
    pub(crate) fn of(path: &Path) -> Self {
        path.metadata().map_or(Self::Absent, |meta| Self::There {
            device: meta.dev(),
            inode: meta.ino(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// Keys whose new values count from now on.
    pub(crate) applied: Vec<&'static str>,
    /// Keys whose new values count after a restart of the services.
    pub(crate) restart: Vec<&'static str>,
}

impl Live {
    /// `file`: the one that was read.
    pub(crate) fn of(config: Config, file: FileState) -> Self {
        Self(Arc::new(watch::Sender::new(Read { config: Arc::new(config), file, waiting: Vec::new() })))
    }

    /// One that is of no file.
    #[cfg(test)]
    pub(crate) fn new(config: Config) -> Self {
        Self::of(config, FileState::Absent)
    }

    /// As it is at this moment. Values that must fit each other come from one call.
    pub(crate) fn now(&self) -> Arc<Config> {
        Arc::clone(&self.0.borrow().config)
    }

    /// The file as it was when it was last read and taken.
    pub(crate) fn read_of(&self) -> FileState {
        self.0.borrow().file.clone()
    }

    /// The keys whose values in that file count after a restart of the services.
    pub(crate) fn waiting(&self) -> Vec<&'static str> {
        self.0.borrow().waiting.clone()
    }

    /// Says when another configuration has come. Ask for it before the first look at the values.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// Takes over `new`, except for the keys of the network. The helper reads those too, and the
    /// addresses of VMs that run follow from them.
    pub(crate) fn take(&self, new: Config, file: FileState) -> Reloaded {
        let old = self.now();
        let done = compare(&old, &new);
        let config = Config {
            bridge_name: old.bridge_name.clone(),
            network: old.network,
            dns: old.dns.clone(),
            publish: old.publish.clone(),
            ..new
        };
        self.0.send_replace(Read { config: Arc::new(config), file, waiting: done.restart.clone() });
        done
    }
}

/// Waits for reloads.
#[derive(Debug)]
pub(crate) struct Changes(watch::Receiver<Read>);

impl Changes {
    /// Returns after the next reload. It never does when the daemon's last handle is gone.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Every key that differs. The pattern names all fields, so that a new one cannot be forgotten
/// here.
fn compare(old: &Config, new: &Config) -> Reloaded {
    let Config {
        log_level,
        firecracker_bin,
        auto_stop_stale_after,
        stats_poll_interval,
        guest_ready_timeout,
        bridge_name,
        network,
        default_dns,
        default_image_name,
        file_sync,
        vm_defaults,
        limits,
        dns,
        publish,
    } = new;
    let now = [
        ("log_level", *log_level != old.log_level),
        ("firecracker_bin", *firecracker_bin != old.firecracker_bin),
        ("auto_stop_stale_after", *auto_stop_stale_after != old.auto_stop_stale_after),
        ("stats_poll_interval", *stats_poll_interval != old.stats_poll_interval),
        ("guest_ready_timeout", *guest_ready_timeout != old.guest_ready_timeout),
        ("default_dns", *default_dns != old.default_dns),
        ("default_image_name", *default_image_name != old.default_image_name),
        ("file_sync", *file_sync != old.file_sync),
        ("vm_defaults", *vm_defaults != old.vm_defaults),
        ("limits", *limits != old.limits),
    ];
    let later = [
        ("bridge_name", *bridge_name != old.bridge_name),
        ("bridge_ip or cidr", *network != old.network),
        ("dns", *dns != old.dns),
        ("publish", *publish != old.publish),
    ];
    let differing =
        |keys: &[(&'static str, bool)]| keys.iter().filter(|(_, other)| *other).map(|(key, _)| *key).collect();
    Reloaded { applied: differing(&now), restart: differing(&later) }
}

/// Reads the file anew and takes it over. `log` is told the level before anything else changes, so
/// that a wrong one is a refusal like any other.
///
/// # Errors
/// Why the file was refused. Then nothing has changed.
pub(crate) fn reload(
    live: &Live,
    file: FileState,
    read: impl FnOnce() -> Result<Config, StartError>,
    log: impl FnOnce(&str) -> Result<(), StartError>,
) -> Result<Reloaded, StartError> {
    let new = read()?;
    log(&new.log_level)?;
    Ok(live.take(new, file))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::path::Path;

    fn parsed(text: &str) -> Result<Config, StartError> {
        super::super::parse(text, Path::new("/etc/banger/banger.toml"))
    }

    #[test]
    fn what_can_be_applied_counts_at_once_and_the_network_waits_for_a_restart() {
        let live = Live::new(parsed("").unwrap());
        let before = live.now();
        let text = "log_level = \"debug\"\nstats_poll_interval = \"3s\"\nbridge_name = \"br-x\"\ncidr = 22\n\
                    [limits.user]\nvms = 5\n";
        let mut level = String::new();
        let done = reload(
            &live,
            FileState::Absent,
            || parsed(text),
            |new| {
                new.clone_into(&mut level);
                Ok(())
            },
        );
        let done = done.unwrap();
        assert_eq!(done.applied, ["log_level", "stats_poll_interval", "limits"]);
        assert_eq!(done.restart, ["bridge_name", "bridge_ip or cidr"]);
        assert_eq!(level, "debug");
        let now = live.now();
        assert_eq!((now.limits.of(1, "bob", &[]).vms, now.stats_poll_interval.as_secs()), (5, 3));
        assert_eq!((&now.bridge_name, now.network), (&before.bridge_name, before.network));
        // The same file once more: the keys that wait are still named.
        let again = live.take(parsed(text).unwrap(), FileState::Absent);
        assert_eq!((again.applied.is_empty(), again.restart), (true, done.restart));
        assert_eq!(live.waiting(), ["bridge_name", "bridge_ip or cidr"]);
        live.take(parsed("").unwrap(), FileState::Absent);
        assert!(live.waiting().is_empty(), "it was taken back");
    }

    #[test]
    fn a_wrong_file_changes_nothing_and_says_why() {
        let live = Live::new(parsed("").unwrap());
        let (before, of) = (live.now(), live.read_of());
        let other = FileState::There { device: 1, inode: 2, changed: (3, 4) };
        let refused = reload(&live, other.clone(), || parsed("[limits.user]\nvms = \"many\""), |_| Ok(())).unwrap_err();
        assert!(refused.to_string().contains("line 2"), "{refused}");
        let level = |level: &str| Err(StartError::LogLevel(level.to_owned()));
        let refused = reload(&live, other, || parsed("log_level = \"loud=\""), level).unwrap_err();
        assert!(refused.to_string().contains("loud"), "{refused}");
        assert_eq!((live.now(), live.read_of()), (before, of));
    }

    #[tokio::test]
    async fn who_waits_for_a_change_hears_of_it() {
        let live = Live::new(parsed("").unwrap());
        let mut changes = live.changes();
        live.take(parsed("stats_poll_interval = \"7s\"").unwrap(), FileState::Absent);
        changes.next().await;
        assert_eq!(live.now().stats_poll_interval.as_secs(), 7);
    }
}
