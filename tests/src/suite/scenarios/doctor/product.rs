//! What the daemon finds about the package, Firecracker and what it keeps:
//! `bangerd/src/doctor/{product,state}.rs`.

use super::row::{ALICE, Row, fail, not_here, warn};

/// The VMM of the bench lies in `suite::product::VMM`; meanwhile it is kept elsewhere.
const VMM_BACK: &str = "mv --force /run/bench-vmm /usr/local/lib/banger-bench/firecracker";
const NO_HELPER: &str = "systemctl stop banger-priv.socket banger-priv.service";
/// A VM that reserves eight of the host VM's twenty free GiB.
const BIG: &str = "runuser -u alice -- banger vm create --name big --image tiny --vcpu 1 --memory 256M --disk-size 64M \
                   --root-size 8G";

pub(super) const ROWS: &[Row] = &[
    not_here("product::helper", "the helper refuses no daemon in its own place; hostile-client is about others"),
    fail("product::helper", ("the-helper-does-not-answer", "helper"), NO_HELPER, "the helper"),
    fail(
        "product::socket",
        ("a-file-in-place-of-the-helper-socket", "helper's socket"),
        "systemctl stop banger-priv.socket banger-priv.service; rm -f /run/banger/priv.sock; touch /run/banger/priv.sock",
        "is no socket",
    ),
    fail(
        "product::socket",
        ("the-helper-socket-is-gone", "helper's socket"),
        "rm /run/banger/priv.sock",
        "No such file",
    ),
    fail(
        "product::vmm",
        ("firecracker-is-gone", "firecracker"),
        "mv /usr/local/lib/banger-bench/firecracker /run/bench-vmm",
        "firecracker_bin is not a program",
    )
    .after(VMM_BACK),
    fail(
        "product::vmm",
        ("firecracker-is-too-old", "firecracker"),
        "cd /usr/local/lib/banger-bench && mv firecracker /run/bench-vmm && \
         printf '#!/bin/sh\\necho Firecracker v1.9.1\\n' > firecracker && chmod 0755 firecracker",
        "is older than",
    )
    .after(VMM_BACK),
    warn(
        "product::vmm",
        ("firecracker-of-no-known-version", "firecracker"),
        "cd /usr/local/lib/banger-bench && mv firecracker /run/bench-vmm && \
         printf '#!/bin/sh\\necho something\\n' > firecracker && chmod 0755 firecracker",
        "cannot be read",
    )
    .after(VMM_BACK),
    fail(
        "product::vmm_owner",
        ("firecracker-of-a-user", "firecracker's owner"),
        "chown alice /usr/local/lib/banger-bench/firecracker",
        "belongs to uid 1001",
    ),
    fail(
        "product::vmm_owner",
        ("firecracker-that-others-write", "firecracker's owner"),
        "chmod g+w /usr/local/lib/banger-bench/firecracker",
        "others than root may write",
    ),
    fail(
        "product::guest_binary",
        ("the-guest-init-is-gone", "guest init"),
        "mv /usr/libexec/banger/banger-guest /run/bench-guest",
        "is missing",
    )
    .after("rm /run/bench-guest"),
    warn(
        "product::configuration",
        ("a-configuration-that-is-not-in-force", "configuration"),
        "touch /etc/banger/banger.toml",
        "changed after bangerd has read it",
    ),
    warn(
        "product::configuration",
        ("a-configuration-that-waits-for-a-restart", "configuration"),
        "sed -i 's/^networks = .*/networks = []/' /etc/banger/banger.toml && systemctl reload bangerd",
        "not in force yet: publish",
    ),
    warn(
        "product::leftover_configuration",
        ("what-an-upgrade-left-of-the-configuration", "configuration's other version"),
        "echo 'log_level = \"info\"' > /etc/banger/banger.toml.dpkg-dist",
        "banger.toml.dpkg-dist",
    )
    .answered("y\n"),
    not_here("state::database", "what mends a damaged database is a copy of it: package downgrade-refused, docs admin"),
    warn(
        "state::copies",
        ("no-copies-of-the-database", "database's copies"),
        "cd /var/lib/banger/backups && mv banger-$(date --utc +%F).db banger-2020-01-01.db && touch --date='5 days ago' *",
        "days old",
    )
    .after("rm /var/lib/banger/backups/banger-2020-01-01.db"),
    not_here("state::free_space", "a file system that does not say what is free cannot be had"),
    fail(
        "state::space",
        ("a-full-disk", "disk space"),
        "runuser -u alice -- banger vm create --name big --image tiny --vcpu 1 --memory 256M --disk-size 64M \
         --root-size 17G && fallocate --length \
         $(( $(df --output=avail --block-size=1 /var/lib | tail -n 1) - 300 * 1048576 )) /var/lib/filler",
        "reserve",
    )
    .asked_in(ALICE)
    .answered("y\n")
    .after("rm /var/lib/filler"),
    warn("state::space", ("a-disk-that-gets-full", "disk space"), BIG, "may use 8 GiB more")
        .asked_in(ALICE)
        .answered("y\n"),
    not_here("state::free_files", "a file system that does not say what is free cannot be had"),
    not_here("state::few_files", "a million and a half files would have to be made"),
    fail(
        "state::kernel",
        ("no-kernel", "kernel of guests"),
        "banger kernel delete $(uname -r)",
        "no VM can start",
    ),
    not_here("state::kernel", "mended by the same import as the finding before"),
    not_here("state::kernel", "says what the check of the database says"),
    not_here("state::image", "says what the check of the database says"),
    warn("state::leaks", ("leaks-cannot-be-looked-for", "leaks"), NO_HELPER, "cannot look"),
    warn(
        "state::left_behind",
        ("something-is-left-behind", "leaks"),
        "install -d -o bangerd -g bangerd -m 0700 /var/lib/banger/vms/$(printf 'd0c%.0s' $(seq 21))d",
        "belong to no VM",
    )
    .then("banger doctor --leaks --fix"),
];
