//! The eyes on a running guest: its own end is noticed, and its end is asked for.

use super::actor::Actor;
use super::machine::Running;
use super::order::Order;
use super::shared::Wait;
use crate::jobs::Job;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

impl Actor {
    /// Asks the guest, bounded; a `kill` that comes in meanwhile ends the wait.
    pub(super) async fn shut_down(&mut self, job: Option<&Job>) {
        self.stop_watching();
        let Some(running) = self.shared.running() else {
            if let Some(job) = job {
                job.warn("the guest could not be asked to shut down; its processes were ended".to_owned());
            }
            return;
        };
        let interrupt = CancellationToken::new();
        self.shared.set_waiting(Some((Wait::Shutdown, interrupt.clone())));
        let clean = tokio::select! {
            clean = running.shut_down(self.patience) => clean,
            () = interrupt.cancelled() => false,
        };
        self.shared.set_waiting(None);
        if !clean {
            let warning = "the guest did not shut down when asked; its processes were ended";
            match job {
                Some(job) => job.warn(warning.to_owned()),
                None => tracing::warn!("{warning}"),
            }
        }
    }

    /// From now on the guest's own end is noticed.
    pub(super) fn watch(&mut self, running: Arc<dyn Running>) {
        self.stop_watching();
        self.boot += 1;
        // However it was started: what is read from now on changes under the reader.
        self.ctx.readers.cut(&self.id());
        let (boot, ended, orders) = (self.boot, running.ended(), self.own_orders.clone());
        self.shared.set_running(Some(Arc::clone(&running)));
        self.ctx.fellows.changed();
        if let Some(executable) = running.executable() {
            let (ctx, shared, of) = (Arc::clone(&self.ctx), Arc::clone(&self.shared), running);
            let socket = ctx.paths.vm(&self.id()).api_socket();
            // By itself: a file that is new here has to be read first, and nobody waits for that.
            tokio::spawn(async move {
                match ctx.programs.running(&executable, &socket).await {
                    Ok(program) => shared.set_program(&of, program),
                    Err(error) => tracing::warn!("it is not known which Firecracker runs: {}", error.message),
                }
            });
        }
        let watching = tokio::spawn(async move {
            let reason = ended.await;
            if let Some(orders) = orders.upgrade() {
                // The queue is gone only together with the VM.
                drop(orders.send(Order::Ended { boot, reason }));
            }
        });
        self.monitor = Some(watching.abort_handle());
    }

    pub(super) fn stop_watching(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            monitor.abort();
        }
    }

    /// The guest is no longer to be reached.
    pub(super) fn leave(&mut self) {
        self.stop_watching();
        self.shared.set_running(None);
    }
}
