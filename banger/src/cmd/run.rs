//! `vm run` and `vm create`: make a VM, watch it come up, use it, and leave nothing behind when
//! asked to.

use crate::cli::{Mode, Run, Spec};
use crate::client::{Client, answer, soon};
use crate::cmd::exec::{self, How, Settings};
use crate::cmd::session::App;
use crate::cmd::{lifecycle, pull, session, spec, sync, workspace};
use crate::error::{explained, say, told};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended};
use crate::output::{self, Event, line, ms, note, remark, tell, took};
use crate::progress::{Detail, Progress};
use crate::terminal;
use crate::workspace::Wanted;
use anyhow::Context as _;
use banger_policy::vm::RestartPolicy;
use banger_proto::model::{CreateRequest, VmRecord};
use banger_proto::session::New;
use std::ffi::OsString;
use std::time::Instant;

pub(super) async fn create(options: &Spec) -> anyhow::Result<u8> {
    let what = "cannot create a VM";
    let request = spec::request(options, true).context(what)?;
    let mut client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    if let Some(status) = pull::missing(&client, &request, false, &mut interrupts).await.context(what)? {
        return Ok(status);
    }
    match make(&mut client, request, false, Detail::Live, interrupts).await.context(what)? {
        Made::Vm(vm) => {
            line(vm.name.as_str())?;
            Ok(0)
        }
        Made::Nothing(status) => Ok(status),
    }
}

pub(super) async fn run(options: Run) -> anyhow::Result<u8> {
    let json = options.json;
    if json {
        output::begin_events();
    }
    told(json, make_and_use(options).await).await
}

async fn make_and_use(options: Run) -> anyhow::Result<u8> {
    let what = "cannot run a VM";
    refuse_contradictions(&options).context(what)?;
    let request = spec::request(&options.spec, false).context(what)?;
    let Run { rm, keep_on_error, detach, entrypoint, json, no_stdin, with, repository, path, command, .. } = options;
    let mut settings = exec::check(with).context(what)?;
    let dry_run = repository.dry_run;
    let wanted = path.map(|path| workspace::wanted(path, repository));
    if let (true, Some(wanted)) = (dry_run, &wanted) {
        return workspace::show(wanted.clone()).await.context(what);
    }
    let mut client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let began = Instant::now();
    if let Some(status) = pull::missing(&client, &request, json, &mut interrupts).await.context(what)? {
        return Ok(status);
    }
    let detail = if json { Detail::Json } else { Detail::Steps };
    let mut vm = match make(&mut client, request, keep_on_error, detail, interrupts.clone()).await.context(what)? {
        Made::Vm(vm) => vm,
        Made::Nothing(status) => return Ok(status),
    };
    let filled = tokio::select! {
        filled = fill(&client, &vm, wanted, json) => filled,
        status = interrupts.next() => {
            return delete_after(Ok(status), &vm, interrupts, json).await;
        }
    };
    match filled.context(what) {
        Ok(Some(folder)) => {
            settings = settings.within(folder);
            // With its workspace.
            if let Ok(now) = answer(client.rpc.show_vm(soon(), vm.id.to_string())).await {
                *vm = now;
            }
        }
        Ok(None) => {}
        Err(error) if keep_on_error => return kept(Err(error), &vm),
        Err(error) => return delete_after(Err(error), &vm, interrupts, json).await,
    }
    let again = session::again(options.spec.restart);
    let app = entrypoint || (detach && !command.is_empty());
    let purpose = Purpose { app: app.then_some(entrypoint), again, detach, json, stdin: !no_stdin, command, settings };
    match use_it(client, &vm, purpose, began, &mut interrupts).await {
        Used::InVain(outcome) if keep_on_error => kept(outcome, &vm),
        Used::InVain(outcome) => delete_after(outcome, &vm, interrupts, json).await,
        Used::Done(outcome) if rm => delete_after(outcome, &vm, interrupts, json).await,
        Used::Done(outcome) => outcome,
    }
}

/// Says that a VM of no use is there.
fn kept(outcome: anyhow::Result<u8>, vm: &VmRecord) -> anyhow::Result<u8> {
    remark(&format!("note: {} is kept; remove it: banger vm delete {}", vm.name, vm.name));
    outcome
}

/// How it went with a VM that is ready.
enum Used {
    /// The session that it was made for has not begun, so it is of no use.
    InVain(anyhow::Result<u8>),
    Done(anyhow::Result<u8>),
}

/// What a VM was made for: a command, a session, a shell, or nothing yet.
struct Purpose {
    /// The command is the session `app`; behind the image's Entrypoint, when that is true.
    app: Option<bool>,
    /// It is started again.
    again: bool,
    detach: bool,
    json: bool,
    stdin: bool,
    command: Vec<OsString>,
    settings: Settings,
}

async fn use_it(client: Client, vm: &VmRecord, purpose: Purpose, began: Instant, interrupts: &mut Interrupts) -> Used {
    let Purpose { app, again, detach, json, stdin, command, settings } = purpose;
    if json {
        let ended = if app.is_some() { Used::InVain } else { Used::Done };
        let ready = Event::Ready { vm, took_ms: ms(began.elapsed()) };
        tokio::select! {
            told = tell(&ready) => match told {
                Ok(()) => {}
                Err(error) => return ended(Err(error)),
            },
            status = interrupts.next() => return ended(Ok(status)),
        }
    } else {
        note(&format!("ready in {}", took(began.elapsed())));
    }
    if let Some(entrypoint) = app {
        let start = exec::start(command, settings, false);
        let app = New { name: Some(session::APP.to_owned()), start, stdin: false, entrypoint, again };
        return match session::begin_app(&client, vm, app, json, interrupts).await {
            Ok(App::Begun(session)) => {
                Used::Done(session::follow_app(client, vm, session, (detach, json), interrupts).await)
            }
            Ok(App::Not(status)) => Used::InVain(Ok(status)),
            Err(error) => Used::InVain(Err(error)),
        };
    }
    if detach {
        return Used::Done(if json { Ok(0) } else { line(vm.name.as_str()).map(|()| 0) });
    }
    let how = How { tty: terminal::interactive() && stdin && !json, stdin, json, settings };
    let used = exec::command(client, vm.id.to_string(), command, how, Some(interrupts)).await;
    Used::Done(used.with_context(|| format!("cannot run a command in {}", vm.name)))
}

async fn delete_after(
    used: anyhow::Result<u8>,
    vm: &VmRecord,
    interrupts: Interrupts,
    json: bool,
) -> anyhow::Result<u8> {
    match (used, lifecycle::delete_at_end(vm, interrupts).await) {
        (used, Ok(())) => {
            let deleted = Event::Deleted { vm: vm.name.as_str() };
            let told = if json { output::tell_at_end(&deleted).await } else { Ok(()) };
            used.and_then(|status| told.map(|()| status))
        }
        (Err(used), Err(delete)) => {
            say(&used);
            Err(delete)
        }
        (Ok(_), Err(delete)) => Err(delete),
    }
}

/// Gives a new VM its user's files and repository; the folder of that.
async fn fill(client: &Client, vm: &VmRecord, wanted: Option<Wanted>, json: bool) -> anyhow::Result<Option<String>> {
    sync::new_vm(client, vm).await?;
    let Some(wanted) = wanted else { return Ok(None) };
    let began = Instant::now();
    let workspace = workspace::into(client, vm, wanted).await.context("cannot prepare the workspace")?;
    let time = began.elapsed();
    if json {
        tell(&Event::Workspace { guest_path: &workspace.guest_path, took_ms: ms(time) }).await?;
    } else {
        note(&format!("  {:<22} {:>10}  {}", "workspace", took(time), workspace.guest_path));
    }
    Ok(Some(workspace.guest_path))
}

/// Before anything is made.
fn refuse_contradictions(options: &Run) -> anyhow::Result<()> {
    if options.json && options.command.is_empty() && !options.detach && !options.entrypoint {
        return Err(explained("--json is for programs, and a login shell is not", "name a COMMAND, or give -d"));
    }
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
    client: &mut Client,
    request: CreateRequest,
    keep_on_error: bool,
    detail: Detail,
    mut interrupts: Interrupts,
) -> anyhow::Result<Made> {
    let job = answer(client.rpc.create_vm(soon(), request, keep_on_error)).await?;
    let mut progress = Progress::new(detail);
    let ended = job::follow_or_cancel(client, job, &mut progress, &mut interrupts).await?;
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
