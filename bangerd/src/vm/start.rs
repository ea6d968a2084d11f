//! The start of a VM, step by step. A step that fails ends it; what was acquired so far is in the
//! handle cache, and the actor's teardown undoes it in reverse: one code path, whatever the reason
//! for a teardown is.

use super::actor::Actor;
use super::effects::first_line;
use super::error::VmError;
use super::machine::{BootDevices, MachineError, Running, Seat};
use super::shared::Wait;
use super::steps::Step;
use crate::handles::Handles;
use crate::jobs::{Cancelled, Job};
use crate::privileged::PrivilegedError;
use crate::util::blocking;
use banger_link::control::NotReady;
use banger_policy::lifecycle::{Event, Then};
use banger_policy::network::VmNetwork;
use banger_proto::helper::{DiskIdentity, HelperError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 15;
/// How much of each; it is kept in the row and must fit a reply.
const CONSOLE_COLUMNS: usize = 160;
/// Within that the end of a machine has been noticed.
const END_SEEN: Duration = Duration::from_secs(1);

impl Actor {
    /// A start, or its undoing. What the table said of the wish for it is done already.
    pub(super) async fn start(&mut self, job: &Job) -> Result<Then, VmError> {
        self.owner_is_there().await?;
        self.renumber(job).await?;
        let config = self.ctx.config.now();
        let seat = Seat::new(&self.row, &self.ctx.paths, config.network)?;
        let (limits, host) = (job.limits_of(&self.row.who()), config.limits.host());
        let counted = self.db().begin_start(seat.id, limits, host).await;
        counted.map_err(|error| self.refused(error))?;
        self.shared.set_waiting(Some((Wait::Start, job.cancelled().clone())));
        // However it was ordered: the guest will write to what they read.
        self.ctx.readers.cut(&seat.id);
        let result = self.bring_up(&seat, job).await;
        self.shared.set_waiting(None);
        let result = match result {
            Ok(running) => {
                self.watch(running);
                self.apply(Event::Started, None, "").await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(then) => {
                self.open_ports(Some(job)).await;
                Ok(then)
            }
            // One that runs and cannot be recorded is undone like any other.
            Err(error) => {
                job.stage("undo");
                let why = error.message();
                // What the guest said on its console is its owner's, and the journal is not.
                tracing::warn!("start failed: {}", first_line(&why));
                let (event, reason) = match error {
                    VmError::Cancelled(_) => (Event::StartCancelled, self.row.last_error.clone()),
                    _ => (Event::StartFailed, why),
                };
                match self.apply(event, None, &reason).await {
                    Ok(_) => Err(error),
                    Err(more) => Err(error.also(more)),
                }
            }
        }
    }

    /// From nothing held to a guest that is ready.
    async fn bring_up(&mut self, seat: &Seat, job: &Job) -> Result<Arc<dyn Running>, VmError> {
        let ctx = Arc::clone(&self.ctx);
        let helper = ctx.privileged.of(seat.owner);
        let begin = |step: Step| {
            job.go_on()?;
            job.stage(step.name());
            Ok::<_, VmError>(())
        };
        let mut held = Handles::default();

        begin(Step::Preflight)?;
        ctx.machine.preflight(seat).await?;
        make_folders(vec![seat.paths.dir.clone(), seat.paths.runtime.clone()]).await?;

        begin(Step::RootDisk)?;
        // Made with the VM, and never again, like the work disk: a fresh one would look as if what
        // was installed in it were lost.
        let disk = self.attach(seat).await.map_err(|error| match error.refusal() {
            Some(HelperError::NotYours) => VmError::RootDiskGone(seat.id),
            _ => error.at("the root disk").into(),
        })?;
        held.hold_disk(&disk);
        ctx.handles.seed(seat.id, held.clone());
        if let Ok(Some(cow)) = helper.identity(seat.id).await.map(|held| held.cow) {
            self.align_root_size(cow.root_bytes).await?;
        }

        begin(Step::WorkDisk)?;
        // Made with the VM, and never again: an empty disk in its place would look as if the user's
        // files were lost.
        work_disk_is_there(seat).await?;

        begin(Step::Tap)?;
        let tap =
            helper.acquire_tap(seat.id, seat.owner, seat.index.get()).await.map_err(|error| error.at("the tap"))?;
        held.hold_tap(&tap, seat.address);
        ctx.handles.seed(seat.id, held.clone());

        if self.row.network != VmNetwork::default() {
            begin(Step::Network)?;
            self.learn_names().await;
            self.align_network().await?;
        }

        begin(Step::Launch)?;
        let keys = ctx.db.keys(self.row.who()).await?;
        // Before anything of it runs.
        super::shares::take(&ctx, seat.owner).await?;
        let devices = BootDevices { root: disk.dm_dev.clone(), tap: tap.tap_device.clone() };
        let running = ctx.machine.launch(seat, &devices, keys).await?;
        held.pid = Some(running.pid());
        ctx.handles.seed(seat.id, held.clone());

        begin(Step::Api)?;
        if let Err(error) = running.boot(seat, &devices).await {
            return Err(self.ended_early(seat, &running, error.into()).await);
        }

        begin(Step::Bind)?;
        if let Err(error) = helper.bind_process(seat.id, running.pid()).await {
            return Err(self.ended_early(seat, &running, error.at("the VM's process").into()).await);
        }

        begin(Step::Handles)?;
        self.row.mirror = held.mirror();
        ctx.handles.record(seat.owner, seat.id, &seat.paths, &held).await?;

        begin(Step::GuestReady)?;
        tokio::select! {
            // Dropping the wait drops nothing else: the VMM belongs to the actor, and its teardown
            // ends it.
            () = job.cancelled().cancelled() => return Err(Cancelled.into()),
            ready = running.ready(ctx.config.now().guest_ready_timeout) => ready.map_err(|source| self.with_console(seat, source))?,
        }
        Ok(running)
    }

    /// The helper's record of the disk has the owner of the time when it was made. One that the VM
    /// was given to since comes into it here.
    async fn attach(&self, seat: &Seat) -> Result<DiskIdentity, PrivilegedError> {
        let helper = self.ctx.privileged.of(seat.owner);
        match helper.attach_disk(seat.id, seat.owner).await {
            Err(error) if error.refusal() == Some(HelperError::NotYours) => {
                helper.give_disk(seat.id, seat.owner).await?;
                helper.attach_disk(seat.id, seat.owner).await
            }
            attached => attached,
        }
    }

    /// Of a machine that has ended meanwhile: how, instead of what could not be done with it.
    async fn ended_early(&self, seat: &Seat, running: &Arc<dyn Running>, error: VmError) -> VmError {
        match tokio::time::timeout(END_SEEN, running.ended()).await {
            Ok(reason) => self.with_console(seat, NotReady::Ended(reason).into()),
            Err(_) => error,
        }
    }

    /// An error of a guest shows what the guest said last.
    fn with_console(&self, seat: &Seat, source: MachineError) -> VmError {
        let short = |line: String| line.chars().take(CONSOLE_COLUMNS).collect::<String>();
        let console = self.ctx.machine.console_tail(seat, CONSOLE_LINES).into_iter().map(short).collect();
        VmError::Guest { source, console }
    }
}

async fn work_disk_is_there(seat: &Seat) -> Result<(), VmError> {
    let (path, bytes) = (seat.paths.work_disk(), seat.spec.work_disk_size_bytes);
    blocking(move || {
        if let Ok(meta) = path.metadata()
            && meta.is_file()
        {
            // `vm set` has made it larger since; the guest grows its file system.
            let grow = || std::fs::File::options().write(true).open(&path)?.set_len(bytes);
            let grown = if bytes > meta.len() { grow() } else { Ok(()) };
            return grown.map_err(VmError::GrowWorkDisk);
        }
        Err(VmError::WorkDiskGone(path))
    })
    .await
}

/// Makes folders that only the daemon enters. There already is success.
pub(super) async fn make_folders(paths: Vec<PathBuf>) -> Result<(), VmError> {
    blocking(move || {
        for path in paths {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| VmError::MakeFolder { path, source })?;
            crate::fail::point("folder", "made");
        }
        Ok(())
    })
    .await
}
