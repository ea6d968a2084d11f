//! What the host VM and the guest images are made of. Pure data: the image builder hashes it, so a
//! changed recipe makes a new image.
//!
//! Must not name a package mirror: that comes from the machine's own apt configuration (see
//! [`super::apt`]).

/// Debian release of the host VM and of the guest images. The floor of the product is Linux 6.12
/// and systemd 254; trixie has 6.12 and 257.
pub(super) const SUITE: &str = "trixie";

/// Packages of the host VM beyond `minbase`.
pub(super) const HOST_PACKAGES: &[&str] = &[
    // The system that a multi-user host has.
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "polkitd",
    "sudo",
    "procps",
    "kmod",
    "util-linux",
    "linux-image-cloud-amd64",
    // What the product talks to, seen from outside: for the inventory and for scenarios.
    "iproute2",
    "iptables",
    "nftables",
    "dmsetup",
    "e2fsprogs",
    "sqlite3",
    "socat",
    // Neighbours: they do nothing until a scenario starts them.
    "systemd-resolved",
    "ufw",
    // The other package, in a root of its own.
    "rpm",
    "strace",
    // What users work with.
    "git",
    "rsync",
    // A stock client for the socket of metrics, as docs/admin.md shows it.
    "curl",
    // How the bench comes in, and what a user's `vm ssh` runs.
    "openssh-server",
    "openssh-client",
    // The engine of the stand-in VMM.
    "qemu-system-x86",
    // Guest material and archives.
    "busybox-static",
    "tar",
    "zstd",
];

/// What a host VM is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every suite but one.
    Plain,
    /// One with [`NEIGHBOURS`], which are as large as everything else together.
    Neighbours,
}

/// Programs of the distribution that make networks and firewall rules of their own, beyond
/// [`HOST_PACKAGES`], and a registry with what fills it. None runs until a scenario starts it.
pub(super) const NEIGHBOURS: &[&str] = &[
    "docker.io",
    "docker-cli",
    "podman",
    "netavark",
    "firewalld",
    "libvirt-daemon-driver-network",
    "libvirt-daemon-config-network",
    "libvirt-clients",
    "network-manager",
    "docker-registry",
    "skopeo",
];

/// As [`HOST_SETUP`]. The bench's own connection is not NetworkManager's business.
pub(super) const NEIGHBOURS_SETUP: &[&str] = &[
    r#"for unit in $(cd "$1/etc/systemd/system" && ls multi-user.target.wants sockets.target.wants | grep -E '^(docker|containerd|firewalld|libvirt|virt|netavark|NetworkManager)'); do chroot "$1" systemctl disable $unit >/dev/null 2>&1; done"#,
    r#"ln -sf /dev/null "$1/etc/systemd/system/NetworkManager-wait-online.service""#,
    r#"mkdir -p "$1/etc/NetworkManager/conf.d" && printf '[keyfile]\nunmanaged-devices=interface-name:eth0\n' > "$1/etc/NetworkManager/conf.d/bench.conf""#,
];

/// Packages of the Debian guest without an init system: `banger-guest` stays PID 1 in it.
pub(super) const GUEST_PACKAGES: &[&str] = &[];

/// Packages of the Debian guest that boots its own systemd. Without udev its serial getty waits 90
/// s for a device that is there.
pub(super) const GUEST_SYSTEMD_PACKAGES: &[&str] = &["systemd", "systemd-sysv", "udev", "dbus"];

/// Users of the host VM: name and uid. None has sudo or group `kvm`; a suite that installs the
/// package puts alice and bob into group `banger`, as an administrator would, and carol never.
pub const USERS: &[(&str, u32)] = &[("alice", 1001), ("bob", 1002), ("carol", 1003)];

/// Size of the host VM's root file system: sparse, so only what is written takes room.
pub(super) const DISK_SIZE: &str = "24G";

/// Shell lines that mmdebstrap runs with `$1` = the root of the host VM.
///
/// Timers are masked because the inventory compares two moments: what the distribution does on its
/// own schedule must not fall between them.
pub(super) const HOST_SETUP: &[&str] = &[
    r#"chroot "$1" systemd-machine-id-setup >/dev/null 2>&1"#,
    r#"echo banger-host > "$1/etc/hostname"; echo "127.0.0.1 localhost banger-host" > "$1/etc/hosts"; rm -f "$1/etc/resolv.conf"; echo "nameserver 127.0.0.1" > "$1/etc/resolv.conf""#,
    r#"echo "/dev/vda / ext4 rw,noatime 0 1" > "$1/etc/fstab""#,
    r#"mkdir -p "$1/var/log/journal" "$1/srv/bench""#,
    r#"for t in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim systemd-tmpfiles-clean man-db logrotate; do ln -sf /dev/null "$1/etc/systemd/system/$t.timer"; done"#,
    r#"ln -sf /dev/null "$1/etc/systemd/system/e2scrub_reap.service""#,
    r#"chroot "$1" systemctl disable systemd-resolved.service ufw.service >/dev/null 2>&1"#,
    r#"rm -f "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap""#,
    // Without PAM a connection of the bench makes no logind session, so no cgroup or user manager
    // comes and goes with it.
    r#"printf 'UsePAM no\nUseDNS no\nMaxSessions 50\n' > "$1/etc/ssh/sshd_config.d/bench.conf""#,
    r#"printf '[Unit]\nDescription=Network and nested virtualisation of the bench\nDefaultDependencies=no\nAfter=systemd-udevd.service local-fs.target\nBefore=ssh.service multi-user.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/srv/bench/boot.sh\n[Install]\nWantedBy=multi-user.target\n' > "$1/etc/systemd/system/banger-bench.service""#,
    r#"chroot "$1" systemctl enable banger-bench.service >/dev/null 2>&1"#,
];

/// Runs in the host VM at every boot, before sshd. Loads only what the bench needs itself:
/// device-mapper, loop and tun are the product's own business (its units must bring them), so they
/// are not loaded here.
pub(super) const HOST_BOOT: &str = "#!/bin/sh\n\
    modprobe virtio_net\n\
    modprobe -q kvm_amd || modprobe -q kvm_intel\n\
    modprobe -q vhost_vsock\n\
    ip addr add 10.0.2.15/24 dev eth0\n\
    ip link set eth0 up\n\
    ip route add default via 10.0.2.2\n\
    exit 0\n";

/// One text that stands for everything above; its hash names the cached image.
pub(super) fn fingerprint(kind: Kind) -> String {
    let more = match kind {
        Kind::Plain => String::new(),
        Kind::Neighbours => format!("{NEIGHBOURS:?}\n{NEIGHBOURS_SETUP:?}\n"),
    };
    format!(
        "{more}{SUITE}\n{HOST_PACKAGES:?}\n{GUEST_PACKAGES:?}\n{GUEST_SYSTEMD_PACKAGES:?}\n{USERS:?}\n{DISK_SIZE}\n{HOST_SETUP:?}\n{HOST_BOOT}\n"
    )
}
