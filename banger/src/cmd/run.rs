//! `vm run` and `vm create`: make a VM, watch it come up, use it, and leave nothing behind when asked to.

use crate::cli::{Mode, Run, Spec};
use crate::client::{Client, answer, soon};
use crate::cmd::exec::{self, How};
use crate::cmd::{lifecycle, pull, session, spec, sync, workspace};
use crate::error::{explained, say};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended, OnInterrupt};
use crate::output::{line, note, took};
use crate::progress::{Detail, Progress};
use crate::terminal;
use crate::workspace::Wanted;
use anyhow::Context as _;
use banger_policy::vm::RestartPolicy;
use banger_proto::model::{CreateRequest, VmRecord};
use banger_proto::session::New;
use std::time::Instant;

pub(super) async fn create(options: &Spec) -> anyhow::Result<u8> {
    let what = "cannot create a VM";
    let request = spec::request(options, true).context(what)?;
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    if let Some(status) = pull::missing(&client, &request, &mut interrupts).await.context(what)? {
        return Ok(status);
    }
    match make(&client, request, false, Detail::Live, interrupts).await.context(what)? {
        Made::Vm(vm) => {
            line(vm.name.as_str())?;
            Ok(0)
        }
        Made::Nothing(status) => Ok(status),
    }
}

pub(super) async fn run(options: Run) -> anyhow::Result<u8> {
    let what = "cannot run a VM";
    refuse_contradictions(&options).context(what)?;
    let request = spec::request(&options.spec, false).context(what)?;
    let mut settings = exec::check(options.with).context(what)?;
    let dry_run = options.repository.dry_run;
    let wanted = options.path.map(|path| workspace::wanted(path, options.repository));
    if let (true, Some(wanted)) = (dry_run, &wanted) {
        return workspace::show(wanted.clone()).await.context(what);
    }
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let began = Instant::now();
    if let Some(status) = pull::missing(&client, &request, &mut interrupts).await.context(what)? {
        return Ok(status);
    }
    let vm =
        match make(&client, request, options.keep_on_error, Detail::Steps, interrupts.clone()).await.context(what)? {
            Made::Vm(vm) => vm,
            Made::Nothing(status) => return Ok(status),
        };
    let filled = tokio::select! {
        filled = fill(&client, &vm, wanted) => filled,
        status = interrupts.next() => {
            return lifecycle::delete_at_end(&vm, interrupts).await.map(|()| status);
        }
    };
    match filled.context(what) {
        Ok(Some(folder)) => settings = settings.within(folder),
        Ok(None) => {}
        Err(error) if options.keep_on_error => return Err(error),
        Err(error) => {
            if let Err(delete) = lifecycle::delete_at_end(&vm, interrupts).await {
                say(&error);
                return Err(delete);
            }
            return Err(error);
        }
    }
    note(&format!("ready in {}", took(began.elapsed())));
    if options.entrypoint || (options.detach && !options.command.is_empty()) {
        let start = exec::start(options.command, settings, false);
        let app = New { name: Some(session::APP.to_owned()), start, stdin: false, entrypoint: options.entrypoint };
        let used = session::run_app(&client, &vm, app, options.detach, &mut interrupts).await;
        return if options.rm { delete_after(used, &vm, interrupts).await } else { used };
    }
    if options.detach {
        line(vm.name.as_str())?;
        return Ok(0);
    }
    let how = How { tty: terminal::interactive() && !options.no_stdin, stdin: !options.no_stdin, settings };
    let used = exec::command(&client, vm.id.to_string(), options.command, how, Some(&mut interrupts)).await;
    let used = used.with_context(|| format!("cannot run a command in {}", vm.name));
    if options.rm { delete_after(used, &vm, interrupts).await } else { used }
}

async fn delete_after(used: anyhow::Result<u8>, vm: &VmRecord, interrupts: Interrupts) -> anyhow::Result<u8> {
    match (used, lifecycle::delete_at_end(vm, interrupts).await) {
        (used, Ok(())) => used,
        (Err(used), Err(delete)) => {
            say(&used);
            Err(delete)
        }
        (Ok(_), Err(delete)) => Err(delete),
    }
}

/// Gives a new VM its user's files and repository; the folder of that.
async fn fill(client: &Client, vm: &VmRecord, wanted: Option<Wanted>) -> anyhow::Result<Option<String>> {
    sync::new_vm(client, vm.id).await?;
    let Some(wanted) = wanted else { return Ok(None) };
    let began = Instant::now();
    let workspace = workspace::into(client, vm, wanted).await.context("cannot prepare the workspace")?;
    let took = took(began.elapsed());
    note(&format!("  {:<22} {took:>10}  {}", "workspace", workspace.guest_path));
    Ok(Some(workspace.guest_path))
}

/// Before anything is made.
fn refuse_contradictions(options: &Run) -> anyhow::Result<()> {
    if options.detach && options.rm {
        return Err(explained("-d leaves the VM running and --rm removes it", "leave one of them out"));
    }
    let repository = &options.repository;
    let of_repository = [
        ("--branch", repository.branch.is_some()),
        ("--from", repository.from.is_some()),
        ("--include-untracked", repository.include_untracked),
        ("--dry-run", repository.dry_run),
        ("--mode", repository.mode != Mode::default()),
    ];
    if let (None, Some((flag, _))) = (&options.path, of_repository.iter().find(|(_, given)| *given)) {
        return Err(explained(
            format!("{flag} is about a repository, and none is named"),
            "name one: banger vm run PATH",
        ));
    }
    if options.rm && options.keep_on_error {
        return Err(explained("--keep-on-error keeps the VM and --rm removes it", "leave one of them out"));
    }
    if options.rm && options.spec.restart != RestartPolicy::No {
        return Err(explained("--restart brings the VM back and --rm removes it", "leave one of them out"));
    }
    Ok(())
}

enum Made {
    Vm(Box<VmRecord>),
    /// Interrupted, and undone; end with this status.
    Nothing(u8),
}

async fn make(
    client: &Client,
    request: CreateRequest,
    keep_on_error: bool,
    detail: Detail,
    mut interrupts: Interrupts,
) -> anyhow::Result<Made> {
    let job = answer(client.rpc.create_vm(soon(), request, keep_on_error)).await?;
    let mut progress = Progress::new(detail);
    let ended = job::follow(client, job, &mut progress, &mut interrupts, OnInterrupt::Cancel).await?;
    drop(progress);
    match ended {
        Ended::Done(result) => Ok(Made::Vm(Box::new(job::vm(result)?))),
        Ended::Interrupted(status, None) => Ok(Made::Nothing(status)),
        // It was ready before the interruption arrived; the user does not want it all the same.
        Ended::Interrupted(status, Some(result)) => {
            lifecycle::delete_at_end(&job::vm(result)?, interrupts).await?;
            Ok(Made::Nothing(status))
        }
    }
}
