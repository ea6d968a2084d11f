//! Programs beside ours that make rules: whoever starts first, reloads or stops, guests with NAT
//! reach out and nobody else's guest, by packets. A neighbour that the host VM does not have is
//! skipped aloud.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::frames::udp;
use super::network::{HOST, Net, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

const ARRIVES: Duration = Duration::from_secs(2);
/// What is dropped does not come within this.
const DROPPED: Duration = Duration::from_millis(400);
/// The packaged timer's promise, and a run of the script under load.
const TIMER: Duration = Duration::from_secs(40);

/// A neighbour, by what an administrator types. SSH, by which the bench comes in, stays open.
pub(super) struct Neighbour {
    pub(super) name: &'static str,
    /// Its check in `banger doctor` while it runs, if it is one that doctor knows.
    doctor: &'static str,
    /// Prints something where it is installed.
    installed: &'static str,
    start: &'static str,
    reload: &'static str,
    stop: &'static str,
    /// Whatever of it a stop leaves.
    undo: &'static str,
}

const DOCKER_UNDO: &str = "systemctl stop docker.service docker.socket containerd.service; ip link delete docker0; \
    for t in filter nat raw; do for f in ip ip6; do nft delete table $f $t; done; done; \
    for i in iptables-legacy ip6tables-legacy; do for t in filter nat; do $i -t $t -F; $i -t $t -X; $i -t $t -P FORWARD ACCEPT; done; done; \
    update-alternatives --auto iptables; update-alternatives --auto ip6tables; rm -rf /run/docker /run/containerd; true";

/// What none of them takes with it: tables that iptables(8) made when it was asked, and the modules
/// of its legacy ones. Then our own rules again, as the timer would bring them.
const LEFT: &str = "for f in ip ip6; do for t in filter mangle nat raw security; do nft delete table $f $t; done; done; \
    for f in iptable ip6table; do for t in nat filter mangle raw security; do modprobe --remove ${f}_$t; done; done; \
    systemctl start banger-host-firewall.service";

/// All that make rules or networks beside ours.
pub(super) const ALL: &[Neighbour] = &[
    Neighbour {
        name: "ufw",
        doctor: "neighbour ufw",
        installed: "command -v ufw || true",
        start: "ufw allow 22/tcp && ufw --force enable",
        reload: "ufw reload",
        stop: "ufw --force disable",
        undo: "ufw --force reset; rm -f /etc/ufw/*.rules.2*; /usr/lib/ufw/ufw-init flush-all; \
            for f in ip ip6; do nft delete table $f filter; done; true",
    },
    // Its file begins with `flush ruleset`, as Debian's does.
    Neighbour {
        name: "nft-flush-ruleset",
        doctor: "",
        installed: "command -v nft || true",
        start: "nft 'flush ruleset; table inet host { chain forward { type filter hook forward priority 0; policy accept; }; }'",
        reload: "nft 'flush ruleset; table inet host { chain forward { type filter hook forward priority 0; policy accept; }; }'",
        stop: "nft flush ruleset",
        undo: "true",
    },
    // A script of an administrator, as many hosts have it.
    Neighbour {
        name: "iptables-flush",
        doctor: "",
        installed: "command -v iptables || true",
        start: "iptables -F; iptables -P FORWARD DROP",
        reload: "iptables -F; iptables -X; iptables -P FORWARD DROP",
        stop: "iptables -P FORWARD ACCEPT; iptables -F",
        undo: "nft delete table ip filter; true",
    },
    Neighbour {
        name: "docker-nft",
        doctor: "neighbour Docker",
        installed: "command -v dockerd || true",
        start: "systemctl start docker.service",
        reload: "systemctl restart docker.service",
        stop: "systemctl stop docker.service docker.socket",
        undo: DOCKER_UNDO,
    },
    Neighbour {
        name: "docker-legacy",
        doctor: "neighbour Docker",
        installed: "command -v dockerd || true",
        start: "update-alternatives --set iptables /usr/sbin/iptables-legacy; \
            update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy; systemctl start docker.service",
        reload: "systemctl restart docker.service",
        stop: "systemctl stop docker.service docker.socket",
        undo: DOCKER_UNDO,
    },
    Neighbour {
        name: "podman",
        doctor: "neighbour podman",
        installed: "command -v podman || true",
        start: "mkdir -p /run/bench-box/bin && cp /usr/bin/busybox /run/bench-box/bin/ && tar -C /run/bench-box -c . | podman import - localhost/box && \
            podman run --detach --name box --network podman localhost/box /bin/busybox sleep 100000",
        reload: "podman network reload --all",
        stop: "podman rm --force --time 0 box",
        undo: "podman rm --all --force --time 0; podman rmi --all --force; ip link delete podman0; nft delete table inet netavark; rm -rf /run/bench-box /dev/shm/libpod_lock; systemctl stop machine.slice; umount /run/netns; true",
    },
    Neighbour {
        name: "firewalld",
        doctor: "neighbour firewalld",
        installed: "command -v firewall-cmd || true",
        start: "systemctl start firewalld.service",
        reload: "firewall-cmd --reload",
        stop: "systemctl stop firewalld.service",
        undo: "true",
    },
    Neighbour {
        name: "libvirt",
        doctor: "neighbour libvirt",
        installed: "command -v virsh || true",
        start: "systemctl start libvirtd.service && virsh -c network:///system net-start default",
        reload: "systemctl restart libvirtd.service",
        stop: "virsh -c network:///system net-destroy default; systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket",
        undo: "systemctl stop virtlogd.service virtlogd.socket virtlogd-admin.socket; ip link delete virbr0; \
            for f in ip ip6; do nft delete table $f libvirt_network; done; true",
    },
    // As wg-quick does it: everything that no other route is for.
    Neighbour {
        name: "vpn",
        doctor: "neighbour VPN",
        installed: "echo routes",
        start: "ip link add wg0 type dummy && ip address add 10.66.0.2/32 dev wg0 && ip link set wg0 up && \
            ip route add default dev wg0 table 51820 && ip rule add not fwmark 51820 table 51820 && ip rule add table main suppress_prefixlength 0",
        reload: "ip route flush table 51820; ip route add default dev wg0 table 51820",
        stop: "ip rule delete not fwmark 51820 table 51820; ip rule delete table main suppress_prefixlength 0; ip link delete wg0",
        undo: "true",
    },
    // With a file that matches every link. Another leaves those of the bench alone: a match by `!`
    // would take eth0 by its other names (systemd.network(5)), and its address away when networkd
    // ends.
    Neighbour {
        name: "networkd",
        doctor: "",
        installed: "command -v networkctl || true",
        start: "printf '[Match]\nName=lo eth0 up0 ctl0 ctl1\n[Link]\nUnmanaged=yes\n' > /etc/systemd/network/10-bench.network && \
            printf '[Match]\nName=*\n[Network]\nDHCP=yes\nAddress=192.0.2.77/24\n' > /etc/systemd/network/50-all.network && \
            systemctl start systemd-networkd.service",
        reload: "networkctl reload && systemctl restart systemd-networkd.service",
        stop: "systemctl stop 'systemd-networkd*.socket' systemd-networkd.service",
        undo: "rm -f /etc/systemd/network/10-bench.network /etc/systemd/network/50-all.network; true",
    },
    // When it ends it sets back how IPv6 addresses are made, of links that it is told to leave
    // alone, too. The bridge gets none by that (a step of each row looks).
    Neighbour {
        name: "networkmanager",
        doctor: "",
        installed: "command -v nmcli || true",
        start: "systemctl start NetworkManager.service",
        reload: "nmcli general reload && systemctl restart NetworkManager.service",
        stop: "systemctl stop NetworkManager.service",
        undo: "rm -rf /run/NetworkManager; ip link set dev br-fc addrgenmode none",
    },
];

/// The matrix of one neighbour.
pub(super) fn beside(scene: &mut Scene, neighbour: &Neighbour) -> Result<Outcome> {
    let found = scene.root(neighbour.installed)?;
    if found.trim().is_empty() {
        return Ok(Outcome::Skipped(format!("`{}` finds nothing in the host VM", neighbour.installed)));
    }
    instead_of_the_daemon(scene, true, |scene| {
        with_net(scene, |scene, net| {
            let result = cells(scene, net, neighbour);
            let undone = scene.root(&format!("{}; {LEFT}", neighbour.undo));
            result?;
            undone.map(drop)
        })
    })
}

fn cells(scene: &mut Scene, net: &mut Net, neighbour: &Neighbour) -> Result<()> {
    scene.step("before it", holds(net))?;
    scene.root(neighbour.start)?;
    scene.step("it starts after us", holds(net))?;
    scene.root("systemctl restart banger-priv.service banger-host-firewall.service")?;
    net.helper.reconnect()?;
    scene.step("we start after it", holds(net))?;
    scene.root(neighbour.reload)?;
    scene.step("it reloads", holds(net))?;
    scene.root(neighbour.stop)?;
    scene.step("it stops", holds(net))?;
    scene.step("the bridge has no IPv6 address", |scene| {
        let has = scene.root("ip -6 -oneline address show dev br-fc")?;
        ensure!(has.trim().is_empty(), "{has}");
        Ok(())
    })
}

/// What doctor says of each while it runs.
pub(super) fn named_by_doctor(scene: &mut Scene) -> Result<Outcome> {
    for neighbour in ALL.iter().filter(|neighbour| !neighbour.doctor.is_empty()) {
        if scene.root(neighbour.installed)?.trim().is_empty() {
            return Ok(Outcome::Skipped(format!("`{}` finds nothing in the host VM", neighbour.installed)));
        }
        let title = format!("{} is said to be there, and then not", neighbour.name);
        let named = |scene: &Scene| -> Result<bool> {
            Ok(scene.banger("alice", &["doctor", "--json"])?.stdout.contains(neighbour.doctor))
        };
        scene.step(&title, |scene| {
            ensure!(!named(scene)?, "{} is there before it starts", neighbour.doctor);
            scene.root(neighbour.start)?;
            let while_it_runs = named(scene);
            scene.root(neighbour.stop)?;
            scene.root(&format!("{}; {LEFT}", neighbour.undo))?;
            ensure!(while_it_runs?, "doctor does not name {}", neighbour.doctor);
            ensure!(!named(scene)?, "{} is there when it has ended", neighbour.doctor);
            Ok(())
        })?;
    }
    scene.passed()
}

/// A cell of the matrix. The rules in the host's chain come back by the timer; what keeps guests
/// apart must hold from the first packet on.
fn holds(net: &mut Net) -> impl FnOnce(&mut Scene) -> Result<()> {
    move |scene| {
        kept_apart(scene, net)?;
        let mut last = String::new();
        let waited = scene
            .wait_until("guests reach out", TIMER, || {
                let seen = net.reaches_out(|net| &net.alice, scene.limit(DROPPED))?;
                last = format!("{seen:?}");
                Ok((seen != Ok(HOST)).then(|| last.clone()))
            })
            .with_context(|| format!("the last try: {last}"))?;
        net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))?;
        scene.measured("seconds until guests reached out", format!("{:.1}", waited.as_secs_f64()));
        kept_apart(scene, net)
    }
}

/// Neither another guest nor the host hears a guest, and the world begins nothing with it.
fn kept_apart(scene: &Scene, net: &Net) -> Result<()> {
    net.forget();
    for target in [net.bob.address, net.inward.address, HOST] {
        net.alice.send(&udp(net.alice.address, target, "sideways"))?;
    }
    net.outside.udp.send_to(b"sideways", (net.alice.address, 9)).context("from outside")?;
    std::thread::sleep(scene.limit(DROPPED));
    let arrived = net.arrived(&net.alice, "sideways");
    ensure!(arrived.guest == 0 && arrived.host == 0 && net.alice.heard("sideways") == 0, "{arrived:?}");
    Ok(())
}
