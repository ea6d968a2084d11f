-- The address that a VM runs with, as text; NULL while it does not run. The configuration may say another network by now.
ALTER TABLE vms ADD COLUMN guest_ip TEXT;
