//! `vm workspace prepare` and `vm workspace export`, and what `vm run PATH` and `vm exec` do with
//! workspaces.

use crate::cli::{ExportWorkspace, Mode, PrepareWorkspace, Repository};
use crate::client::{Client, answer, soon};
use crate::error::explained;
use crate::interrupt::Interrupts;
use crate::machine;
use crate::output::{self, line, note, remark};
use crate::progress::{Detail, Progress};
use crate::remote::Guest;
use crate::work;
use crate::workspace::{self, DEFAULT_MOST, Export, Place, Wanted, What, short};
use anyhow::Context as _;
use banger_policy::ByteSize;
use banger_policy::lifecycle::State;
use banger_proto::model::{VmRecord, Workspace, WorkspaceMode};
use nix::unistd::getuid;
use std::path::PathBuf;

impl From<Mode> for WorkspaceMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::ShallowOverlay => Self::ShallowOverlay,
            Mode::FullCopy => Self::FullCopy,
            Mode::MetadataOnly => Self::MetadataOnly,
        }
    }
}

/// What is asked for, of a repository.
pub(super) fn wanted(path: PathBuf, options: Repository) -> Wanted {
    Wanted {
        path,
        guest_path: None,
        mode: options.mode.into(),
        branch: options.branch,
        from: options.from,
        include_untracked: options.include_untracked,
        force: false,
    }
}

pub(super) async fn prepare(options: PrepareWorkspace) -> anyhow::Result<u8> {
    let what = format!("cannot prepare a workspace in {}", options.vm);
    let path = options.path.unwrap_or_else(|| PathBuf::from("."));
    let dry_run = options.repository.dry_run;
    let wanted = Wanted { guest_path: options.guest_path, force: options.force, ..wanted(path, options.repository) };
    if dry_run {
        return show(wanted).await.context(what);
    }
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let vm = running(&client, &options.vm).await.with_context(|| what.clone())?;
    let preparing = into(&client, &vm, wanted);
    let workspace = tokio::select! {
        done = preparing => done.context(what)?,
        status = interrupts.next() => return Ok(status),
    };
    if options.json {
        output::json(&workspace)?;
    } else {
        line(&format!("prepared {} in {}:{}", workspace.repo_root, vm.name, workspace.guest_path))?;
    }
    Ok(0)
}

/// What would be sent.
///
/// # Errors
/// What git says, and what cannot be sent.
pub(super) async fn show(wanted: Wanted) -> anyhow::Result<u8> {
    let mut interrupts = Interrupts::listen()?;
    let ready = tokio::select! {
        done = work::begin(move || workspace::ready(&wanted)) => done??,
        status = interrupts.next() => return Ok(status),
    };
    ready.notes.iter().for_each(|text| note(&format!("note: {text}")));
    line(&ready.summary())?;
    Ok(0)
}

/// Prepares, and has the daemon remember it.
///
/// # Errors
/// Why not; then the guest is as it was.
pub(super) async fn into(client: &Client, vm: &VmRecord, wanted: Wanted) -> anyhow::Result<Workspace> {
    if !is_own(client, vm).await? {
        let hint = format!("copy the files: banger vm cp {} {}:FOLDER", wanted.path.display(), vm.name);
        return Err(explained("only its owner prepares a workspace in a VM", hint));
    }
    // Which repository that is, no daemon says.
    let known = vm.workspace.as_ref().map(workspace::kept::known).transpose()?.flatten();
    let place = Place { vm: vm.id, name: vm.name.to_string(), known };
    let progress = Progress::new(Detail::Live);
    let guest = Guest::Vm { client, vm: vm.id.to_string(), user: None, reads: false };
    let record = async |workspace: &Workspace| {
        workspace::kept::keep(workspace)?;
        answer(client.rpc.set_workspace(soon(), vm.id.to_string(), Some(workspace.clone()))).await
    };
    workspace::prepare(&guest, &place, wanted, &progress, record).await
}

/// Whether a VM is the caller's own. The daemon of another machine has other numbers for users.
///
/// # Errors
/// When the daemon does not answer.
pub(super) async fn is_own(client: &Client, vm: &VmRecord) -> anyhow::Result<bool> {
    if machine::chosen().is_none() && vm.owner == getuid().as_raw() {
        return Ok(true);
    }
    let ours = answer(client.rpc.quotas(soon(), false, None)).await?.quotas;
    Ok(ours.iter().any(|quota| (quota.owner, &quota.owner_name) == (vm.owner, &vm.owner_name)))
}

async fn running(client: &Client, vm: &str) -> anyhow::Result<VmRecord> {
    let vm = answer(client.rpc.show_vm(soon(), vm.to_owned())).await?;
    if vm.state == State::Running {
        return Ok(vm);
    }
    Err(explained(format!("{} is {}", vm.name, vm.state), format!("start it: banger vm start {}", vm.name)))
}

pub(super) async fn export(options: ExportWorkspace) -> anyhow::Result<u8> {
    let what = format!("cannot export the workspace of {}", options.vm);
    let most = match &options.max_size {
        None => DEFAULT_MOST,
        Some(text) => text.parse::<ByteSize>().map(|size| size.bytes()).with_context(|| what.clone())?,
    };
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let vm = running(&client, &options.vm).await.with_context(|| what.clone())?;
    let Some(said) = &vm.workspace else {
        let hint = format!("prepare one: banger vm workspace prepare {} PATH", vm.name);
        return Err(explained("it has none", hint)).context(what);
    };
    let known = workspace::kept::known(said).with_context(|| what.clone())?;
    let known = known.ok_or_else(|| not_from_here(&vm, said)).with_context(|| what.clone())?;
    let asked = match options.branch {
        Some(name) => What::Branch { name, force: options.force },
        None if options.diff => What::Stat,
        None => What::Patch(options.output),
    };
    let guest = Guest::Vm { client: &client, vm: vm.id.to_string(), user: None, reads: false };
    let exporting = workspace::export(&guest, &known, Export { what: asked, from: options.from, most });
    let notes = tokio::select! {
        done = exporting => done.context(what)?,
        status = interrupts.next() => return Ok(status),
    };
    notes.iter().for_each(|text| note(&format!("note: {text}")));
    Ok(0)
}

/// Where a command of `vm exec` starts: in the workspace, when there is one. Says when the host's
/// HEAD has moved, or follows it.
///
/// # Errors
/// When it shall follow, and cannot.
pub(super) async fn enter(client: &Client, vm: &str, follow: bool) -> anyhow::Result<Option<String>> {
    let vm = answer(client.rpc.show_vm(soon(), vm.to_owned())).await?;
    let Some(said) = &vm.workspace else { return Ok(None) };
    let Some(known) = workspace::kept::known(said)? else {
        return if follow { Err(not_from_here(&vm, said)) } else { Ok(Some(said.guest_path.clone())) };
    };
    let asked = known.clone();
    if let Some(now) = work::begin(move || workspace::moved(&asked)).await? {
        let before = known.head_commit.as_deref().map_or("no commit", short);
        let moved = format!("HEAD of {} has moved from {before} to {}", known.repo_root, short(&now));
        match again(&known) {
            None => remark(&format!(
                "note: {moved}; the workspace stays at {}, from which it was prepared (--from)",
                known.base_commit.as_deref().map_or("no commit", short)
            )),
            Some(wanted) if follow => match into(client, &vm, wanted).await {
                Ok(_) => remark(&format!("prepared {} again: {moved}", known.guest_path)),
                Err(_) if is_followed(client, &known).await => {}
                Err(error) => return Err(error).context("cannot prepare the workspace again"),
            },
            Some(_) => {
                remark(&format!("note: {moved} since the workspace was prepared; follow it with: --auto-prepare"))
            }
        }
    }
    Ok(Some(known.guest_path))
}

/// Whether another command has followed HEAD meanwhile: two that begin at once both see it move.
async fn is_followed(client: &Client, before: &Workspace) -> bool {
    let Ok(vm) = answer(client.rpc.show_vm(soon(), before.vm_id.to_string())).await else { return false };
    match vm.workspace.as_ref().map(workspace::kept::known) {
        Some(Ok(Some(now))) if now != *before => {
            matches!(work::begin(move || workspace::moved(&now)).await, Ok(None))
        }
        _ => false,
    }
}

/// What prepares a workspace again, of the host's HEAD of now. `None` when it was prepared from
/// another commit than HEAD was then: that one does not move.
fn again(known: &Workspace) -> Option<Wanted> {
    let branch = known.branch_name.as_ref().filter(|_| known.branch_name != known.current_branch);
    (known.base_commit == known.head_commit).then(|| Wanted {
        path: known.source_path.clone().into(),
        guest_path: Some(known.guest_path.clone()),
        mode: known.mode,
        branch: branch.cloned(),
        from: None,
        include_untracked: known.include_untracked,
        force: false,
    })
}

/// Nobody but the user says which repository of theirs a VM has.
fn not_from_here(vm: &VmRecord, said: &Workspace) -> anyhow::Error {
    let hint = format!(
        "prepare it from here: banger vm workspace prepare {} PATH; or copy the files: banger vm cp {}:{} FOLDER",
        vm.name, vm.name, said.guest_path
    );
    explained(format!("the workspace was prepared by another user, machine or home, of {}", said.repo_root), hint)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::time::Timestamp;

    #[test]
    fn a_workspace_is_prepared_again_as_it_was_asked_for() {
        let known = Workspace {
            vm_id: banger_policy::VmId::from_bytes([1; 32]).unwrap(),
            source_path: "/home/alice/tool/src".into(),
            repo_root: "/home/alice/tool".into(),
            repo_name: "tool".into(),
            guest_path: "/root/tool".into(),
            mode: WorkspaceMode::FullCopy,
            head_commit: Some("a".repeat(40)),
            current_branch: Some("main".into()),
            branch_name: Some("main".into()),
            base_commit: Some("a".repeat(40)),
            base_tree: "b".repeat(40),
            include_untracked: true,
            prepared_at: Timestamp::from_unix(1),
        };
        let wanted = again(&known).unwrap();
        assert_eq!((wanted.path, wanted.guest_path.as_deref()), ("/home/alice/tool/src".into(), Some("/root/tool")));
        assert!(wanted.include_untracked && !wanted.force && wanted.mode == WorkspaceMode::FullCopy);
        assert_eq!(wanted.branch, None, "the host's own, whichever it is now");
        for current in [Some("main".to_owned()), None] {
            let known = Workspace { branch_name: Some("fix".into()), current_branch: current, ..known.clone() };
            assert_eq!(again(&known).unwrap().branch.as_deref(), Some("fix"));
        }
        assert!(again(&Workspace { base_commit: Some("c".repeat(40)), ..known.clone() }).is_none());
        assert!(again(&Workspace { base_commit: None, head_commit: None, ..known }).is_some());
    }
}
