-- Ports of guests that the host listens on, for as long as the VM runs. They go with the VM, and when it is given away.
CREATE TABLE published_ports (
    vm_id          TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    protocol       TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
    address        TEXT NOT NULL, -- the host's, as it is written without brackets
    host_port      INTEGER NOT NULL CHECK (host_port BETWEEN 1 AND 65535),
    guest_port     INTEGER NOT NULL CHECK (guest_port BETWEEN 1 AND 65535),
    public         INTEGER NOT NULL,
    proxy_protocol INTEGER NOT NULL,
    UNIQUE (protocol, address, host_port)
) STRICT;
CREATE INDEX published_ports_of_vms ON published_ports (vm_id);
