-- How far the guest reaches, as JSON (banger_policy::network::VmNetwork). Of VMs of before,
-- `nat_enabled` says it.
ALTER TABLE vms ADD COLUMN network TEXT CHECK (network IS NULL OR length(network) <= 32768);
