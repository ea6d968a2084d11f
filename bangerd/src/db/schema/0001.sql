-- Ids are 64 hexadecimal digits, times are seconds since 1970 (UTC), sizes are bytes unless the name says MiB.
-- Paths are not here: they follow from ids.
--
-- An owner is a uid and the login name that it had then. A host gives a number again when its user is gone: whoever has it then is
-- another owner.

-- What lies in the store, by digest. It goes when it has no name and no VM uses it.
CREATE TABLE images (
    id              TEXT PRIMARY KEY,
    build_size      INTEGER NOT NULL,
    allocated_bytes INTEGER NOT NULL,
    docker          INTEGER NOT NULL
) STRICT;

-- What users call it. A shared name is everybody's to use, and there is one of each.
CREATE TABLE image_names (
    owner      INTEGER NOT NULL,
    owner_name TEXT NOT NULL,
    name       TEXT NOT NULL,
    image_id   TEXT NOT NULL REFERENCES images (id),
    managed    INTEGER NOT NULL,
    source     TEXT NOT NULL,
    shared     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (owner, owner_name, name)
) STRICT;
CREATE UNIQUE INDEX shared_image_names ON image_names (name) WHERE shared;

CREATE TABLE kernels (
    id         TEXT PRIMARY KEY,
    version    TEXT NOT NULL,
    modules    TEXT NOT NULL, -- JSON array, in load order
    size_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE kernel_names (
    owner      INTEGER NOT NULL,
    owner_name TEXT NOT NULL,
    name       TEXT NOT NULL,
    kernel_id  TEXT NOT NULL REFERENCES kernels (id),
    shared     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (owner, owner_name, name)
) STRICT;
CREATE UNIQUE INDEX shared_kernel_names ON kernel_names (name) WHERE shared;

CREATE TABLE vms (
    id                        TEXT PRIMARY KEY,
    owner                     INTEGER NOT NULL,
    owner_name                TEXT NOT NULL CHECK (owner_name != ''),
    name                      TEXT NOT NULL,
    image_id                  TEXT NOT NULL REFERENCES images (id),
    image_name                TEXT NOT NULL,
    kernel_id                 TEXT NOT NULL REFERENCES kernels (id),
    state                     TEXT NOT NULL CHECK (state IN ('created', 'running', 'stopped', 'error')),
    -- The creation has not come to its end, or the removal has begun: after a crash, such a VM is removed.
    making                    INTEGER NOT NULL,
    -- It is being started: it counts as running for the limits of its owner.
    starting                  INTEGER NOT NULL DEFAULT 0,
    last_error                TEXT NOT NULL DEFAULT '',
    created_at                INTEGER NOT NULL,
    updated_at                INTEGER NOT NULL,
    last_touched_at           INTEGER NOT NULL,
    vcpu_count                INTEGER NOT NULL,
    memory_mib                INTEGER NOT NULL,
    system_overlay_size_bytes INTEGER NOT NULL,
    work_disk_size_bytes      INTEGER NOT NULL,
    nat_enabled               INTEGER NOT NULL,
    restart                   TEXT NOT NULL DEFAULT 'no' CHECK (restart IN ('no', 'always')),
    -- The boot of the host in which it runs, or ran until the host went down; NULL when somebody ended it, or when it is not known.
    boot_id                   TEXT,
    -- The mirror of the handles, from which a teardown works when cache and file are lost.
    tap_device                TEXT,
    base_loop                 TEXT,
    cow_loop                  TEXT,
    dm_name                   TEXT,
    dm_dev                    TEXT,
    generation                INTEGER, -- the bits of an unsigned number
    UNIQUE (owner, owner_name, name)
) STRICT;

-- Address, CID and control port of a VM follow from this one number.
CREATE TABLE leases (
    address_index INTEGER PRIMARY KEY,
    vm_id         TEXT NOT NULL UNIQUE REFERENCES vms (id) ON DELETE CASCADE
) STRICT;

CREATE TABLE user_keys (
    owner      INTEGER NOT NULL,
    owner_name TEXT NOT NULL,
    public_key TEXT NOT NULL,
    added_at   INTEGER NOT NULL,
    PRIMARY KEY (owner, owner_name, public_key)
) STRICT;

CREATE TABLE jobs (
    id         INTEGER PRIMARY KEY,
    owner      INTEGER NOT NULL,
    owner_name TEXT NOT NULL,
    title      TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    outcome    TEXT -- done, failed, cancelled; NULL while it runs
        CHECK (outcome IN ('done', 'failed', 'cancelled')),
    message    TEXT NOT NULL DEFAULT ''
) STRICT;
