//! Root disks that a user makes by herself, with mke2fs, and registers with a kernel of her own.

use anyhow::{Context, Result, ensure};

use crate::suite::guests::{Guest, TINY};
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

const FOLDER: &str = "/srv/registered";
const IMAGE: &str = "registered";

/// With the journal and without a way to grow (`fs/ext4/resize.c`, `ext4_resize_begin`:
/// sparse_super2): the guest says so and boots all the same.
const FIXED: &str = "registered-fixed";

pub(super) fn registered(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let made = made(scene);
    let done = made.and_then(|()| used(scene));
    scene.root(&format!("rm -rf {FOLDER}"))?;
    done?;
    scene.passed()
}

fn made(scene: &mut Scene) -> Result<()> {
    scene.step("file systems by mke2fs, and a disk that is none", |scene| {
        scene.root(&format!(
            "mkdir -p {FOLDER}/tree && tar --numeric-owner -xpf /srv/bench/tiny.tar -C {FOLDER}/tree && cd {FOLDER} && \
             mke2fs -q -t ext4 -d tree own.ext4 64M && mke2fs -q -t ext4 -O ^resize_inode,sparse_super2 -d tree fixed.ext4 64M && \
             {{ printf 'QFI\\373'; head -c 100000 /dev/zero; }} > disk.qcow2 && rm -r tree && chmod -R a+rX ."
        ))
        .map(drop)
    })
}

fn used(scene: &mut Scene) -> Result<()> {
    let kernel = scene.root("echo /boot/vmlinuz-$(uname -r)")?;
    let kernel = kernel.trim();
    scene.step("what is no ext4 is refused with what it is, and leaves no kernel", |scene| {
        let disk = format!("{FOLDER}/disk.qcow2");
        let words = ["image", "register", "--rootfs", &disk, "--kernel", kernel, IMAGE];
        scene.banger_long("alice", &words)?.refused(&["qcow2", "qemu-img convert"])?;
        scene.banger("alice", &["kernel", "show", IMAGE])?.refused(&["no such kernel"]).map(drop)
    })?;
    scene.step("register, with a kernel's file", |scene| {
        let disk = format!("{FOLDER}/own.ext4");
        let words = ["image", "register", "--rootfs", &disk, "--kernel", kernel, IMAGE];
        scene.banger_long("alice", &words)?.ok()?.says("kernel registered")?;
        // The name is taken now, by the image and by its kernel, which stays.
        scene.banger_long("alice", &words)?.refused(&["kernel of the name registered", "--kernel registered"])?;
        let words = ["image", "register", "--rootfs", &disk, IMAGE];
        scene.banger_long("alice", &words)?.refused(&["exists already"])?;
        let image = shown(scene)?;
        ensure!(image["managed"] == false && image["kernel"] == IMAGE && image["build_size"] == 128 << 20, "{image}");
        scene.banger("bob", &["image", "show", IMAGE])?.refused(&["no such image"]).map(drop)
    })?;
    scene.step("a VM of it boots with that kernel, and its root disk is as large as was asked for", |scene| {
        let flags = TINY.get(2..).unwrap_or_default();
        let words = [&["vm", "run", "--detach", "--name", "own", "--image", IMAGE], flags].concat();
        scene.banger_long("alice", &words)?.ok()?;
        let guest = Guest::known(scene, "alice", "own")?;
        let (image, vm) = (shown(scene)?, guest.record(scene)?);
        ensure!(image["kernel_id"].is_string() && image["kernel_id"] == vm["kernel_id"], "{image} {vm}");
        scene.banger_long("alice", &["vm", "exec", "--no-tty", "--no-stdin", "own", "--", "true"])?.ok()?;
        guest.shell(scene, "cat /etc/bench-release && echo kept > /etc/kept && sync")?.ok()?;
        let size = guest.shell(scene, "df -k / | tail -n 1 | tr -s ' ' | cut -d' ' -f2")?.ok()?.stdout;
        let size: u64 = size.trim().parse().with_context(|| format!("the size of the root disk: {size:?}"))?;
        ensure!(size > 80 << 10, "the file system of 64 MiB has not grown: {size} KiB");
        guest.order(scene, "restart")?.ok()?;
        guest.shell(scene, "cat /etc/kept")?.ok()?.says("kept")?;
        scene.banger("alice", &["image", "delete", IMAGE])?.refused(&["VM own"])?;
        guest.delete(scene)
    })?;
    scene.step("promoted by its owner, and shared with its kernel only", |scene| {
        scene.banger("bob", &["image", "promote", IMAGE])?.refused(&["no such image"])?;
        scene.banger("alice", &["image", "promote", IMAGE])?.ok()?.says("managed")?;
        ensure!(shown(scene)?["managed"] == true, "it was promoted");
        scene.banger("alice", &["image", "promote", "--shared", IMAGE])?.refused(&["banger-admin"])?;
        let share = "banger image promote --shared alice/registered";
        let kernels = scene.banger("bob", &["kernel", "list", "--json"])?.ok()?.json()?;
        let id = shown(scene)?["kernel_id"].clone();
        // The package has shared the host's kernel, which may be of the same bytes.
        if !kernels.as_array().is_some_and(|all| all.iter().any(|kernel| kernel["id"] == id)) {
            scene.root_any(share)?.refused(&["banger kernel share alice/registered"])?;
            scene.root("banger kernel share alice/registered")?;
        }
        scene.root(share)?;
        scene.banger("bob", &["image", "show", IMAGE])?.ok()?.says("alice (shared)")?;
        scene.root("banger image promote --private alice/registered")?;
        scene.root("banger kernel share --off alice/registered").map(drop)
    })?;
    scene.step("its kernel goes after it", |scene| {
        scene.banger("alice", &["kernel", "delete", IMAGE])?.refused(&["kernel of image registered"])?;
        scene.banger("alice", &["image", "delete", IMAGE])?.ok()?;
        scene.banger("alice", &["kernel", "delete", IMAGE])?.ok().map(drop)
    })?;
    scene.step("a file system that cannot grow keeps its size, and says so", |scene| {
        let disk = format!("{FOLDER}/fixed.ext4");
        scene.banger_long("alice", &["image", "register", "--rootfs", &disk, FIXED])?.ok()?;
        let flags = TINY.get(2..).unwrap_or_default();
        let words = [&["vm", "run", "--detach", "--name", "fixed", "--image", FIXED], flags].concat();
        scene.banger_long("alice", &words)?.ok()?;
        let guest = Guest::known(scene, "alice", "fixed")?;
        guest.shell(scene, "echo kept > /etc/kept")?.ok()?;
        scene.banger("alice", &["vm", "logs", "fixed"])?.ok()?.says("the root disk keeps its size")?;
        guest.delete(scene)?;
        scene.banger("alice", &["image", "delete", FIXED])?.ok().map(drop)
    })
}

fn shown(scene: &Scene) -> Result<serde_json::Value> {
    scene.banger("alice", &["image", "show", IMAGE, "--json"])?.ok()?.json()
}
