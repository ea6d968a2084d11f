//! What the daemon asks of the helper, as typed calls over one small trait: the real connection and
//! the simulator of the tests differ in one function.
//!
//! The helper's "busy" and "too many requests" are asked again here, bounded, so that nobody else
//! has to know.

mod client;
#[cfg(test)]
pub(crate) mod sim;

use crate::turns::Places;
use banger_policy::reach::Reach;
use banger_policy::{Digest, VmId};
use banger_proto::helper::{
    CowRecord, DiskIdentity, HelperError, HelperRequest, HelperResponse, Holding, HoldingPage, ProcessState,
    TapIdentity,
};
use futures::future::BoxFuture;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a busy object is waited for: udev looks at new block devices for up to a few seconds,
/// and a VMM's memory takes a while to go.
const BUSY_LIMIT: Duration = Duration::from_secs(15);
/// The first pause between two attempts; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Requests of one user that wait in the helper's queue.
const IN_FLIGHT: usize = 2;

/// Why the helper did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegedError {
    /// It refused.
    #[error("banger-priv refused to {operation}: {refusal}")]
    Refused { operation: &'static str, refusal: HelperError },
    /// It is not there.
    #[error("banger-priv does not answer at {}", .socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    /// It speaks another version of the protocol: one of the two was replaced and the other not
    /// restarted.
    #[error("banger-priv and bangerd are of different releases")]
    OtherRelease { source: io::Error },
    /// It did not answer in time.
    #[error("banger-priv did not answer in time when asked to {operation}")]
    TimedOut { operation: &'static str },
    /// It answered something else, or more than fits.
    #[error("banger-priv sent an answer that bangerd does not understand")]
    Confused,
}

impl PrivilegedError {
    /// The helper's own word, when it was reached.
    pub(crate) fn refusal(&self) -> Option<HelperError> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// With what was to be had of it.
    pub(crate) fn at(self, what: &'static str) -> Unhelped {
        Unhelped { what, source: self }
    }
}

/// What was to be had of the helper, and why it was not.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Unhelped {
    what: &'static str,
    pub(crate) source: PrivilegedError,
}

impl Unhelped {
    /// In one line.
    pub(crate) fn message(&self) -> String {
        let what = self.what;
        match self.source.refusal() {
            Some(HelperError::NoSpace) => format!("{what}: no space left on the host's disk beside its reserve"),
            Some(HelperError::Kernel(nix::libc::EROFS)) => format!("{what}: the host's disk is read-only"),
            _ => crate::error::chain(self),
        }
    }
}

/// One exchange with a helper.
pub(crate) trait Link: Send + Sync + fmt::Debug {
    /// Asks, and asks again over a new connection when one broke, for a few seconds. `request`
    /// makes the request as often as it is sent.
    fn exchange<'a>(
        &'a self,
        request: &'a (dyn Fn() -> HelperRequest + Send + Sync),
        operation: &'static str,
    ) -> BoxFuture<'a, Result<HelperResponse, PrivilegedError>>;
}

/// The helper, as the daemon sees it.
#[derive(Clone, Debug)]
pub(crate) struct Privileged {
    link: Arc<dyn Link>,
    places: Arc<Places>,
    /// Of the user on whose behalf it is asked.
    own: Option<Arc<Semaphore>>,
}

/// One typed call per operation: the request's variant goes out, and only its own reply's variant
/// is an answer. `point` marks what changes something, see [`crate::fail`].
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident $variant:ident $words:literal ($($arg:ident: $type:ty),*) -> $reply:ty $(, $after:ident)?;)*) => {$(
        $(#[$doc])*
        pub(crate) async fn $name(&self, $($arg: $type),*) -> Result<$reply, PrivilegedError> {
            let began = Instant::now();
            let mut pause = FIRST_PAUSE;
            let request = || HelperRequest::$variant { $($arg: $arg.clone()),* };
            loop {
                let place = self.place().await;
                let HelperResponse::$variant(reply) = self.link.exchange(&request, $words).await? else {
                    return Err(PrivilegedError::Confused);
                };
                drop(place);
                match reply {
                    Ok(value) => {
                        $(crate::fail::$after("helper", stringify!($name));)?
                        return Ok(value);
                    }
                    Err(refusal) if passes(refusal) && began.elapsed() < BUSY_LIMIT => tokio::time::sleep(pause).await,
                    Err(refusal) => return Err(PrivilegedError::Refused { operation: $words, refusal }),
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    )*};
}

/// Will it be otherwise in a moment? A process that was killed is gone only when the kernel has
/// freed it.
fn passes(refusal: HelperError) -> bool {
    matches!(refusal, HelperError::Busy | HelperError::Rate | HelperError::StillRunning)
}

impl Privileged {
    /// The helper behind a socket. Connects at the first call, and again whenever the connection is
    /// lost.
    pub(crate) fn connect_to(socket: &Path) -> Self {
        Self::over(Arc::new(client::Client::new(socket)))
    }

    pub(crate) fn over(link: Arc<dyn Link>) -> Self {
        Self { link, places: Arc::new(Places::new(IN_FLIGHT)), own: None }
    }

    /// The same on behalf of a user. The helper does one thing after the other: so each user has a
    /// few requests in its queue at the most, and waits for a few of each of the others'.
    pub(crate) fn of(&self, owner: u32) -> Self {
        Self { own: Some(self.places.of(owner)), ..self.clone() }
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        Arc::clone(self.own.as_ref()?).acquire_owned().await.ok()
    }

    operations! {
        acquire_tap AcquireTap "make the tap" (vm: VmId, owner: u32, address_index: u16) -> TapIdentity, point;
        release_tap ReleaseTap "remove the tap" (vm: VmId, tap: TapIdentity) -> (), point;
        create_disk CreateDisk "reserve the disk" (vm: VmId, owner: u32, image: Digest, root_bytes: u64) -> CowRecord, point;
        grow_disk GrowDisk "make the root disk larger" (vm: VmId, owner: u32, root_bytes: u64) -> CowRecord, point;
        attach_disk AttachDisk "attach the disk" (vm: VmId, owner: u32) -> DiskIdentity, point;
        give_disk GiveDisk "give the disk away" (vm: VmId, owner: u32) -> (), point;
        detach_disk DetachDisk "detach the disk" (vm: VmId, disk: DiskIdentity) -> (), point;
        discard_disk DiscardDisk "discard the disk" (vm: VmId) -> (), point;
        set_network SetNetwork "set the network" (vm: VmId, reach: Reach) -> (), point;
        bind_process BindProcess "bind the process" (vm: VmId, pid: u32) -> (), point;
        process_running ProcessRunning "look at the process" (vm: VmId, pid: u32) -> ProcessState;
        list List "list what it holds" (after: Option<VmId>) -> HoldingPage;
        release Release "release the VM" (vm: VmId) -> (), point;
        identity Identity "say what it holds" (vm: VmId) -> Holding;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn one_users_requests_do_not_fill_the_queue_in_front_of_anothers() {
        let helper = sim::SimHelper::default();
        let all = Privileged::over(Arc::new(helper.clone()));
        let vm = VmId::from_bytes([7; 32]).unwrap();
        helper.set_busy(true);
        let ask = |owner| {
            let asked = all.of(owner);
            tokio::spawn(async move { asked.identity(vm).await })
        };
        let his: Vec<_> = (0..20).map(|_| ask(1)).collect();
        let hers = ask(2);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(all.places.of(1).available_permits(), 0);
        assert_eq!(all.places.of(2).available_permits(), IN_FLIGHT - 1);
        assert_eq!(helper.asked(), IN_FLIGHT + 1, "what the helper has before it");
        helper.set_busy(false);
        assert!(hers.await.unwrap().is_err_and(|error| error.refusal() == Some(HelperError::NotYours)));
        for one in his {
            assert!(one.await.unwrap().is_err());
        }
        assert!(all.place().now_or_never().is_some(), "nobody's: the sweep and the doctor wait for nobody");
    }
}
