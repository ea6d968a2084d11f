//! Images of other kinds than the tiny tar: one with its own init, and an OCI layout of two layers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "images",
    about: "an image that boots its own systemd; an OCI layout with whiteouts",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("debian-boots-its-own-systemd", own_systemd),
        Scenario::new("oci-layout-with-whiteout", oci_layout),
    ]
}

const SIZE: &[&str] = &["--vcpu", "1", "--memory", "512M", "--root-size", "1G", "--disk-size", "64M"];

fn own_systemd(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.step("import", |scene| {
        let words = ["image", "import", "/srv/bench/debian-systemd.tar", "--name", "systemd", "--size", "1G"];
        scene.banger_long("alice", &words)?.ok().map(drop)
    })?;
    let words = [&["vm", "run", "--detach", "--name", "own-init", "--image", "systemd"], SIZE].concat();
    scene.step("boot", |scene| scene.banger_long("alice", &words)?.ok().map(drop))?;
    let guest = Guest::known(scene, "alice", "own-init")?;
    scene.step("systemd is PID 1 and comes up with the agent beside it", |scene| {
        guest.shell(scene, "cat /proc/1/comm")?.ok()?.says("systemd")?;
        // It waits 90 s for the device of its serial getty when its udev is slow, which it is in an emulated guest.
        scene.wait_until("systemd is up in the guest", Duration::from_secs(75), || {
            let state = guest.shell(scene, "systemctl is-system-running; :")?.ok()?.stdout;
            Ok((!["running", "degraded"].contains(&state.trim())).then_some(state))
        })?;
        guest.shell(scene, "hostname && findmnt -n -o FSTYPE /root")?.ok()?.says("own-init")?.says("ext4").map(drop)
    })?;
    scene.step("a clean stop is systemd's own", |scene| {
        let stopped = guest.order(scene, "stop")?.ok()?;
        guest.is(scene, "stopped")?;
        // The product itself warns when it had to end the guest. What the guest's kernel says last depends on the VMM: one that
        // offers no way to power off makes it halt.
        ensure!(!stopped.stderr.contains("warning:"), "systemd has not gone down by itself: {stopped}");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "systemd"])?.ok()?;
    scene.passed()
}

fn oci_layout(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let folder = Path::new("/srv/bench/oci");
    write_layout(folder)?;
    let words = ["image", "import", "/srv/bench/oci", "--name", "layered", "--size", "512M"];
    scene.banger_long("alice", &words)?.ok()?;
    fs::remove_dir_all(folder)?;
    let words = [&["vm", "run", "--detach", "--name", "layered", "--image", "layered"], SIZE].concat();
    scene.banger_long("alice", &words)?.ok()?;
    let guest = Guest::known(scene, "alice", "layered")?;
    guest.shell(scene, "cat /etc/upper")?.ok()?.says("upper")?;
    guest.shell(scene, "test ! -e /etc/bench-release && test -e /etc/passwd")?.ok()?;
    guest.shell(scene, "ls /odd")?.ok()?.says("only this")?.does_not_say("owned by others")?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "layered"])?.ok()?;
    scene.passed()
}

/// OCI image-spec 1.1, "Image Layout": the tiny image as the lower layer; above it a file, a whiteout and an opaque folder.
fn write_layout(folder: &Path) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    let blob = |bytes: &[u8]| -> Result<(String, usize)> {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).context("write a blob")?;
        Ok((format!("sha256:{hex}"), bytes.len()))
    };
    let lower = blob(&fs::read("/srv/bench/tiny.tar").context("read the tiny image")?)?;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in
        [("etc/upper", "upper\n"), ("etc/.wh.bench-release", ""), ("odd/.wh..wh..opq", ""), ("odd/only this", "x")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).context("write the upper layer")?;
    }
    let upper = blob(&tar.into_inner().context("finish the upper layer")?)?;
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [lower.0.as_str(), upper.0.as_str()]}});
    let config = blob(config.to_string().as_bytes())?;
    let described = |kind: &str, (digest, size): &(String, usize)| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", &config),
        "layers": [described("layer.v1.tar", &lower), described("layer.v1.tar", &upper)]});
    let manifest = blob(manifest.to_string().as_bytes())?;
    let index = json!({"schemaVersion": 2, "manifests": [described("manifest.v1+json", &manifest)]});
    fs::write(folder.join("index.json"), index.to_string()).context("write the index")?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("write the layout's mark")
}
