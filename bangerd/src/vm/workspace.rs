//! What the owner has prepared in a VM: kept, checked, and shown with the VM. The daemon opens none
//! of the paths.

use super::Vms;
use super::error::VmError;
use banger_policy::Peer;
use banger_proto::model::Workspace;

impl Vms {
    /// Keeps it for a VM of the peer's own: where an administrator's files went is not the owner's
    /// matter.
    pub(crate) async fn set_workspace(
        &self,
        peer: &Peer,
        word: &str,
        workspace: Option<Workspace>,
    ) -> Result<(), VmError> {
        let row = self.find(peer, word).await?;
        if !peer.owns(&row.who()) {
            return Err(VmError::NotTheOwner);
        }
        let workspace = workspace.map(|workspace| Workspace { vm_id: row.id, ..workspace });
        if let Some(workspace) = &workspace {
            workspace.check().map_err(VmError::Workspace)?;
        }
        Ok(self.ctx.db.of(peer.uid).set_workspace(row.id, row.who(), workspace).await?)
    }
}
