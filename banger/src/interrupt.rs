//! Ctrl-C and its relatives while there is something to roll back.
//!
//! Only commands that start work listen; all others keep the signals' default, which is to end.

use crate::signals;
use banger_proto::signal::status;
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::watch;

/// How often we were interrupted, and by what the last time.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    count: u32,
    /// 128 + the signal's number.
    status: u8,
}

/// One follower's view of the interruptions; clones count for themselves.
#[derive(Clone, Debug)]
pub(crate) struct Interrupts {
    seen: watch::Receiver<Seen>,
    handled: u32,
}

impl Interrupts {
    /// Listens from now on; from now on the signals no longer end the process. One that is ignored
    /// is no interruption.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let mut signals = [
            signals::listen(SignalKind::interrupt())?,
            signals::listen(SignalKind::quit())?,
            signals::listen(SignalKind::terminate())?,
            signals::listen(SignalKind::hangup())?,
        ];
        let (tell, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            loop {
                let status = next(&mut signals).await;
                tell.send_modify(|seen| *seen = Seen { count: seen.count.saturating_add(1), status });
            }
        });
        Ok(Self { seen, handled: 0 })
    }

    /// Waits for the next interruption and gives the status to end with.
    pub(crate) async fn next(&mut self) -> u8 {
        let handled = self.handled;
        match self.seen.wait_for(|seen| seen.count > handled).await.map(|seen| *seen) {
            Ok(seen) => {
                self.handled = seen.count;
                seen.status
            }
            // The listener lives as long as the runtime.
            Err(_) => std::future::pending().await,
        }
    }

    /// The status to end with, if somebody interrupted already.
    pub(crate) fn came(&self) -> Option<u8> {
        let seen = *self.seen.borrow();
        (seen.count > self.handled).then_some(seen.status)
    }

    /// Forgets what came in so far.
    pub(crate) fn forget(&mut self) {
        self.handled = self.seen.borrow().count;
    }
}

async fn next([int, quit, term, hup]: &mut [Option<Signal>; 4]) -> u8 {
    tokio::select! {
        () = signals::next(int) => status(2),
        () = signals::next(quit) => status(3),
        () = signals::next(term) => status(15),
        () = signals::next(hup) => status(1),
    }
}
