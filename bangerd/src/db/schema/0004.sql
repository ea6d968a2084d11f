-- The repository that the owner has prepared in the VM, as JSON; none in VMs of before.
ALTER TABLE vms ADD COLUMN workspace TEXT CHECK (workspace IS NULL OR length(workspace) <= 16384);
