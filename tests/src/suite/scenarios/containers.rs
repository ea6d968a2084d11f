//! Container engines in a guest: Debian's docker and podman, each with an image that comes from a
//! file. They want more of a guest's kernel than anything else does: modules of file systems,
//! networks and firewalls, control groups, namespaces.

use std::time::Duration;

use anyhow::Result;

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "containers",
    about: "Debian's docker and podman run a container in a guest",
    setup: Setup::Neighbours,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("docker-and-podman", docker_and_podman)]
}

/// Debian's minimum with the engines' packages as they lie in the host VM, which is of the same
/// release, and the libraries that their programs name.
const KIT: &str = "set -e; cd /home/alice; cp /srv/bench/debian.tar kit.tar; \
    packages='docker.io docker-cli containerd runc podman conmon crun netavark iptables nftables kmod busybox-static'; \
    dpkg -L $packages $(dpkg-query -W -f '${Package} ' 'golang-github-containers-*' 'libxtables*' 'libnftables*') | sort -u > kit.all; \
    while read file; do if [ -f \"$file\" ]; then echo \"$file\"; fi; done < kit.all | grep -v ^/usr/share/doc > kit.files; \
    grep -E '/s?bin/|/lib/' kit.files | while read file; do ldd \"$file\" 2>/dev/null | grep -o '/lib[^ ]*' || :; done | \
    sed 's#^/lib#/usr/lib#; s#^/usr/lib64/#/usr/lib64/#' | sort -u > kit.libraries; \
    sort -u kit.files kit.libraries > kit.list; \
    tar --append --file kit.tar --absolute-names --transform 's#^/#./#' --files-from kit.list; \
    tar --append --file kit.tar --dereference --absolute-names --transform 's#^/#./#' --files-from kit.libraries \
        /usr/sbin/iptables /usr/sbin/ip6tables /usr/sbin/modprobe; \
    chown alice:alice kit.tar; rm kit.all kit.files kit.libraries kit.list";

/// What a container engine's own pages tell a user without systemd to do.
const PODMAN: &str = "set -e; cd /root; for name in overlay nf_tables tun fuse; do modprobe $name; done; \
    mkdir -p box/bin && cp /usr/bin/busybox box/bin/ && tar -C box -cf box.tar . && \
    podman import box.tar localhost/box && podman save --output saved.tar localhost/box && \
    podman --cgroup-manager cgroupfs run --rm localhost/box /bin/busybox echo 'from podman'";
/// dockerd gives a containerd that it starts itself fifteen seconds, too few under emulation.
const DOCKER: &str = "set -e; cd /root; trap 'echo \"status $?\"; tail -n 40 dockerd.log' EXIT; \
    (containerd > /root/containerd.log 2>&1 < /dev/null &); until ctr version > info 2>&1; do sleep 1; done; \
    (dockerd --containerd /run/containerd/containerd.sock > /root/dockerd.log 2>&1 < /dev/null &); docker() { timeout 100 /usr/bin/docker \"$@\"; }; \
    n=0; until docker info > info 2>&1; do n=$((n+1)); if [ $n = 100 ]; then cat info; exit 1; fi; sleep 1; done; \
    grep -i 'storage driver' info; docker load --input saved.tar && \
    docker run --rm localhost/box /bin/busybox echo 'from docker' && \
    docker run --rm localhost/box /bin/busybox ip -o address show dev eth0";

/// Four times that under emulation, where docker itself takes minutes to start.
const ENGINE: Duration = Duration::from_secs(150);

fn docker_and_podman(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.step("a Debian image with both engines", |scene| {
        scene.root(KIT)?;
        let import = ["image", "import", "/home/alice/kit.tar", "--name", "engines", "--size", "2G"];
        scene.banger_long("alice", &import)?.ok()?;
        let run = ["vm", "run", "--detach", "--name", "engines", "--image", "engines", "--memory", "1G"];
        let run = [&run[..], &["--root-size", "2G", "--disk-size", "512M"]].concat();
        scene.banger_long("alice", &run)?.ok().map(drop)
    })?;
    let guest = Guest::known(scene, "alice", "engines")?;
    for (title, line, says) in [
        ("podman runs a container of an image from a file", PODMAN, "from podman\n"),
        ("docker runs one of the image that podman has saved", DOCKER, "from docker\n"),
    ] {
        scene.step(title, |scene| {
            let words = ["vm", "exec", "--no-tty", "--no-stdin", guest.name, "--", "sh", "-c", line];
            let said = scene.start_banger("alice", &words)?.wait(scene.limit(ENGINE))?;
            said.ok()?.says(says).map(drop)
        })?;
    }
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "engines"])?.ok()?;
    scene.user("alice", "rm ~/kit.tar")?.ok()?;
    scene.passed()
}
