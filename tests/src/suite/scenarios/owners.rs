//! Who owns what when the host's users change, and how much one user may have: asked of the
//! installed package, with the host's own list of users.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::suite::command::{Finished, Run};
use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "owners",
    about: "a uid that is given again, and the limits of one user, also when everything is asked for at once",
    setup: Setup::Still,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("a-uid-that-is-given-again", given_again),
        Scenario::new("limits-hold-at-once-and-after-a-crash", |scene| with_limits(scene, at_once)),
        Scenario::new("limits-of-disks-images-and-jobs", |scene| with_limits(scene, amounts)),
    ]
}

/// The number of erin, and then of dave.
const UID: u32 = 2345;
/// What is nobody's is looked for this often, and stopped.
const NOTICED: Duration = Duration::from_secs(90);

fn given_again(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let user = |name: &str| format!("useradd --create-home --uid {UID} --groups banger {name}");
    scene.root(&user("erin"))?;
    let result = left_by_erin(scene, &user("dave"));
    scene.root("for name in erin dave; do ! id $name 2>/dev/null || userdel --remove $name 2>/dev/null; done")?;
    result?;
    scene.passed()
}

fn left_by_erin(scene: &mut Scene, dave: &str) -> Result<()> {
    let tiny = scene.material("tiny.tar").context("the harness has not brought tiny.tar")?;
    let web = scene.step("erin has an image and a VM that runs, and leaves", |scene| {
        scene.banger_long("erin", &["image", "import", "--name", "hers", "--size", "300M", &tiny])?.ok()?;
        let web = Guest::run(scene, "erin", "web")?;
        scene.root("userdel --remove erin 2>/dev/null; ! id erin 2>/dev/null")?;
        Ok(web)
    })?;
    scene.step("dave, who has her number, sees nothing of it", |scene| {
        scene.root(dave)?;
        ensure!(names(scene, "dave")?.is_empty(), "dave sees VMs");
        for word in ["web", "erin/web", "dave/web", web.id.as_str(), web.id.get(..12).unwrap_or_default()] {
            for verb in ["show", "stop", "start", "delete", "logs"] {
                scene.banger("dave", &["vm", verb, word])?.refused(&["no such VM"])?;
            }
        }
        let images = scene.banger("dave", &["image", "list"])?.ok()?;
        images.does_not_say("hers")?;
        scene.banger("dave", &["image", "delete", "hers"])?.refused(&["hers"])?;
        Ok(())
    })?;
    scene.step("it is stopped, and not started for him", |scene| {
        scene
            .wait_until("erin's VM is stopped", NOTICED, || {
                let shown = scene.banger("root", &["vm", "show", "erin/web", "--json"])?.ok()?.json()?;
                let state = shown["state"].as_str().unwrap_or_default();
                Ok((state != "stopped").then(|| state.to_owned()))
            })
            .map(drop)?;
        scene.banger_long("root", &["vm", "start", "erin/web"])?.refused(&["vm chown"])?;
        Ok(())
    })?;
    scene.step("names are free for him, and an administrator gives what is left", |scene| {
        let his = Guest::create(scene, "dave", "web")?;
        ensure!(his.id != web.id, "dave has erin's VM");
        scene.banger_long("root", &["vm", "chown", "bob", "erin/web"])?.ok()?;
        ensure!(names(scene, "bob")? == ["web"] && names(scene, "dave")? == ["web"], "what is whose is not clear");
        Guest { owner: "bob", ..web.clone() }.delete(scene)?;
        his.delete(scene)?;
        scene.banger("root", &["image", "delete", "erin/hers"])?.ok().map(drop)
    })
}

const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/srv/bench/kept.toml";

/// The limits of these scenarios: small ones for everybody, a larger one for a group that bob
/// joins.
fn with_limits(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> Result<()>) -> Result<Outcome> {
    scene.allow_database_growth();
    let user = "vms = 3\\nrunning = 2\\ndisk = \"2G\"\\nimages = 1\\njobs = 4";
    let change = format!(
        "cp -a {CONFIG} {KEPT}; sed -i 's/^\\[limits.user\\]/&\\n{user}/' {CONFIG}; \
         printf '[limits.groups.many]\\nvms = 5\\njobs = 16\\n' >> {CONFIG}; groupadd many; gpasswd -a bob many; \
         systemctl restart bangerd.service"
    );
    scene.root(&change)?;
    let result = work(scene);
    scene.root(&format!("cp -a {KEPT} {CONFIG}; rm {KEPT}; groupdel many; systemctl restart bangerd.service"))?;
    result?;
    scene.passed()
}

/// How they all ended: how many were done, and what the others were told.
fn ended(scene: &Scene, runs: Vec<Run>) -> Result<(usize, Vec<Finished>)> {
    let runs = runs.into_iter().map(|run| run.wait(scene.limit(NOTICED))).collect::<Result<Vec<_>>>()?;
    let (done, refused): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| run.status.success());
    Ok((done.len(), refused))
}

const ASKED: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

fn started(scene: &Scene, user: &str, words: &[&str]) -> Result<Vec<Run>> {
    let words = |name| [words, &["--name", name], TINY].concat();
    ASKED.iter().map(|name| scene.start_banger(user, &words(name))).collect()
}

fn delete_all(scene: &Scene, user: &str) -> Result<()> {
    for name in names(scene, user)? {
        scene.banger_long(user, &["vm", "delete", &name])?.ok()?;
    }
    Ok(())
}

fn at_once(scene: &mut Scene) -> Result<()> {
    scene.step("seven VMs at once: three, and four refusals that say what to do", |scene| {
        let (done, refused) = ended(scene, started(scene, "alice", &["vm", "create"])?)?;
        ensure!(done <= 3 && names(scene, "alice")?.len() == done, "{done} VMs were made");
        for refused in refused {
            // Of jobs four are allowed at a time: whoever meets that limit may come again.
            let words = if refused.stderr.contains("limit jobs") { "limit jobs is 4" } else { "limit vms is 3" };
            refused.refused(&[words, "[limits.users.alice]", "administrator"])?;
        }
        Ok(())
    })?;
    scene.step("one after the other: the third fits, the fourth does not", |scene| {
        delete_all(scene, "alice")?;
        for name in ["a", "b", "c"] {
            scene.banger_long("alice", &[&["vm", "create", "--name", name], TINY].concat())?.ok()?;
        }
        let fourth = scene.banger_long("alice", &[&["vm", "create", "--name", "d"], TINY].concat())?;
        fourth.refused(&["limit vms is 3", "3 are there"])?;
        scene.banger_long("alice", &["vm", "delete", "b"])?.ok()?;
        scene.banger_long("alice", &[&["vm", "create", "--name", "d"], TINY].concat())?.ok()?;
        Ok(())
    })?;
    scene.step("two of three may run, whoever starts them", |scene| {
        let starts = ["a", "c", "d"].map(|name| scene.start_banger("alice", &["vm", "start", name]));
        let (done, refused) = ended(scene, starts.into_iter().collect::<Result<_>>()?)?;
        ensure!(done == 2, "{done} run");
        refused.into_iter().try_for_each(|refused| refused.refused(&["limit running is 2"]).map(drop))?;
        delete_all(scene, "alice")
    })?;
    scene.step("the daemon dies under seven: not one too many afterwards, and what is there can go", |scene| {
        let runs = started(scene, "alice", &["vm", "create"])?;
        std::thread::sleep(scene.limit(Duration::from_millis(150)));
        scene.root("systemctl kill --kill-whom=main -s KILL bangerd.service")?;
        ended(scene, runs)?;
        ensure!(names(scene, "alice")?.len() <= 3, "{:?}", names(scene, "alice")?);
        delete_all(scene, "alice")?;
        scene.banger_long("alice", &[&["vm", "create", "--name", "after"], TINY].concat())?.ok()?;
        delete_all(scene, "alice")
    })?;
    scene.step("a group has more", |scene| {
        let (done, refused) = ended(scene, started(scene, "bob", &["vm", "create"])?)?;
        ensure!(done == 5, "{done} VMs were made");
        refused
            .into_iter()
            .try_for_each(|refused| refused.refused(&["limit vms is 5", "limits.users.bob"]).map(drop))?;
        delete_all(scene, "bob")
    })
}

fn amounts(scene: &mut Scene) -> Result<()> {
    scene.step("disks count as large as they may become", |scene| {
        let large = ["vm", "create", "--name", "large", "--image", "tiny", "--root-size", "1G", "--disk-size", "2G"];
        scene.banger_long("alice", &large)?.refused(&["limit disk is 2G", "[limits.users.alice]"])?;
        Guest::create(scene, "alice", "small")?;
        for flag in ["--root-size", "--disk-size"] {
            scene.banger_long("alice", &["vm", "set", "small", flag, "2G"])?.refused(&["limit disk is 2G"])?;
        }
        scene.banger_long("alice", &["vm", "set", "small", "--root-size", "1G"])?.ok()?;
        delete_all(scene, "alice")
    })?;
    scene.step("one image, and a second after the first is gone", |scene| {
        let tiny = scene.material("tiny.tar").context("the harness has not brought tiny.tar")?;
        let import = |name| ["image", "import", "--name", name, "--size", "300M", tiny.as_str()];
        scene.banger_long("alice", &import("one"))?.ok()?;
        scene.banger_long("alice", &import("two"))?.refused(&["limit images is 1", "1 are there"])?;
        scene.banger("alice", &["image", "delete", "one"])?.ok()?;
        let runs = ["two", "three", "four"].map(|name| scene.start_banger("alice", &import(name)));
        let (done, refused) = ended(scene, runs.into_iter().collect::<Result<_>>()?)?;
        ensure!(done == 1, "{done} were imported");
        refused.into_iter().try_for_each(|refused| refused.refused(&["limit images is 1"]).map(drop))?;
        scene.user("alice", "for name in two three four; do banger image delete $name; done 2>/dev/null; :")?.ok()?;
        Ok(())
    })
}
