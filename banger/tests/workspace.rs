//! Repositories and copies, by the real program and a fake daemon whose guest is a folder.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]
#![allow(dead_code, reason = "the fake has more than this test uses")]

mod fake;

use banger_policy::lifecycle::State;
use fake::{Fake, vm};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn git(folder: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=Alice", "-c", "user.email=alice@example.org"]).args(words);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{words:?}: {}", text(&ran.stderr));
    text(&ran.stdout).trim().to_owned()
}

/// A running VM, and a repository.
fn world() -> (Fake, tempfile::TempDir, PathBuf) {
    let fake = Fake::start(vec![vm("demo", State::Running), vm("other", State::Stopped)]);
    let host = tempfile::tempdir().unwrap();
    let repo = host.path().join("tool");
    fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "--quiet", "-b", "main"]);
    fs::write(repo.join("file"), "one\n").unwrap();
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "--quiet", "-m", "first"]);
    (fake, host, repo)
}

fn ran(fake: &Fake, words: &[&str]) -> Output {
    fake.banger(words).output().unwrap()
}

fn ok(fake: &Fake, words: &[&str]) -> String {
    let output = ran(fake, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_repository_goes_in_and_a_patch_comes_out() {
    let (fake, _host, repo) = world();
    let path = repo.to_str().unwrap();
    let prepared = ok(&fake, &["vm", "workspace", "prepare", "demo", path, "--json"]);
    let prepared: serde_json::Value = serde_json::from_str(&prepared).unwrap();
    let folder = fake.guest_home().join("tool");
    assert_eq!(prepared["guest_path"], folder.to_str().unwrap());
    for name in ["vm_id", "source_path", "repo_root", "repo_name", "mode", "head_commit", "current_branch"] {
        assert!(prepared[name].is_string(), "{name}: {prepared}");
    }
    for name in ["branch_name", "base_commit", "base_tree", "prepared_at"] {
        assert!(prepared[name].is_string(), "{name}: {prepared}");
    }
    let shown: serde_json::Value = serde_json::from_str(&ok(&fake, &["vm", "show", "demo", "--json"])).unwrap();
    assert_eq!(shown["workspace"], prepared);
    fs::write(folder.join("file"), "one\ntwo\n").unwrap();
    let patch = ok(&fake, &["vm", "workspace", "export", "demo"]);
    assert!(patch.contains("+two") && patch.starts_with("diff --git a/file b/file"), "{patch}");
    assert!(ok(&fake, &["vm", "workspace", "export", "demo", "--diff"]).contains("file | 1 +"));
    ok(&fake, &["vm", "workspace", "export", "demo", "--branch", "theirs"]);
    assert_eq!(git(&repo, &["show", "theirs:file"]), "one\ntwo");
    let none = ran(&fake, &["vm", "workspace", "export", "other"]);
    assert!(text(&none.stderr).contains("other is stopped"), "{}", text(&none.stderr));
}

#[test]
fn commands_start_in_the_workspace_and_hear_of_a_head_that_moved() {
    let (fake, _host, repo) = world();
    let path = repo.to_str().unwrap();
    ok(&fake, &["vm", "workspace", "prepare", "demo", path]);
    let folder = fake.guest_home().join("tool");
    let said = |words: &[&str]| {
        let output = ran(&fake, &[&["vm", "exec", "-n"], words, &["demo", "--", "said"]].concat());
        (fake.state().calls.pop().unwrap_or_default(), text(&output.stderr))
    };
    let (call, told) = said(&[]);
    assert!(call.starts_with(&format!("Some({folder:?})")) && told.is_empty(), "{call} {told}");
    assert!(said(&["-w", "/srv"]).0.starts_with("Some(\"/srv\")"));
    git(&repo, &["commit", "--quiet", "--allow-empty", "-m", "second"]);
    assert!(said(&[]).1.contains("has moved from"));
    let output = ran(&fake, &["vm", "exec", "--json", "-n", "demo", "--", "exit", "4"]);
    let told: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        told[0]["event"] == "warning" && told[0]["message"].as_str().unwrap().contains("has moved from"),
        "{told:?}"
    );
    assert_eq!((&told[1]["event"], output.status.code()), (&"exit".into(), Some(4)));
    let (_, told) = said(&["--auto-prepare"]);
    assert!(told.contains("prepared") && told.contains("again"), "{told}");
    assert_eq!(said(&[]).1, "");
    // Wherever the command starts.
    git(&repo, &["commit", "--quiet", "--allow-empty", "-m", "third"]);
    let (call, told) = said(&["--auto-prepare", "-w", "/srv"]);
    assert!(call.starts_with("Some(\"/srv\")") && told.contains("prepared"), "{call} {told}");
}

/// The administrator's configuration, and one of the two files that it names.
fn configure(fake: &Fake) -> PathBuf {
    fs::write(fake.socket().with_file_name(".netrc"), "secret").unwrap();
    let config = fake.socket().with_file_name("banger.toml");
    let entry = |host: &str, guest: &str| format!("[[file_sync]]\nhost = \"{host}\"\nguest = \"{guest}\"\n");
    fs::write(&config, entry("~/.netrc", "/root/.netrc") + &entry("~/missing", "~/missing")).unwrap();
    fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    config
}

/// Who speaks for the daemon names no repository of the user's.
#[test]
fn a_workspace_that_was_not_prepared_from_here_opens_no_repository() {
    let (fake, host, repo) = world();
    let path = repo.to_str().unwrap();
    ok(&fake, &["vm", "workspace", "prepare", "demo", path]);
    let private = host.path().join("private");
    assert!(Command::new("cp").arg("-a").args([&repo, &private]).status().unwrap().success());
    git(&private, &["commit", "--quiet", "--allow-empty", "-m", "secret"]);
    {
        let mut state = fake.state();
        let vm = state.vms.iter_mut().find(|vm| vm.name.as_str() == "demo").unwrap();
        let workspace = vm.workspace.as_mut().unwrap();
        for text in [&mut workspace.repo_root, &mut workspace.source_path] {
            *text = private.to_str().unwrap().to_owned();
        }
    }
    let output = ran(&fake, &["vm", "exec", "-n", "demo", "--", "said"]);
    assert_eq!(text(&output.stderr), "", "it looked for a HEAD that has moved");
    for words in
        [&["vm", "exec", "-n", "--auto-prepare", "demo", "--", "said"][..], &["vm", "workspace", "export", "demo"]]
    {
        let output = ran(&fake, words);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains("by another user, machine or home"), "{told}");
    }
    // Nor does a prepare of another repository, whose filters would be run.
    let alarm = host.path().join("alarm");
    git(&private, &["config", "filter.x.clean", &format!("touch {}", alarm.display())]);
    fs::write(private.join(".git/info/attributes"), "* filter=x\n").unwrap();
    // Git knows the empty tree in every repository.
    let empty = git(&private, &["hash-object", "-t", "tree", "/dev/null"]);
    fake.state().vms.iter_mut().filter_map(|vm| vm.workspace.as_mut()).for_each(|one| one.base_tree.clone_from(&empty));
    fs::write(fake.guest_home().join("tool/file"), "work of hours\n").unwrap();
    let output = ran(&fake, &["vm", "workspace", "prepare", "demo", path]);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("is not known here") && told.contains("vm cp"), "{told}");
    assert!(!alarm.exists(), "a repository was opened that nobody has named here");
}

#[test]
fn what_is_not_the_callers_own_gets_no_repository() {
    let (fake, _host, repo) = world();
    fake.state().vms.iter_mut().for_each(|vm| (vm.owner, vm.owner_name) = (4711, "bob".into()));
    let output = ran(&fake, &["vm", "workspace", "prepare", "demo", repo.to_str().unwrap()]);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("only its owner") && told.contains("vm cp"), "{told}");
    assert_eq!(fs::read_dir(fake.guest_home()).unwrap().count(), 0);
    assert!(fake.state().calls.iter().all(|call| !call.starts_with("workspace")));
}

#[test]
fn who_commits_in_a_new_vm_is_its_user() {
    let (fake, _host, _) = world();
    let run = |words: &[&str]| {
        let mut banger = fake.banger(words);
        banger.env("GIT_CONFIG_SYSTEM", "/dev/null").env("GIT_AUTHOR_NAME", "Alice").env("EMAIL", "alice@example.org");
        let output = banger.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let config = fake.guest_home().join(".gitconfig");
    run(&["vm", "run", "--name", "one", "--", "exit", "0"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "[user]\n\tname = \"Alice\"\n\temail = \"alice@example.org\"\n");
    // An image's own stays, and another user's VM gets none.
    fs::write(&config, "[user]\n").unwrap();
    run(&["vm", "run", "--name", "two", "--", "exit", "0"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "[user]\n");
    fs::remove_file(&config).unwrap();
    fake.state().owner = Some(4711);
    run(&["vm", "create", "--name", "theirs"]);
    run(&["vm", "start", "theirs"]);
    assert!(!config.exists());
}

#[test]
fn configured_files_that_do_not_go_are_said() {
    let (fake, _host, _) = world();
    let config = configure(&fake);
    let banger = |words: &[&str]| {
        let mut banger = fake.banger(words);
        banger.env("BANGER_CONFIG", &config);
        banger
    };
    let warning = |output: &Output| text(&output.stderr).contains("warning: file_sync was not applied to new:");
    ok(&fake, &["vm", "create", "--name", "new"]);
    // They take for ever: an interruption ends that.
    fake.state().stuck = true;
    let child = banger(&["vm", "start", "new"]).spawn().unwrap();
    while fake.state().calls.last().is_none_or(|call| call != "files") {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code() == Some(130) && warning(&output), "{output:?}");
    fake.state().stuck = false;
    for (state, warns) in [(State::Error, true), (State::Stopped, false)] {
        fake.state().vms.iter_mut().filter(|vm| vm.name.as_str() == "new").for_each(|vm| vm.state = state);
        let output = banger(&["vm", "start", "new"]).output().unwrap();
        assert!(output.status.success() && warning(&output) == warns, "{state}: {output:?}");
    }
    assert!(!fake.guest_home().join(".netrc").exists());
}

#[test]
fn a_new_vm_gets_its_users_files_and_repository() {
    let (fake, _host, repo) = world();
    let config = configure(&fake);
    let ran = |fake: &Fake, words: &[&str]| fake.banger(words).env("BANGER_CONFIG", &config).output().unwrap();
    let path = repo.to_str().unwrap();
    let dry = ok(&fake, &["vm", "run", "--dry-run", path]);
    assert!(dry.contains("1 files") && dry.contains("branch main at") && fake.state().calls.is_empty(), "{dry}");
    let output = ran(&fake, &["vm", "run", "--name", "new", "--branch", "fix", path, "--", "exit", "3"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let told = text(&output.stderr);
    assert!(told.contains("~/missing is not here") && told.contains("workspace"), "{told}");
    let home = fake.guest_home();
    assert_eq!(fs::read_to_string(home.join(".netrc")).unwrap(), "secret");
    assert_eq!(fs::read_to_string(home.join("tool/.git/HEAD")).unwrap(), "ref: refs/heads/fix\n");
    // Somebody else's, whom an administrator helps: none of the administrator's files goes there.
    fs::remove_file(home.join(".netrc")).unwrap();
    fake.state().owner = Some(4711);
    assert!(ran(&fake, &["vm", "create", "--name", "theirs"]).status.success());
    let output = ran(&fake, &["vm", "start", "theirs"]);
    assert!(output.status.success() && !text(&output.stderr).contains("~/missing"), "{}", text(&output.stderr));
    assert!(!home.join(".netrc").exists());
    // What cannot be prepared leaves no VM, unless it is to be kept.
    let refused = ran(&fake, &["vm", "run", "--name", "none", "/etc"]);
    assert_eq!((refused.status.code(), fake.state().calls.last().unwrap().as_str()), (Some(1), "delete none"));
    let kept = ran(&fake, &["vm", "run", "--keep-on-error", "--name", "kept", "/etc"]);
    assert!(text(&kept.stderr).contains("kept is kept; remove it: banger vm delete kept"), "{}", text(&kept.stderr));
    // A program is told of the VM as it is then.
    fs::remove_dir_all(home.join("tool")).unwrap();
    fake.state().owner = None;
    let output = ran(&fake, &["vm", "run", "--json", "--name", "told", path, "--", "exit", "0"]);
    let told: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| told.iter().find(|one| one["event"] == event).unwrap_or(&serde_json::Value::Null);
    assert!(of("ready")["vm"]["workspace"]["guest_path"].is_string(), "{told:?}");
    assert_eq!(of("ready")["vm"]["workspace"]["guest_path"], of("workspace")["guest_path"]);
}

#[test]
fn files_are_copied_both_ways() {
    let (fake, host, repo) = world();
    ok(&fake, &["vm", "cp", repo.to_str().unwrap(), "demo:/root/copy"]);
    assert!(fake.guest_home().join("copy/.git/HEAD").exists());
    let back = host.path().join("back");
    ok(&fake, &["vm", "cp", "demo:/root/copy/file", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(back).unwrap(), "one\n");
    let stopped = ran(&fake, &["vm", "cp", "other:/x", "-"]);
    assert!(text(&stopped.stderr).contains("other is stopped"), "{}", text(&stopped.stderr));
    let missing = ran(&fake, &["vm", "cp", "demo:/root/none", "-"]);
    assert!(text(&missing.stderr).contains("in the guest:"), "{}", text(&missing.stderr));
}

#[test]
fn who_is_interrupted_leaves_nothing_of_a_repository_or_a_guest_behind() {
    use nix::sys::signal::{Signal, kill};
    let (fake, host, repo) = world();
    let path = repo.to_str().unwrap();
    fs::write(repo.join(".gitattributes"), "file filter=slow\n").unwrap();
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "--quiet", "-m", "second"]);
    ok(&fake, &["vm", "workspace", "prepare", "demo", path]);
    fs::write(fake.guest_home().join("tool/file"), "theirs\n").unwrap();
    // The user's own filter hangs, with git's outputs in its hands.
    let begun = host.path().join("begun");
    let filter = format!("echo >> {}; sleep 20; cat", begun.display());
    git(&repo, &["config", "filter.slow.clean", &filter]);
    git(&repo, &["commit", "--quiet", "--allow-empty", "-m", "third"]);
    let temporary = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 6] = [
        &["vm", "workspace", "export", "demo"],
        &["vm", "workspace", "prepare", "demo", path],
        &["vm", "exec", "-n", "--auto-prepare", "demo", "--", "said"],
        &["vm", "workspace", "prepare", "--force", "demo", path],
        &["vm", "workspace", "prepare", "--dry-run", "demo", path],
        &["vm", "run", "--dry-run", path],
    ];
    for (number, words) in commands.into_iter().enumerate() {
        fs::write(repo.join("file"), format!("{number}\n").repeat(number + 2)).unwrap();
        let before = fs::read(&begun).unwrap_or_default().len();
        let mut child = fake.banger(words).env("TMPDIR", temporary.path()).spawn().unwrap();
        while fs::read(&begun).unwrap_or_default().len() == before {
            assert!(child.try_wait().unwrap().is_none(), "{words:?} ended");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
        kill(nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143), "{words:?}");
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{words:?} left {left:?}");
    }
}
