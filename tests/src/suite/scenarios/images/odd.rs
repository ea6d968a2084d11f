//! Images as people make them: each boots, runs commands and stops, whatever it brings.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::SIZE;
use super::layout::Layout;
use crate::suite::guests::{Guest, TINY};
use crate::suite::list::{Outcome, Scenario};
use crate::suite::scene::Scene;

/// What an odd image is made of, and what must be so in its guest: lines for its shell, with a word
/// of what each says.
struct Odd {
    name: &'static str,
    made: fn() -> Result<Layout>,
    shown: &'static [(&'static str, &'static str)],
}

const TINY_TAR: &str = "/srv/bench/tiny.tar";
const SYSTEMD_TAR: &str = "/srv/bench/debian-systemd.tar";

/// An id that every VM of the image would share.
const BAKED_ID: &str = "0123456789abcdef0123456789abcdef";
/// Ends when it is asked to, as the scripts of small images do.
const SCRIPT: &[u8] = b"#!/bin/sh\n\
    mount -t proc proc /proc 2>/dev/null\n\
    echo script > /run/which-init\n\
    trap 'sync; umount -r / 2>/dev/null; poweroff -f' TERM INT USR1 USR2\n\
    while :; do sleep 1 & wait $!; done\n";
const INITTAB: &[u8] = b"::sysinit:/etc/rc\n::shutdown:/bin/umount -a -r\n";
const RC: &[u8] = b"#!/bin/sh\nmount -t proc proc /proc 2>/dev/null\necho busybox > /run/which-init\n";

const ODD: &[Odd] = &[
    Odd {
        name: "busybox-with-an-inittab",
        made: || Ok(tiny().file("etc/inittab", 0o644, INITTAB).file("etc/rc", 0o755, RC)),
        shown: &[("cat /run/which-init", "busybox"), ("readlink /proc/1/exe", "busybox")],
    },
    Odd {
        name: "init-is-a-hard-link-to-busybox",
        made: || {
            let init = tiny().without("bin/init").hard_link("etc/init", "bin/busybox");
            Ok(init.file("etc/inittab", 0o644, INITTAB).file("etc/rc", 0o755, RC))
        },
        shown: &[("cat /run/which-init", "busybox")],
    },
    Odd {
        name: "a-busybox-that-nobody-configured",
        made: || Ok(tiny().file("etc/inittab", 0o644, b"::sysinit:/sbin/openrc sysinit\n")),
        shown: &[("readlink /proc/1/exe", "/init (deleted)")],
    },
    Odd {
        name: "init-is-a-chain-of-links-to-a-script",
        made: || {
            let links = tiny().without("bin/init").link("etc/init", "alternatives/init");
            let links = links.folder("etc/alternatives", 0o755).link("etc/alternatives/init", "/lib/init.real");
            Ok(links.folder("lib", 0o755).file("lib/init.real", 0o755, SCRIPT))
        },
        shown: &[("cat /run/which-init", "script")],
    },
    Odd {
        name: "a-user-a-folder-and-variables",
        made: || {
            let config = json!({"User": "1000:1000", "WorkingDir": "/odd/new", "Cmd": ["sh"],
                "Env": ["PATH=/usr/bin:/bin:/special", "GREETING=good day"]});
            Ok(tiny().configured(config))
        },
        shown: &[("id -u", "1000"), ("id -g", "1000"), ("pwd", "/odd/new"), ("echo $GREETING; echo $PATH", "good day")],
    },
    Odd {
        name: "a-user-listens-on-port-80-and-pings",
        made: || {
            let users = tiny().file("etc/passwd", 0o644, b"root:x:0:0\napp:x:1000:1001\n");
            Ok(users.configured(json!({"User": "app", "Cmd": ["sh"]})))
        },
        shown: &[
            ("id -u; id -g", "1000\n1001"),
            ("nc -l -p 80 </dev/null & sleep 1; kill $! && echo listens", "listens"),
            // Debian's BusyBox has no ping that would make use of it.
            ("cat /proc/sys/net/ipv4/ping_group_range", "0\t2147483647"),
        ],
    },
    Odd {
        name: "a-machine-id-that-was-baked-in",
        made: || Ok(tiny().file("etc/machine-id", 0o444, BAKED_ID.as_bytes())),
        shown: &[("grep -v 0123456789abcdef /etc/machine-id | wc -c", "33")],
    },
    Odd {
        name: "root-is-a-link",
        made: || {
            Ok(tiny().folder("home", 0o755).folder("home/admin", 0o700).without("root").link("root", "home/admin"))
        },
        shown: &[("echo kept > ~/file && cat /root/file", "kept"), ("df ~ | tail -n 1", "/dev/vdb")],
    },
    Odd {
        name: "etc-is-missing",
        made: || Ok(tiny().without("etc")),
        shown: &[("id -u", "0"), ("cat /etc/resolv.conf", "nameserver"), ("hostname", "odd")],
    },
    Odd {
        name: "resolv-conf-and-hostname-are-links-to-nowhere",
        made: || {
            let links = tiny().link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
            Ok(links.link("etc/hostname", "/nowhere/hostname").link("etc/hosts", "/etc/hosts"))
        },
        shown: &[("cat /etc/resolv.conf", "nameserver"), ("hostname", "odd"), ("cat /etc/hosts", "odd")],
    },
    Odd {
        name: "systemd-with-a-missing-disk-and-its-own-network",
        made: || {
            let network = b"[Match]\nName=eth0\n[Network]\nDHCP=yes\n";
            let fstab =
                b"UUID=00000000-1111-2222-3333-444444444444 /data ext4 defaults 0 2\nLABEL=gone none swap sw 0 0\n";
            let units = "usr/lib/systemd/system";
            let enabled = Layout::over(Path::new(SYSTEMD_TAR))
                .file("etc/fstab", 0o644, fstab)
                .file("etc/machine-id", 0o444, BAKED_ID.as_bytes())
                .file("etc/systemd/network/10-dhcp.network", 0o644, network)
                .link(
                    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
                    &format!("/{units}/systemd-networkd.service"),
                )
                .link(
                    "etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service",
                    &format!("/{units}/systemd-networkd-wait-online.service"),
                );
            Ok(enabled)
        },
        shown: &[
            ("cat /proc/1/comm", "systemd"),
            ("grep -c 0123456789abcdef /etc/machine-id; :", "0"),
            ("ip -4 -o addr show eth0 || cat /proc/net/fib_trie", "172.16.0."),
        ],
    },
];

fn tiny() -> Layout {
    Layout::over(Path::new(TINY_TAR))
}

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all: Vec<Scenario> =
        ODD.iter().map(|odd| Scenario::new(odd.name, move |scene| boots(scene, odd))).collect();
    all.push(Scenario::new("no-shell-at-all", no_shell));
    all
}

const FOLDER: &str = "/srv/bench/odd";

fn import(scene: &Scene, layout: Layout, size: &str) -> Result<()> {
    layout.write(Path::new(FOLDER))?;
    let imported = scene.banger_long("alice", &["image", "import", FOLDER, "--name", "odd", "--size", size]);
    fs::remove_dir_all(FOLDER).context("remove the layout")?;
    imported?.ok().map(drop)
}

fn boots(scene: &mut Scene, odd: &Odd) -> Result<Outcome> {
    scene.allow_database_growth();
    let systemd = odd.name.starts_with("systemd");
    scene.step("import", |scene| import(scene, (odd.made)()?, if systemd { "1G" } else { "300M" }))?;
    let flags = if systemd { SIZE } else { TINY.get(2..).unwrap_or_default() };
    let words = [&["vm", "run", "--detach", "--name", "odd", "--image", "odd"], flags].concat();
    let ready = scene.step("boot", |scene| scene.banger_long("alice", &words)?.ok())?;
    scene.measured("seconds to ready", format!("{:.1}", ready.took.as_secs_f64()));
    let guest = Guest::known(scene, "alice", "odd")?;
    scene.step("in its guest", |scene| {
        for (line, said) in odd.shown {
            guest.shell(scene, line)?.ok()?.says(said)?;
        }
        Ok(())
    })?;
    if systemd {
        scene.step("systemd waits for nothing that does not come", |scene| {
            scene.wait_until("systemd is up in the guest", Duration::from_secs(75), || {
                let state = guest.shell(scene, "systemctl is-system-running; :")?.ok()?.stdout;
                Ok((!["running", "degraded"].contains(&state.trim())).then_some(state))
            })?;
            let failed = guest.shell(scene, "systemctl list-units --failed --no-legend --plain")?.ok()?.stdout;
            scene.measured(
                "failed units",
                failed.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>().join(" "),
            );
            ensure!(!failed.contains("online") && !failed.contains("emergency"), "{failed}");
            Ok(())
        })?;
    }
    scene.step("stop", |scene| {
        let stopped = guest.order(scene, "stop")?.ok()?;
        ensure!(!stopped.stderr.contains("warning:"), "it was ended: {stopped}");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "odd"])?.ok()?;
    scene.passed()
}

/// One program, and no shell to run a line: commands run all the same, and who asks for a shell is
/// told.
fn no_shell(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let program = fs::read("/bin/busybox").context("read the host's busybox")?;
    let layout = tiny().file("bin/.wh..wh..opq", 0o644, b"").file("bin/busybox-only", 0o755, &program);
    scene.step("import", |scene| import(scene, layout, "300M"))?;
    let flags = TINY.get(2..).unwrap_or_default();
    let words = [&["vm", "run", "--detach", "--name", "odd", "--image", "odd"], flags].concat();
    scene.step("boot", |scene| scene.banger_long("alice", &words)?.ok().map(drop))?;
    let guest = Guest::known(scene, "alice", "odd")?;
    scene.step("a program runs", |scene| {
        let words = ["vm", "exec", "--no-stdin", "odd", "--", "/bin/busybox-only", "id", "-u"];
        scene.banger("alice", &words)?.ok()?.says("0")?;
        scene.banger("alice", &["vm", "exec", "--no-stdin", "odd", "--", "sh", "-c", ":"])?.exits(127)?;
        scene.user("alice", "banger vm exec odd </dev/null")?.refused(&["/bin/sh"]).map(drop)
    })?;
    scene.step("stop", |scene| guest.order(scene, "stop")?.ok().map(drop))?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "odd"])?.ok()?;
    scene.passed()
}
