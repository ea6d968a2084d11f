//! What owners have prepared in their VMs: a column of the VM's row, gone with it.

use super::{Db, DbError, Json, Text};
use banger_policy::VmId;
use banger_policy::access::Owner;
use banger_proto::model::Workspace;
use rusqlite::params;

impl Db {
    /// A VM that is gone, or is another owner's by now, keeps nothing.
    pub(crate) async fn set_workspace(
        &self,
        vm: VmId,
        owner: Owner,
        workspace: Option<Workspace>,
    ) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let text = workspace.as_ref().map(Json);
            // What is there already is not written again: a commit waits for the disk.
            sql.execute(
                "UPDATE vms SET workspace = ?2 WHERE id = ?1 AND owner = ?3 AND owner_name = ?4 AND workspace IS NOT ?2",
                params![Text(vm), text, owner.uid, owner.name],
            )?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::Digest;
    use banger_proto::model::WorkspaceMode;
    use banger_proto::time::Timestamp;

    fn workspace(vm: VmId) -> Workspace {
        Workspace {
            vm_id: vm,
            source_path: "/home/alice/tool".into(),
            repo_root: "/home/alice/tool".into(),
            repo_name: "tool".into(),
            guest_path: "/root/tool".into(),
            mode: WorkspaceMode::ShallowOverlay,
            head_commit: None,
            current_branch: Some("main".into()),
            branch_name: Some("main".into()),
            base_commit: None,
            base_tree: "b".repeat(40),
            include_untracked: true,
            prepared_at: Timestamp::from_unix(7),
        }
    }

    fn alice() -> Owner {
        Owner { uid: 1001, name: "alice".into() }
    }

    #[tokio::test]
    async fn a_vm_of_before_has_no_workspace_and_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let (vm, content) = (VmId::from_bytes([5; 32]).unwrap(), Digest::from_bytes([4; 32]).unwrap());
        let old = crate::db::tests::of_schema(&path, 3);
        old.execute_batch(&format!(
            "INSERT INTO images VALUES ('{content}', 1, 2, 0);
             INSERT INTO kernels VALUES ('{content}', '6.12', '[]', 1);
             INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at,
             updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes,
             nat_enabled) VALUES ('{vm}', 1001, 'alice', 'demo', '{content}', 'debian:13', '{content}', 'stopped', 0,
             1, 1, 1, 1, 128, 134217728, 33554432, 0);
             INSERT INTO leases (address_index, vm_id) VALUES (2, '{vm}');"
        ))
        .unwrap();
        drop(old);
        let db = Db::open(&path).await.unwrap();
        assert_eq!(db.vm(vm).await.unwrap().unwrap().workspace, None);
        db.set_workspace(vm, alice(), Some(workspace(vm))).await.unwrap();
        assert_eq!(db.vm(vm).await.unwrap().unwrap().workspace, Some(workspace(vm)));
        // It was given away since its owner was looked at: by number, or by name.
        for other in [Owner { uid: 1002, ..alice() }, Owner { name: "carol".into(), ..alice() }] {
            db.set_workspace(vm, other, None).await.unwrap();
            assert_eq!(db.vm(vm).await.unwrap().unwrap().workspace, Some(workspace(vm)));
        }
        let long = Workspace { repo_root: "/a".repeat(9000), ..workspace(vm) };
        db.set_workspace(vm, alice(), Some(long)).await.unwrap_err();
        db.set_workspace(vm, alice(), None).await.unwrap();
        assert_eq!(db.vm(vm).await.unwrap().unwrap().workspace, None);
        db.delete_vm(vm).await.unwrap();
        db.set_workspace(vm, alice(), Some(workspace(vm))).await.unwrap();
    }
}
