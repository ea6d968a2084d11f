//! Control of the inventory itself: one foreign leak of each sort is planted, and each must be
//! reported by name. A bench that cannot see a leak would call everything clean.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;

use anyhow::{Result, ensure};

use crate::inventory::{Allow, DATABASE, Difference, Inventory, Kind, leaks};
use crate::suite::list::{Outcome, Reboot, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "inventory-control",
    about: "a planted leak of each sort is found and named",
    setup: Setup::Nothing,
    scenarios,
};

/// A leak: its sort, what its report must name, the lines that make the ground for it, plant it and
/// take it away.
struct Plant {
    kind: Kind,
    named: &'static str,
    ground: &'static str,
    plant: &'static str,
    remove: &'static str,
}

const PLANTS: &[Plant] = &[
    Plant {
        kind: Kind::Link,
        named: "bench-leak",
        ground: ":",
        plant: "ip link add bench-leak type dummy",
        remove: "ip link del bench-leak",
    },
    Plant {
        kind: Kind::Address,
        named: "192.0.2.77/32 dev lo",
        ground: ":",
        plant: "ip addr add 192.0.2.77/32 dev lo",
        remove: "ip addr del 192.0.2.77/32 dev lo",
    },
    Plant {
        kind: Kind::Route,
        named: "198.51.100.77 dev lo table 77",
        ground: ":",
        plant: "ip route add 198.51.100.77/32 dev lo table 77",
        remove: "ip route del 198.51.100.77/32 dev lo table 77",
    },
    Plant {
        kind: Kind::Rule,
        named: "src 192.0.2.77",
        ground: ":",
        plant: "ip rule add from 192.0.2.77 lookup 77",
        remove: "ip rule del from 192.0.2.77 lookup 77",
    },
    Plant {
        kind: Kind::Loop,
        named: "/srv/bench/leak.img",
        ground: "modprobe loop; truncate -s 1M /srv/bench/leak.img",
        plant: "losetup --find /srv/bench/leak.img",
        remove: "losetup --detach $(losetup --noheadings --output NAME --associated /srv/bench/leak.img)",
    },
    Plant {
        kind: Kind::Dm,
        named: "bench-leak",
        ground: "modprobe dm_mod",
        plant: "dmsetup create bench-leak --uuid BENCH-LEAK-1 --table '0 8 error'",
        remove: "dmsetup remove bench-leak",
    },
    Plant {
        kind: Kind::Nft,
        named: "element inet bench/leaks \"192.0.2.77\"",
        ground: "nft add table inet bench; nft add set inet bench leaks '{ type ipv4_addr; }'",
        plant: "nft add element inet bench leaks '{ 192.0.2.77 }'",
        remove: "nft delete element inet bench leaks '{ 192.0.2.77 }'",
    },
    Plant {
        kind: Kind::Iptables,
        named: "iptables-nft filter -A FORWARD -i bench-leak -j ACCEPT",
        ground: "iptables-nft -A FORWARD -i bench-stays -j ACCEPT",
        plant: "iptables-nft -A FORWARD -i bench-leak -j ACCEPT",
        remove: "iptables-nft -D FORWARD -i bench-leak -j ACCEPT",
    },
    Plant {
        kind: Kind::Iptables,
        named: "iptables-legacy filter -A FORWARD -i bench-leak -j ACCEPT",
        ground: "iptables-legacy -A FORWARD -i bench-stays -j ACCEPT",
        plant: "iptables-legacy -A FORWARD -i bench-leak -j ACCEPT",
        remove: "iptables-legacy -D FORWARD -i bench-leak -j ACCEPT",
    },
    Plant {
        kind: Kind::Process,
        named: "sleep 77777",
        ground: ":",
        plant: "setsid --fork sleep 77777 </dev/null >/dev/null 2>&1",
        remove: "kill $(pgrep --full --exact 'sleep 77777')",
    },
    Plant {
        kind: Kind::Cgroup,
        named: "/bench-leak",
        ground: ":",
        plant: "mkdir /sys/fs/cgroup/bench-leak",
        remove: "rmdir /sys/fs/cgroup/bench-leak",
    },
    Plant {
        kind: Kind::Mount,
        named: "/mnt",
        ground: ":",
        plant: "mount -t tmpfs bench-leak /mnt",
        remove: "umount /mnt",
    },
    Plant {
        kind: Kind::File,
        named: "/var/lib/banger/bench-leak",
        ground: "mkdir -p /var/lib/banger",
        plant: "echo leak > /var/lib/banger/bench-leak",
        remove: "rm /var/lib/banger/bench-leak",
    },
    Plant {
        kind: Kind::Row,
        named: "bench_vm 'leak'",
        ground: ROW_GROUND,
        plant: "sqlite3 /var/lib/banger/banger.db \"INSERT INTO bench_vm VALUES ('leak')\"",
        remove: "sqlite3 /var/lib/banger/banger.db \"DELETE FROM bench_vm WHERE id = 'leak'\"",
    },
    Plant {
        kind: Kind::Ledger,
        named: "bench-leak",
        ground: "mkdir -p /run/banger-priv",
        plant: "echo leak > /run/banger-priv/bench-leak",
        remove: "rm /run/banger-priv/bench-leak",
    },
];

/// The table stays from one plant to the next; the journal mode is the daemon's, so that the row is
/// first in the log and not in the file.
const ROW_GROUND: &str = "mkdir -p /var/lib/banger; sqlite3 /var/lib/banger/banger.db 'PRAGMA journal_mode = WAL; \
    CREATE TABLE IF NOT EXISTS bench_vm (id TEXT PRIMARY KEY) STRICT; INSERT OR IGNORE INTO bench_vm VALUES (1)'";

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("quiet-host-has-no-difference", quiet),
        // Before the plants: their ground is lost in a reboot.
        Scenario::across_reboot("same-after-a-clean-reboot", |scene| note_boot(scene, Reboot::Clean), other_boot),
        Scenario::across_reboot("same-after-a-power-cut", |scene| note_boot(scene, Reboot::Hard), other_boot),
        Scenario::new("finds-and-names-a-leak-of-each-sort", planted),
        Scenario::new("finds-sockets", sockets),
        Scenario::new("finds-alterations", alterations),
        Scenario::new("every-sort-has-a-plant", every_sort),
    ]
}

/// Without a plant there is no difference, also some seconds later: otherwise the others prove
/// nothing.
fn quiet(scene: &mut Scene) -> Result<Outcome> {
    let before = Inventory::take()?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    let difference = leaks(&before, &Inventory::take()?, &[]);
    ensure!(difference.leaks.is_empty(), "a host where nothing happens differs from itself:\n{difference}");
    scene.passed()
}

/// All at once: an inventory takes seconds under emulation, and each leak has a name of its own.
fn planted(scene: &mut Scene) -> Result<Outcome> {
    for (kind, pattern) in GROUND {
        scene.allow(Allow::anything(*kind, *pattern, "ground for the planted leaks"));
    }
    let all = |scene: &Scene, line: fn(&Plant) -> &str| -> Result<()> {
        PLANTS.iter().try_for_each(|plant| scene.root(line(plant)).map(drop))
    };
    all(scene, |plant| plant.ground)?;
    let clean = Inventory::take()?;
    all(scene, |plant| plant.plant)?;
    let dirty = Inventory::take();
    all(scene, |plant| plant.remove)?;
    let dirty = dirty?;
    let (come, gone) = (leaks(&clean, &dirty, &[]), leaks(&dirty, &clean, &[]));
    for plant in PLANTS {
        scene.step(&format!("{}: {}", plant.kind, plant.named), |_| {
            must_name(&come, plant.kind, plant.named, "+")?;
            // Seen from the other side it is a loss: something that was there before a scenario and
            // is gone after it.
            must_name(&gone, plant.kind, plant.named, "-")
        })?;
    }
    let again = leaks(&clean, &Inventory::take()?, &[]);
    // SQLite's files differ from before the row: that is the one alteration that stays.
    let left: Vec<_> = again.leaks.iter().filter(|change| !change.name.starts_with(DATABASE)).collect();
    ensure!(left.is_empty(), "after the leaks were removed there is still a difference:\n{again}");
    scene.passed()
}

/// What the grounds leave behind on purpose; the plants themselves are not covered.
const GROUND: &[(Kind, &str)] = &[
    (Kind::Nft, "table inet bench"),
    (Kind::Nft, "set inet bench/leaks"),
    (Kind::Nft, "* ip filter*"),
    (Kind::Iptables, "iptables-* chain *"),
    (Kind::Iptables, "iptables-* -A FORWARD -i bench-stays -j ACCEPT"),
    (Kind::File, "/var/lib/banger"),
    (Kind::File, "/var/lib/banger/banger.db*"),
    (Kind::Row, "bench_vm '1'"),
];

fn must_name(difference: &Difference, kind: Kind, name: &str, sign: &str) -> Result<()> {
    let found = difference
        .leaks
        .iter()
        .any(|change| change.kind == kind && change.name.contains(name) && change.to_string().starts_with(sign));
    ensure!(found, "the inventory does not report `{sign} {kind} {name}`; it reports:\n{difference}");
    Ok(())
}

fn sockets(scene: &mut Scene) -> Result<Outcome> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
    let path = "/run/bench-leak.sock";
    let clean = Inventory::take()?;
    let unix = UnixListener::bind(path)?;
    let tcp = std::net::TcpListener::bind("127.0.0.1:7777")?;
    let vsock = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&vsock), &VsockAddr::new(libc::VMADDR_CID_ANY, 7778))?;
    listen(&vsock, Backlog::new(1)?)?;
    let dirty = Inventory::take();
    drop((unix, tcp, vsock));
    std::fs::remove_file(path)?;
    let come = leaks(&clean, &dirty?, &[]);
    for name in [path, "tcp 127.0.0.1:7777", ":7778"] {
        scene.step(name, |_| must_name(&come, Kind::Socket, name, "+"))?;
    }
    scene.passed()
}

/// A thing that stays under its name but is another: the mode of a file, the owner of an interface,
/// the table of a dm device.
fn alterations(scene: &mut Scene) -> Result<Outcome> {
    let cases = [
        (Kind::File, "/tmp/bench-leak", "echo x > /tmp/bench-leak", "chmod 0666 /tmp/bench-leak", "rm /tmp/bench-leak"),
        (
            Kind::Link,
            "bench-leak",
            "ip link add bench-leak type dummy",
            "ip link set bench-leak alias foreign",
            "ip link del bench-leak",
        ),
        (
            Kind::Dm,
            "bench-leak",
            "dmsetup create bench-leak --table '0 8 error'",
            "echo '0 16 error' | dmsetup reload bench-leak && dmsetup resume bench-leak",
            "dmsetup remove bench-leak",
        ),
    ];
    for (kind, name, make, alter, remove) in cases {
        scene.root(make)?;
        let before = Inventory::take()?;
        scene.root(alter)?;
        let after = Inventory::take();
        scene.root(remove)?;
        must_name(&leaks(&before, &after?, &[]), kind, name, "~")?;
    }
    scene.passed()
}

/// A sort that is added to the inventory without a plant here is a hole in the control.
fn every_sort(scene: &mut Scene) -> Result<Outcome> {
    let planted: BTreeSet<Kind> = PLANTS.iter().map(|plant| plant.kind).chain([Kind::Socket]).collect();
    for kind in Kind::ALL {
        ensure!(planted.contains(&kind), "nothing of sort {kind} is planted");
    }
    scene.passed()
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NOTED: &str = "/srv/bench/boot-id";

/// The bench can reboot the host in the middle of a scenario, and a host with nothing on it is the
/// same afterwards.
fn note_boot(_: &mut Scene, reboot: Reboot) -> Result<Outcome> {
    std::fs::copy(BOOT_ID, NOTED)?;
    Ok(Outcome::Reboot(reboot))
}

fn other_boot(scene: &mut Scene) -> Result<Outcome> {
    let (then, now) = (std::fs::read_to_string(NOTED)?, std::fs::read_to_string(BOOT_ID)?);
    ensure!(then != now, "the host was not rebooted");
    std::fs::remove_file(NOTED)?;
    scene.passed()
}
