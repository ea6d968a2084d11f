//! A developer's day: a repository goes into a VM whose image has no git, is worked on there, and
//! comes back.

use anyhow::{Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "workspace",
    about: "repositories in VMs: prepare, work, export; copies",
    setup: Setup::Guests,
    scenarios,
};

/// The size that takes an emulated host its time.
pub(in crate::suite) const LARGE: Suite = Suite {
    name: "workspace-large",
    about: "a repository of a hundred thousand files",
    setup: Setup::Guests,
    scenarios: || vec![Scenario::new("a-hundred-thousand-files", many)],
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("prepared-worked-on-and-exported", round),
        Scenario::new("run-with-a-path", run_path),
        Scenario::new("nothing-of-the-guest-is-lost-or-obeyed", careful),
        Scenario::new("copies-both-ways-and-between", copies),
    ]
}

/// A repository of alice's in `~/tool`, with a change that is not committed.
const REPOSITORY: &str = "cd && rm -rf tool && git init -q -b main tool && cd tool && \
    git config user.name Alice && git config user.email alice@example.org && \
    mkdir src && echo one > src/a.txt && echo two > src/b.txt && printf '#!/bin/sh\\necho built\\n' > build.sh && \
    chmod 755 build.sh && ln -s src/a.txt link && echo 'target/' > .gitignore && git add -A && git commit -qm first && \
    echo changed >> src/b.txt && echo mine > notes";

/// The folder of what the command line has prepared is made once.
fn remembered(scene: &mut Scene) {
    scene.allow(Allow::anything(
        Kind::File,
        "/home/alice/.local*",
        "which repository a VM has is kept in alice's home",
    ));
}

fn round(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    remembered(scene);
    let guest = Guest::run(scene, "alice", "worker")?;
    scene.user("alice", REPOSITORY)?.ok()?;
    let prepared =
        scene.banger_long("alice", &["vm", "workspace", "prepare", "worker", "/home/alice/tool", "--json"])?;
    let prepared = prepared.ok()?.json()?;
    for (name, value) in
        [("guest_path", "/root/tool"), ("mode", "shallow_overlay"), ("branch_name", "main"), ("repo_name", "tool")]
    {
        ensure!(prepared.get(name).is_some_and(|found| found == value), "{name} in {prepared}");
    }
    ensure!(guest.record(scene)?.pointer("/workspace/guest_path").is_some_and(|path| path == "/root/tool"));
    // Commands go there by themselves; nobody had to have git in the guest.
    guest
        .shell(scene, "pwd; ./build.sh; cat src/b.txt; ls notes; test -f .git/HEAD && echo git")?
        .says("/root/tool\nbuilt\ntwo\nchanged\n")?;
    guest
        .shell(scene, "echo done >> src/a.txt; rm build.sh; mkdir -p target; echo x > target/out; echo new > added")?
        .ok()?;
    scene.banger_long("alice", &["vm", "workspace", "export", "worker", "--diff"])?.ok()?.says("added")?;
    let line = "cd ~/tool && banger vm workspace export worker > ../patch && ! grep -q target ../patch && git apply ../patch && \
        cat src/a.txt src/b.txt added && ! test -e build.sh";
    scene.user("alice", line)?.ok()?.says("one\ndone\ntwo\nchanged\nnew\n")?;
    let words = ["vm", "workspace", "export", "worker", "--branch", "from-the-vm"];
    scene.banger_long("alice", &words)?.ok()?;
    scene
        .user("alice", "cd ~/tool && git log --format=%s main..from-the-vm && git show from-the-vm:added")?
        .ok()?
        .says("new")?;
    // HEAD moves on the host, and exec says so.
    scene.user("alice", "cd ~/tool && git commit -qam second")?.ok()?;
    let told = scene.banger_long("alice", &["vm", "exec", "-n", "worker", "--", "true"])?.ok()?;
    ensure!(told.stderr.contains("has moved from"), "{told}");
    guest.delete(scene)?;
    scene.user("alice", "rm -rf ~/tool ~/patch")?.ok()?;
    scene.passed()
}

fn run_path(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    remembered(scene);
    scene.user("alice", REPOSITORY)?.ok()?;
    let dry = scene.banger("alice", &["vm", "run", "--dry-run", "/home/alice/tool"])?.ok()?;
    ensure!(dry.stdout.contains("files") && names(scene, "alice")?.is_empty(), "{dry}");
    let command =
        ["--rm", "--include-untracked", "--branch", "fix", "/home/alice/tool", "--", "cat", "notes", ".git/HEAD"];
    let ran = scene.banger_long("alice", &[&["vm", "run", "--name", "once"], TINY, &command].concat())?.ok()?;
    ensure!(ran.stdout == "mine\nref: refs/heads/fix\n", "{ran}");
    // What is no repository is refused, and leaves no VM.
    let refused = [&["vm", "run", "--name", "none"], TINY, &["--rm", "/etc", "--", "true"]].concat();
    scene.banger_long("alice", &refused)?.refused(&["not a git repository"])?;
    ensure!(names(scene, "alice")?.is_empty());
    scene.user("alice", "rm -rf ~/tool")?.ok()?;
    scene.passed()
}

fn careful(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    remembered(scene);
    let guest = Guest::run(scene, "alice", "careful")?;
    scene.user("alice", REPOSITORY)?.ok()?;
    let prepare = ["vm", "workspace", "prepare", "careful", "/home/alice/tool"];
    scene.banger_long("alice", &prepare)?.ok()?;
    scene.banger_long("alice", &prepare)?.ok()?;
    guest.shell(scene, "echo mine > src/a.txt")?.ok()?;
    scene.banger_long("alice", &prepare)?.refused(&["was changed in the guest", "--force"])?;
    // Links out, a repository inside, hooks: none is followed, looked into or run.
    let line = "rm -rf src && ln -s /etc src && ln -s /etc/shadow shadow && mkdir -p inner/.git .git/hooks && echo x > inner/file && \
        printf '#!/bin/sh\\ntouch /home/alice/alarm\\n' > .git/hooks/post-checkout && chmod 755 .git/hooks/post-checkout";
    guest.shell(scene, line)?.ok()?;
    let exported = scene.banger_long("alice", &["vm", "workspace", "export", "careful"])?.ok()?;
    ensure!(exported.stderr.contains("leads out of the repository") && exported.stderr.contains("inner"), "{exported}");
    ensure!(!exported.stdout.contains("root:"), "{exported}");
    // A git of the guest's own that gives no bundle: to the host's git this would be the way to a
    // repository among the files that were gathered.
    let line = "mkdir -p /usr/local/bin x/objects x/refs && echo 'ref: refs/heads/main' > x/HEAD && \
        printf '[core]\\n\\tbare = true\\n\\tfsmonitor = touch /home/alice/alarm\\n' > x/config && \
        printf '#!/bin/sh\\ncase $1 in rev-parse) printf %%040d 7 ;; *) echo gitdir: tree/x ;; esac\\n' > /usr/local/bin/git && \
        chmod 755 /usr/local/bin/git && test \"$(git bundle)\" = 'gitdir: tree/x'";
    guest.shell(scene, line)?.ok()?;
    let words = ["vm", "workspace", "export", "careful", "--branch", "of-a-false-git"];
    let exported = scene.banger_long("alice", &words)?.ok()?;
    ensure!(exported.stderr.contains("gives something else than its commits"), "{exported}");
    scene
        .user("alice", "cd ~/tool && git show of-a-false-git:x/HEAD && ! test -e ~/alarm")?
        .ok()?
        .says("refs/heads/main")?;
    // Somebody else's VM has no workspace to export.
    scene.banger("bob", &["vm", "workspace", "export", "careful"])?.refused(&["careful"])?;
    guest.delete(scene)?;
    scene.user("alice", "rm -rf ~/tool")?.ok()?;
    scene.passed()
}

fn copies(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guests = [Guest::run(scene, "alice", "left")?, Guest::run(scene, "alice", "right")?];
    let line = "cd && mkdir -p tree/sub && head -c 3000000 /dev/urandom > tree/sub/bytes && ln -s sub/bytes tree/link && \
        chmod 750 tree/sub && truncate -s 30M tree/hole && \
        banger vm cp tree left:/root/tree && banger vm cp left:/root/tree right:/root && \
        banger vm cp right:/root/tree back && diff -r --no-dereference tree back && \
        test $(du -k back/hole | cut -f1) -lt 1000 && banger vm cp left:/root/tree - | tar t | grep sub/bytes && \
        tar c tree | banger vm cp - right:/root/other && banger vm exec right -- ls /root/other/tree/sub/bytes; \
        status=$?; rm -rf tree back; exit $status";
    scene.user("alice", line)?.ok()?;
    scene.banger("alice", &["vm", "cp", "left:/nothing", "/tmp/x"])?.refused(&["/nothing"])?;
    guests[0].order(scene, "stop")?.ok()?;
    scene
        .banger("alice", &["vm", "cp", "left:/etc/hostname", "/tmp/x"])?
        .refused(&["left is stopped", "vm start left"])?;
    for guest in &guests {
        guest.delete(scene)?;
    }
    scene.passed()
}

/// As many files as the largest repositories have; small ones, for the emulation's sake.
fn many(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    remembered(scene);
    let guest = Guest::run_with(scene, "alice", "many", &["--disk-size", "2G"])?;
    let line = "cd && git init -q big && cd big && for d in $(seq 100); do mkdir $d; done && \
        seq 100000 | while read n; do echo $n > $((n % 100 + 1))/$n; done && git add -A && \
        git -c user.name=a -c user.email=a@b commit -qm big && banger vm workspace prepare many . && \
        banger vm exec many -- sh -c 'echo more >> 1/100; find . -type f | grep -vc ./.git' && \
        banger vm workspace export many | grep '^+more'; status=$?; rm -rf ~/big; exit $status";
    let ran = scene.user("alice", line)?.ok()?;
    ensure!(ran.stdout.contains("100000"), "{ran}");
    guest.delete(scene)?;
    scene.passed()
}
