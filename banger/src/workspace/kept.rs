//! What this command line has prepared: which repository of the user's belongs to which VM.
//!
//! The daemon keeps the same record. Who speaks for it (another machine's, one that was taken over)
//! could name any repository there, and have it read, sent or written to. So no path and no name of
//! an object is taken from a daemon: what is not kept here, in a folder of the user's own, was not
//! prepared from here.

use crate::machine;
use crate::private::{self, Missing};
use anyhow::Context as _;
use banger_policy::VmId;
use banger_proto::model::Workspace;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Below the user's folder for data.
const OWN: &str = "banger/workspaces";
/// A record is below 17 KiB, bytes.
const MAX_FILE: u64 = 64 << 10;
/// Records of VMs that others have deleted stay; the oldest go.
const MOST: usize = 256;

/// A file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    machine: String,
    workspace: Workspace,
}

/// Keeps what was prepared, in the place of what was prepared in that VM before.
///
/// # Errors
/// Which folder cannot be used.
pub(crate) fn keep(workspace: &Workspace) -> anyhow::Result<()> {
    keep_below(&private::data_home()?, &machine::variable().1, workspace).context("cannot keep which repository it is")
}

/// What the daemon says of a VM's workspace, when it was prepared from here.
///
/// # Errors
/// Which folder or file cannot be used.
pub(crate) fn known(said: &Workspace) -> anyhow::Result<Option<Workspace>> {
    known_below(&private::data_home()?, &machine::variable().1, said)
}

/// Forgets that of a VM that is gone.
pub(crate) fn forget(vm: &VmId) {
    let folder = private::data_home().and_then(|data| private::open(&data, Path::new(OWN), geteuid(), Missing::Refuse));
    if let Ok(folder) = folder {
        let _ = private::remove(&folder, &vm.to_string());
    }
}

fn keep_below(data: &Path, machine: &str, workspace: &Workspace) -> anyhow::Result<()> {
    private::open(data, Path::new(OWN), geteuid(), Missing::Make)?;
    let folder = data.join(OWN);
    let kept = Kept { machine: machine.to_owned(), workspace: workspace.clone() };
    let mut aside = tempfile::NamedTempFile::new_in(&folder)?;
    serde_json::to_writer(&mut aside, &kept)?;
    aside.flush()?;
    aside.persist(folder.join(workspace.vm_id.to_string())).map_err(|error| error.error)?;
    tidy(&folder);
    Ok(())
}

fn known_below(data: &Path, machine: &str, said: &Workspace) -> anyhow::Result<Option<Workspace>> {
    let path = data.join(OWN).join(said.vm_id.to_string());
    if !path.exists() {
        return Ok(None);
    }
    let what = || format!("cannot read {}", path.display());
    private::open(data, Path::new(OWN), geteuid(), Missing::Refuse).with_context(what)?;
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => file.take(MAX_FILE).read_to_string(&mut text).with_context(what)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(what),
    };
    // A later version's, or one that a full disk has cut: as if it were not there.
    let Ok(kept) = serde_json::from_str::<Kept>(&text) else { return Ok(None) };
    let is_it = kept.machine == machine && kept.workspace == *said;
    Ok(is_it.then_some(kept.workspace))
}

/// At most [`MOST`] of them; whatever cannot be removed stays.
fn tidy(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let dated = |path: PathBuf| Some((fs::metadata(&path).ok()?.modified().ok()?, path));
    let mut all: Vec<_> = entries.flatten().filter_map(|entry| dated(entry.path())).collect();
    all.sort();
    let surplus = all.len().saturating_sub(MOST);
    for (_, path) in all.into_iter().take(surplus) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::WorkspaceMode;
    use banger_proto::time::Timestamp;

    fn workspace(number: u32) -> Workspace {
        let mut id = [7; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        Workspace {
            vm_id: VmId::from_bytes(id).unwrap(),
            source_path: "/home/alice/tool".into(),
            repo_root: "/home/alice/tool".into(),
            repo_name: "tool".into(),
            guest_path: "/root/tool".into(),
            mode: WorkspaceMode::ShallowOverlay,
            head_commit: Some("a".repeat(40)),
            current_branch: None,
            branch_name: Some("main".into()),
            base_commit: Some("a".repeat(40)),
            base_tree: "b".repeat(40),
            include_untracked: false,
            prepared_at: Timestamp::from_unix(1),
        }
    }

    /// Who speaks for the daemon cannot name another repository, object or machine.
    #[test]
    fn only_what_was_prepared_from_here_is_known() {
        let data = tempfile::tempdir().unwrap();
        let ours = workspace(1);
        assert_eq!(known_below(data.path(), "local", &ours).unwrap(), None);
        keep_below(data.path(), "local", &ours).unwrap();
        assert_eq!(known_below(data.path(), "local", &ours).unwrap().as_ref(), Some(&ours));
        for said in [
            workspace(2),
            Workspace { repo_root: "/home/alice/private".into(), ..ours.clone() },
            Workspace { source_path: "/home/alice/private".into(), ..ours.clone() },
            Workspace { base_tree: "c".repeat(40), ..ours.clone() },
            Workspace { include_untracked: true, ..ours.clone() },
        ] {
            assert_eq!(known_below(data.path(), "local", &said).unwrap(), None, "{said:?}");
        }
        assert_eq!(known_below(data.path(), "ssh://lab", &ours).unwrap(), None);
        fs::write(data.path().join(OWN).join(ours.vm_id.to_string()), "{").unwrap();
        assert_eq!(known_below(data.path(), "local", &ours).unwrap(), None);
    }

    #[test]
    fn the_oldest_go() {
        let data = tempfile::tempdir().unwrap();
        let most = u32::try_from(MOST).unwrap();
        (0..most + 3).for_each(|number| keep_below(data.path(), "local", &workspace(number)).unwrap());
        assert_eq!(fs::read_dir(data.path().join(OWN)).unwrap().count(), MOST);
        assert!(known_below(data.path(), "local", &workspace(most + 2)).unwrap().is_some());
    }
}
