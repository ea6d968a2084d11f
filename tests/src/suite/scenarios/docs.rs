//! The examples of the pages for users and administrators, extracted and run as they stand: a page
//! whose example does not work is wrong.
//!
//! An example is a fenced block that begins with ```` ```sh ````. One that needs what the host VM
//! has not says so there: ```` ```sh not-run: needs a terminal ````.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::Run;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::report::print_line;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "docs",
    about: "the examples of README, guide and admin, as they stand",
    setup: Setup::Vmm,
    scenarios,
};

const README: &str = include_str!("../../../../README.md");
const GUIDE: &str = include_str!("../../../../docs/guide.md");
pub(super) const ADMIN: &str = include_str!("../../../../docs/admin.md");

/// The longest example boots three guests.
const EXAMPLE: Duration = Duration::from_secs(180);

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("readme", |scene| page(scene, "README.md", README, Some("alice"))),
        Scenario::new("guide", |scene| page(scene, "docs/guide.md", GUIDE, Some("alice"))),
        Scenario::new("admin", |scene| page(scene, "docs/admin.md", ADMIN, None)),
    ]
}

fn page(scene: &mut Scene, name: &str, text: &str, user: Option<&str>) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::anything(Kind::File, "/home/alice/*", "the examples write into alice's home folder"));
    if user.is_none() {
        for path in ["/var/lib/banger*", "/etc/group*", "/etc/gshadow*"] {
            scene.allow(Allow::altered(Kind::File, path, "a backup is restored, and bob is put into the group again"));
        }
    }
    prepare(scene)?;
    let ran = run(scene, name, text, user);
    scene.root(&format!("cp -a {KEPT} {CONFIG}; rm {KEPT}; systemctl restart bangerd.service"))?;
    ran?;
    scene.passed()
}

const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/root/banger.toml.kept";

/// A root file system in alice's home, as the pages have one, and sizes of VMs that an emulated
/// host can bear.
fn prepare(scene: &mut Scene) -> Result<()> {
    scene.step("a root file system, and small VMs", |scene| {
        scene.root("install -o alice -g alice -m 0644 /srv/bench/debian.tar /home/alice/debian.tar")?;
        scene.root(&format!(
            "cp -a {CONFIG} {KEPT}; sed -i -e 's/^#:vcpu = .*/vcpu = 1/' -e 's/^#:memory_mib = .*/memory_mib = 384/' \
             -e 's/^#:disk_size = .*/disk_size = \"256M\"/' -e 's/^#:system_overlay_size = .*/system_overlay_size = \"1G\"/' \
             {CONFIG}; systemctl restart bangerd.service"
        ))?;
        ensure!(scene.root(&format!("grep -c '^memory_mib' {CONFIG}"))?.trim() == "1", "the sizes are not set");
        Ok(())
    })
}

fn run(scene: &mut Scene, name: &str, text: &str, user: Option<&str>) -> Result<()> {
    for example in examples(text)? {
        let title = format!("{name}:{}: {}", example.line, example.text.lines().next().unwrap_or_default());
        if let Some(why) = &example.not_run {
            print_line(&format!("  not run: {title} ({why})"));
            continue;
        }
        scene.step(&title, |scene| {
            let line = format!("cd; {}", example.text);
            Run::start(user, &["sh", "-ec", &line])?.wait(scene.limit(EXAMPLE))?.ok().map(drop)
        })?;
    }
    Ok(())
}

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    /// Of its first command.
    line: usize,
    text: String,
    /// Why it cannot run in the host VM.
    not_run: Option<String>,
}

fn examples(page: &str) -> Result<Vec<Example>> {
    const REASON: &str = "not-run: ";
    let mut examples = Vec::new();
    let mut lines = page.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> =
            lines.by_ref().map(|(line, _)| line).take_while(|line| !line.starts_with("```")).collect();
        let not_run = match info.split_once(' ') {
            None if info == "sh" => None,
            Some(("sh", words)) if words.len() > REASON.len() && words.starts_with(REASON) => {
                Some(words[REASON.len()..].to_owned())
            }
            _ if info.starts_with("sh") => bail!("line {number}: {info:?} is neither `sh` nor `sh {REASON}why`"),
            // Another language, or what a program printed.
            _ => continue,
        };
        examples.push(Example { line: number + 1, text: body.join("\n") + "\n", not_run });
    }
    Ok(examples)
}

/// The examples below a heading of a page, up to the next one of its rank.
pub(super) fn below(page: &str, heading: &str) -> Result<Vec<String>> {
    let Some((_, rest)) = page.split_once(&format!("{heading}\n")) else { bail!("there is no {heading:?}") };
    let part = rest.split("\n## ").next().unwrap_or_default();
    Ok(examples(part)?.into_iter().map(|example| example.text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_found_with_their_lines_and_reasons() {
        let page = "text\n```sh\none\ntwo\n```\n```console\nalice$ three\n```\n```sh not-run: no network\nfour\n```\n";
        let found = examples(page).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].line, found[0].text.as_str(), &found[0].not_run), (3, "one\ntwo\n", &None));
        assert_eq!((found[1].line, found[1].not_run.as_deref()), (10, Some("no network")));
        let below = |heading: &str| below(&format!("## A\n{page}\n## B\n```sh\nfive\n```\n"), heading);
        assert_eq!(below("## B").unwrap(), ["five\n"]);
        assert!(below("## A").unwrap().len() == 2 && below("## C").is_err());
        assert!(examples("```sh skipped\n```\n").is_err() && examples("```sh not-run: \n```\n").is_err());
    }

    /// Every command has an example in the guide or, for administrators, in their page.
    #[test]
    fn the_pages_have_an_example_of_every_command() {
        let examples: Vec<Example> = [GUIDE, ADMIN].iter().flat_map(|page| examples(page).unwrap()).collect();
        let man = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/man");
        let mut commands = 0;
        for entry in std::fs::read_dir(man).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let words = name.trim_end_matches(".1").replace("ssh-config", "ssh_config").replace('-', " ");
            let words = words.replace("ssh_config", "ssh-config");
            // `banger` itself; `ps` is `vm list`, and the guide says so.
            if words == "banger" || words == "banger ps" {
                continue;
            }
            commands += 1;
            let shown = examples.iter().any(|example| {
                example.text.lines().any(|line| line.contains(&format!("{words} ")) || line.ends_with(&words))
            });
            assert!(shown, "there is no example of `{words}` in docs/guide.md or docs/admin.md");
        }
        assert!(commands > 40, "{commands}");
    }

    #[test]
    fn the_shell_understands_every_example() {
        for page in [README, GUIDE, ADMIN] {
            let found = examples(page).unwrap();
            assert!(found.len() > 3);
            for example in found {
                let ended = std::process::Command::new("sh").args(["-n", "-c", &example.text]).output().unwrap();
                assert!(ended.status.success(), "line {}: {}", example.line, String::from_utf8_lossy(&ended.stderr));
            }
        }
    }
}
