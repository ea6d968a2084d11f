ALTER TABLE vms ADD COLUMN restart TEXT NOT NULL DEFAULT 'no' CHECK (restart IN ('no', 'always'));
-- The boot of the host in which it runs, or ran until the host went down; NULL when somebody ended it, or when it is not known.
ALTER TABLE vms ADD COLUMN boot_id TEXT;
