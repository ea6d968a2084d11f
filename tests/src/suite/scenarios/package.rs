//! What else the packages must do: an older one refuses a newer database, and the .rpm does in a
//! root of its own what the .deb does on the host. (Upgrades and removals under running guests are
//! in `services`, the rest in `install`.)

use anyhow::{Result, ensure};

use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "package",
    about: "a downgrade below the database's schema; the .rpm with its scripts in a root of its own",
    setup: Setup::Package,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("downgrade-refused", downgrade), Scenario::new("rpm-in-a-root", rpm)]
}

const SHIPPED: &str = "/srv/bench/banger.deb";
const NEWER: &str = "/srv/bench/newer.deb";
const DATABASE: &str = "/var/lib/banger/banger.db";
/// A schema that no release has yet.
const FUTURE: u32 = 4000;

fn dpkg(words: &str) -> String {
    format!("DEBIAN_FRONTEND=noninteractive dpkg {words}")
}

fn downgrade(scene: &mut Scene) -> Result<Outcome> {
    scene.step("a package of a higher version is installed", |scene| {
        scene.root(&format!(
            "cd /srv/bench && rm -rf newer && dpkg-deb --raw-extract {SHIPPED} newer && \
             sed -i 's/^Version: .*/Version: 999-1/' newer/DEBIAN/control && \
             dpkg-deb --root-owner-group -Znone --build newer {NEWER} && rm -rf newer"
        ))?;
        scene.root(&dpkg(&format!("--install {NEWER}")))?;
        scene.root("banger vm list").map(drop)
    })?;
    let refused = scene.step("while its database is newer, the shipped package is refused, and says why", |scene| {
        let known = scene.root(&set_schema(FUTURE))?;
        let ended = scene.root_any(&dpkg(&format!("--install {SHIPPED}")))?;
        let words = format!("schema {FUTURE}, this package knows {}", known.trim());
        let refused = ended.refused(&[&words, "nothing has changed", "/var/lib/banger/backups"]);
        scene.root(&set_schema(known.trim().parse()?))?;
        refused?;
        let state = scene.root("dpkg-query --show --showformat '${db:Status-Status} ${Version}' banger")?;
        ensure!(state == "installed 999-1", "after the refusal the package is {state}");
        scene.root("systemctl start bangerd.socket bangerd.service && banger vm list").map(drop)
    });
    let done = refused.and_then(|()| {
        scene.step("with a database that it knows, it is installed, and opens sockets that were lost", |scene| {
            // Units that were masked while they listened say that they listen, and have no socket.
            scene
                .root("for s in banger-priv bangerd; do systemctl mask $s.socket; systemctl unmask $s.socket; done")?;
            scene.root(&dpkg(&format!("--install {SHIPPED}")))?;
            scene.root("banger vm list")?;
            scene.root("grep -q /run/banger/priv.sock /proc/net/unix && systemctl is-active banger-priv").map(drop)
        })
    });
    scene.root(&format!("{}; rm {NEWER}", dpkg("--purge banger")))?;
    done?;
    scene.passed()
}

/// Stops the daemon, so that nothing is left in the write-ahead log, and prints the schema that
/// there was.
fn set_schema(schema: u32) -> String {
    format!(
        "systemctl stop bangerd.socket bangerd.service; sqlite3 {DATABASE} 'PRAGMA user_version'; \
         sqlite3 {DATABASE} 'PRAGMA user_version = {schema}; PRAGMA wal_checkpoint(TRUNCATE)' >/dev/null"
    )
}

/// The root: this host's system below, and what is written to it in memory.
const ROOT: &str = "/run/bench-rpm";
const PACKAGE: &str = "/srv/bench/banger.rpm";

fn rpm(scene: &mut Scene) -> Result<Outcome> {
    if !scene.root_any("command -v rpm")?.status.success() {
        return Ok(Outcome::Skipped("the host VM has no rpm".to_owned()));
    }
    scene.step("a root of its own", |scene| {
        scene.root(&format!(
            "mkdir -p {ROOT}/up {ROOT}/work {ROOT}/root && \
             mount -t overlay rpm -o lowerdir=/,upperdir={ROOT}/up,workdir={ROOT}/work {ROOT}/root && \
             mount --bind /dev {ROOT}/root/dev && mount --bind /proc {ROOT}/root/proc"
        ))
    })?;
    let lived = life(scene);
    scene.root(&format!("umount {ROOT}/root/dev {ROOT}/root/proc; umount {ROOT}/root; rm -rf {ROOT}"))?;
    lived?;
    scene.passed()
}

fn life(scene: &mut Scene) -> Result<()> {
    let rpm = |words: &str| format!("rpm --root {ROOT}/root {words}");
    // Its requirements are packages that dpkg has put there, of which rpm knows nothing.
    let install = rpm(&format!("--install --nodeps {PACKAGE}"));
    let inside = |line: &str| format!("chroot {ROOT}/root sh -ec '{line}'");
    scene.step("the .rpm is installed with its scripts", |scene| {
        let ended = scene.root_any(&install)?.ok()?;
        ensure!(!ended.stderr.contains("scriptlet failed"), "{ended}");
        ended.says("banger is installed.").map(drop)
    })?;
    scene.step("users, groups, folders and units are as the .deb makes them", |scene| {
        scene
            .root(&inside("getent passwd bangerd && getent group banger && getent group banger-admin && id bangerd"))?;
        let owners = scene.root(&inside("stat -c \"%a %U:%G\" /var/lib/banger /var/lib/banger-priv"))?;
        ensure!(owners == "2710 bangerd:root\n700 root:root\n", "{owners}");
        for link in [
            "sockets.target.wants/bangerd.socket",
            "bangerd.service.wants/bangerd-metrics.socket",
            "bangerd.service.wants/bangerd-refused.socket",
            "sockets.target.wants/banger-priv.socket",
            "timers.target.wants/banger-host-firewall.timer",
            "multi-user.target.wants/banger-guests.service",
            "systemd-resolved.service.wants/banger-resolver.service",
        ] {
            scene.root(&format!("test -L {ROOT}/root/etc/systemd/system/{link}"))?;
        }
        let altered = scene.root_any(&rpm("--verify --nodeps banger"))?;
        ensure!(altered.status.success(), "{altered}");
        scene.root(&inside("/usr/libexec/banger/bangerd --check && banger completion bash >/dev/null")).map(drop)
    })?;
    scene.step("it is the older one that refuses a newer database", |scene| {
        // dash's printf knows octal escapes only.
        let bytes: String = FUTURE.to_be_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
        let path = format!("{ROOT}/root{DATABASE}");
        scene.root(&format!(
            "head -c 100 /dev/zero > {path} && printf '{bytes}' | dd of={path} bs=1 seek=60 conv=notrunc status=none"
        ))?;
        let again = rpm(&format!("--install --nodeps --replacepkgs {PACKAGE}"));
        let refused = scene.root_any(&again)?;
        scene.root(&format!("rm {path}"))?;
        refused.refused(&[&format!("schema {FUTURE}, this package knows ")]).map(drop)
    })?;
    scene.step("and it goes, but for its state, users and groups", |scene| {
        let ended = scene.root_any(&rpm("--erase banger"))?.ok()?;
        ensure!(!ended.stderr.contains("scriptlet failed"), "{ended}");
        let left = scene.root(&format!(
            "find {ROOT}/root/usr {ROOT}/root/etc -name '*banger*' -not -name 'banger-bench*' -print; :"
        ))?;
        ensure!(left.is_empty(), "left behind:\n{left}");
        scene.root(&format!("test -d {ROOT}/root/var/lib/banger")).map(drop)
    })
}
