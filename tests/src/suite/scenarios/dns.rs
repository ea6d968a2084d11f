//! Names of VMs, asked by the C library as users do it: at the daemon itself, which then knows who
//! asks, and through systemd-resolved.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "dns",
    about: "names of running VMs, by the C library: whose they are, when they come and go, through systemd-resolved",
    setup: Setup::Still,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("asked-by-users-themselves", asked_directly),
        Scenario::new("through-systemd-resolved", through_resolved),
    ]
}

const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/root/banger.toml.kept";
/// The C library asks port 53 only; the host VM's resolv.conf names 127.0.0.1.
const TAKE_PORT: &str = "sysctl -q -w net.ipv4.ip_unprivileged_port_start=53; cp -a /etc/banger/banger.toml /root/banger.toml.kept; \
    sed -i 's/^listen = .*/listen = \"127.0.0.1:53\"/' /etc/banger/banger.toml; systemctl restart bangerd.service";
/// How long a name may take to come or go.
const SEEN: Duration = Duration::from_secs(10);

/// The address that a user's program finds, by getaddrinfo(3).
fn address(scene: &Scene, user: &str, name: &str) -> Result<Option<String>> {
    let found = scene.user(user, &format!("getent ahostsv4 {name}"))?;
    let line = found.stdout.lines().next().unwrap_or_default();
    Ok(found.status.success().then(|| line.split_whitespace().next().unwrap_or_default().to_owned()))
}

fn asked_directly(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root(TAKE_PORT)?;
    let result = by_users(scene);
    scene.root(&format!(
        "cp -a {KEPT} {CONFIG}; rm {KEPT}; sysctl -q -w net.ipv4.ip_unprivileged_port_start=1024; systemctl restart bangerd.service"
    ))?;
    result?;
    scene.passed()
}

fn by_users(scene: &mut Scene) -> Result<()> {
    let web = Guest::run(scene, "alice", "web")?;
    let record = web.record(scene)?;
    let (name, ip) = ("web.alice.vm", record["runtime"]["guest_ip"].as_str().unwrap_or_default().to_owned());
    scene.step("alice and root find it, bob and carol do not", |scene| {
        ensure!(record["runtime"]["dns_name"] == name, "{record}");
        scene.wait_until("alice finds her VM", SEEN, || {
            let found = address(scene, "alice", name)?;
            Ok((found.as_deref() != Some(&*ip)).then(|| format!("{found:?}")))
        })?;
        ensure!(address(scene, "root", name)?.as_deref() == Some(&*ip), "root does not find it");
        for user in ["bob", "carol"] {
            for name in [name, "none.alice.vm"] {
                let found = address(scene, user, name)?;
                ensure!(found.is_none(), "{user} finds {name}: {found:?}");
            }
        }
        Ok(())
    })?;
    scene.step("the name goes with the run and comes with the next", |scene| {
        web.order(scene, "kill")?.ok()?;
        ensure!(address(scene, "alice", name)?.is_none(), "it does not run");
        web.order(scene, "start")?.ok()?;
        ensure!(address(scene, "alice", name)?.as_deref() == Some(&*ip), "it runs again");
        Ok(())
    })?;
    scene.step("a restart of the daemon loses no name", |scene| {
        scene.root("systemctl restart bangerd.service")?;
        scene
            .wait_until("the name is there again", SEEN, || {
                let found = address(scene, "alice", name)?;
                Ok((found.as_deref() != Some(&*ip)).then(|| format!("{found:?}")))
            })
            .map(drop)
    })?;
    scene.step("nothing else is resolved", |scene| {
        ensure!(address(scene, "alice", "example.com")?.is_none(), "who has answered?");
        Ok(())
    })?;
    web.delete(scene)?;
    ensure!(address(scene, "alice", name)?.is_none(), "it is deleted");
    Ok(())
}

fn through_resolved(scene: &mut Scene) -> Result<Outcome> {
    if scene.root("command -v resolvectl || true")?.trim().is_empty() {
        return Ok(Outcome::Skipped("systemd-resolved is not installed".into()));
    }
    if scene.root("ls /sys/class/net/br-fc 2>/dev/null || true")?.trim().is_empty() {
        return Ok(Outcome::Skipped("this kernel has no dummy links".into()));
    }
    scene.allow_database_growth();
    scene.root("systemctl start systemd-resolved.service")?;
    let result = hooked_up(scene);
    scene.root(
        "/usr/libexec/banger/resolver-link remove; systemctl stop systemd-resolved.service; rm -rf /run/systemd/resolve",
    )?;
    result?;
    scene.passed()
}

fn hooked_up(scene: &mut Scene) -> Result<()> {
    scene.step("the unit tells resolved of one domain, and of no default route", |scene| {
        scene.wait_until("the link has the domain", SEEN, || {
            let said = scene.root("resolvectl domain br-fc; resolvectl dns br-fc; resolvectl default-route br-fc")?;
            let right = said.contains("~vm") && said.contains("127.0.0.1:42069") && said.contains("no");
            Ok((!right).then_some(said))
        })?;
        let others = scene.root("resolvectl domain | grep -v br-fc")?;
        ensure!(!others.contains("vm"), "a link beside ours: {others}");
        Ok(())
    })?;
    let web = Guest::run(scene, "alice", "web")?;
    let record = web.record(scene)?;
    let ip = record["runtime"]["guest_ip"].as_str().unwrap_or_default().to_owned();
    scene.step("every user finds the name through it, as the page for administrators says", |scene| {
        for user in ["alice", "bob"] {
            scene.user(user, "resolvectl query web.alice.vm")?.ok()?.says(&ip)?;
        }
        Ok(())
    })?;
    scene.step("it is told again when it has started again", |scene| {
        scene.root("resolvectl revert br-fc; systemctl restart systemd-resolved.service")?;
        scene
            .wait_until("the name is found again", SEEN, || {
                let found = scene.user("alice", "resolvectl query web.alice.vm")?;
                Ok((!found.status.success()).then(|| found.to_string()))
            })
            .map(drop)
    })?;
    scene.step("an end is seen at once: nobody keeps an answer", |scene| {
        web.order(scene, "kill")?.ok()?;
        let found = scene.user("alice", "resolvectl query web.alice.vm")?;
        ensure!(!found.status.success(), "{found}");
        Ok(())
    })?;
    scene.step("doctor says that it is hooked up", |scene| {
        let checks = scene.banger("alice", &["doctor", "--json"])?.json()?;
        let check = checks.as_array().into_iter().flatten().find(|check| check["name"] == "names through the resolver");
        ensure!(check.is_some_and(|check| check["status"] == "pass"), "{check:?}");
        Ok(())
    })?;
    web.delete(scene)
}
