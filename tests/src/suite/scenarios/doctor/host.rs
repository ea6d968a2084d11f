//! What the daemon finds about the host: `bangerd/src/doctor/{host,upkeep,network,subnet,
//! neighbours,names}.rs`.

use super::row::{ALICE, Row, fail, not_here, warn};

const SET: &str = "sed -i -e '/^default_dns *=/d' -e '1i default_dns = \"127.0.0.1\"' /etc/banger/banger.toml && \
                   systemctl reload bangerd";
const SET_PRIVATE: &str = "sed -i -e '/^default_dns *=/d' -e '1i default_dns = \"10.0.0.53\"' \
                           /etc/banger/banger.toml && systemctl reload bangerd";
const RESOLVED_OFF: &str = "/usr/libexec/banger/resolver-link remove; systemctl stop systemd-resolved.service; \
                            rm -rf /run/systemd/resolve";

pub(super) const ROWS: &[Row] = &[
    fail("host::kvm", ("kvm-of-another-group", "kvm"), "chgrp root /dev/kvm", "may not use /dev/kvm"),
    not_here("host::kvm", "a host without KVM is mended in its firmware"),
    not_here("host::kernel", "the host VM has one kernel; what mends it is another one"),
    not_here("host::landlock", "what mends it is the kernel's command line"),
    fail("host::modules", ("a-module-is-not-loaded", "modules"), "modprobe --remove dm_snapshot", "dm_snapshot"),
    not_here(
        "host::cgroup",
        "only a daemon that is started by hand has no cgroup of its own, and that one cannot listen there",
    ),
    not_here("host::controllers", "what mends it is the kernel's command line"),
    warn(
        "host::open_files",
        ("too-few-open-files", "open files"),
        "mkdir -p /etc/systemd/system/bangerd.service.d && \
         printf '[Service]\\nLimitNOFILE=1024\\n' > /etc/systemd/system/bangerd.service.d/aa-bench.conf && \
         systemctl daemon-reload && systemctl restart bangerd",
        "1024 files",
    )
    .after(
        "cd /etc/systemd/system/bangerd.service.d && rm -f aa-bench.conf zz-open-files.conf && \
         systemctl daemon-reload && systemctl restart bangerd",
    ),
    warn(
        "host::processes",
        ("too-few-processes", "processes"),
        "sysctl --values kernel.threads-max > /run/bench-threads && sysctl --quiet --write kernel.threads-max=9000",
        "kernel.threads-max is 9000",
    )
    .after("sysctl --quiet --write kernel.threads-max=$(cat /run/bench-threads) && rm /run/bench-threads"),
    not_here("host::memory", "a kernel that does not say what is free cannot be had"),
    not_here("host::memory", "a host VM whose memory is used up ends what is under test"),
    not_here("host::clock_source", "a kernel without a clock cannot be had"),
    not_here("host::clock_source", "which clock there is belongs to the hardware"),
    not_here("host::mitigations", "what mends it is microcode, and the kernel's command line"),
    warn(
        "host::same_page_merging",
        ("pages-are-merged", "memory merging"),
        "echo 1 > /sys/kernel/mm/ksm/run",
        "KSM merges",
    )
    .after("echo 0 > /sys/kernel/mm/ksm/run"),
    not_here("upkeep::clock_is_set", "the host VM has no program that sets the clock, and nobody to ask for the time"),
    warn(
        "upkeep::journal",
        ("a-journal-that-ends-with-the-boot", "journal"),
        "mv /var/log/journal /var/log/bench-journal",
        "it ends with the boot",
    )
    .after("rm -r /var/log/journal && mv /var/log/bench-journal /var/log/journal && journalctl --rotate"),
    fail(
        "upkeep::loop_devices",
        ("no-loop-devices", "loop devices"),
        // The helper holds it, and its unit loads the module.
        "systemctl stop banger-priv.socket banger-priv.service && modprobe --remove loop && rm -f /dev/loop-control",
        "there is no /dev/loop-control",
    )
    .after("systemctl start banger-priv.socket banger-priv.service"),
    not_here("upkeep::loop_devices", "eight hundred thousand loop devices would have to be made"),
    fail(
        "network::forwarding",
        ("the-host-does-not-forward", "forwarding"),
        "sysctl --quiet --write net.ipv4.ip_forward=0",
        "is not 1",
    ),
    fail("network::link", ("the-link-is-gone", "link of the VMs"), "ip link delete br-fc", "there is no br-fc"),
    warn(
        "network::tracking",
        ("too-few-tracked-connections", "connection tracking"),
        "sysctl --values net.netfilter.nf_conntrack_max > /run/bench-tracked && \
         sysctl --quiet --write net.netfilter.nf_conntrack_max=1000",
        "nf_conntrack_max is 1000",
    )
    .after(
        "sysctl --quiet --write net.netfilter.nf_conntrack_max=$(cat /run/bench-tracked) && \
         rm /run/bench-tracked /etc/sysctl.d/zz-nf-conntrack.conf /etc/modules-load.d/zz-nf-conntrack.conf",
    ),
    warn(
        "network::neighbours",
        ("a-small-table-of-neighbours", "neighbour table"),
        "sysctl --quiet --write net.ipv4.neigh.default.gc_thresh3=1024",
        "gc_thresh3 is 1024",
    )
    .after("rm /etc/sysctl.d/zz-neighbours.conf"),
    fail("network::resolver", ("a-resolver-of-the-host-alone", "resolver"), SET, "answers none of them"),
    warn("network::resolver", ("a-resolver-that-is-not-public", "resolver"), SET_PRIVATE, "no public address"),
    fail(
        "subnet::routes",
        ("a-route-into-the-network", "routes"),
        "ip link add bench-vpn type dummy && ip address add 172.16.5.1/12 dev bench-vpn && ip link set bench-vpn up",
        "172.16.0.0/12 by bench-vpn",
    )
    .after("ip link delete bench-vpn"),
    warn(
        "subnet::routes",
        ("a-network-beside-ours", "routes"),
        "ip link add bench-lan type dummy && ip address add 172.16.40.1/24 dev bench-lan && ip link set bench-lan up",
        "172.16.40.0/24 by bench-lan",
    )
    .after("ip link delete bench-lan"),
    not_here("subnet::free_addresses", "more than three thousand VMs would have to be made"),
    warn(
        "subnet::addresses",
        ("a-vm-with-an-earlier-address", "addresses of VMs"),
        "runuser -u alice -- banger vm run --detach --name moved --image tiny --vcpu 1 --memory 256M \
         --root-size 128M --disk-size 64M && \
         sed -i -e '/^bridge_ip *=/d' -e '1i bridge_ip = \"10.77.0.1\"' /etc/banger/banger.toml && \
         systemctl restart banger-priv bangerd",
        "1 of the VMs",
    )
    .asked_in(ALICE)
    .meaning(" VM ", " moved ")
    .after("runuser -u alice -- banger vm delete moved"),
    warn(
        "neighbours::drops",
        ("ufw-without-the-timer", "neighbour ufw"),
        "sed -i 's/^ENABLED=.*/ENABLED=yes/' /etc/ufw/ufw.conf && systemctl disable --now banger-host-firewall.timer",
        "is not enabled",
    )
    .after("sed -i 's/^ENABLED=.*/ENABLED=no/' /etc/ufw/ufw.conf"),
    // firewalld itself is not in the host VM; its command is played.
    fail(
        "neighbours::firewalld",
        ("firewalld-without-the-zone", "neighbour firewalld"),
        "mkdir /sys/fs/cgroup/system.slice/firewalld.service && \
         mv /usr/lib/firewalld/zones/banger.xml /run/bench-zone && ln -s /bin/true /usr/local/bin/firewall-cmd",
        "zone of banger is missing",
    )
    .after("rmdir /sys/fs/cgroup/system.slice/firewalld.service; rm -r /run/bench-zone /usr/local/bin/firewall-cmd"),
    not_here("neighbours::vpn", "what mends it is a setting of the VPN's own"),
    warn(
        "neighbours::timer",
        ("the-timer-is-not-enabled", "host firewall"),
        "systemctl disable --now banger-host-firewall.timer",
        "is not enabled",
    ),
    not_here("names::own", "a daemon that has its port answers there"),
    fail(
        "names::taken",
        ("the-port-of-names-is-taken", "names of VMs"),
        // systemd keeps the daemon's sockets.
        "systemctl stop bangerd.socket bangerd.service && systemctl clean --what=fdstore bangerd.service && \
         systemd-run --quiet --unit=bench-port socat TCP4-LISTEN:42069,bind=127.0.0.1,fork,reuseaddr EXEC:true && \
         sleep 2 && systemctl start bangerd.socket bangerd.service",
        "uid 0 has that port",
    )
    .after("systemctl stop bench-port"),
    not_here("names::resolver", "what mends it is a resolver, and the host VM's network is closed"),
    warn(
        "names::resolver",
        ("a-resolver-that-does-not-ask", "names through the resolver"),
        "systemctl start systemd-resolved.service && systemctl start banger-resolver.service && \
         /usr/libexec/banger/resolver-link remove",
        "does not ask for names of VMs",
    )
    .after(RESOLVED_OFF),
];
