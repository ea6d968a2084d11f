//! What an image's configuration says, applied to commands and to logins, by the whole agent.
//!
//! Needs `ssh` and `ssh-keygen`; without them each test says that it is skipped.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use banger_policy::ImageConfig;
use guest::{Guest, text};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn image(folder: &std::path::Path) -> ImageConfig {
    ImageConfig {
        env: vec![
            format!("PATH={}/opt:/usr/bin:/bin", folder.display()),
            "GREETING=two\nlines".into(),
            "HOME=/of/the/image".into(),
        ],
        working_dir: Some(folder.join("srv/app").display().to_string()),
        ..ImageConfig::default()
    }
}

#[test]
fn a_command_has_the_images_variables_and_folder_and_no_shell() {
    let folder = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::of_image(image(folder.path()), "") else { return };
    // Of a program that only the image's PATH leads to.
    let program = folder.path().join("opt/show");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::write(&program, "#!/bin/sh\npwd\necho \"$GREETING|$HOME\"\nprintf '%s|' \"$@\"\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = guest.exec(&["show", "a b", "$HOME", "*", "", "it's", ";", "&&"]);
    let expected = format!("{}/srv/app\ntwo\nlines|/of/the/image\na b|$HOME|*||it's|;|&&|", folder.path().display());
    assert_eq!(said.out, expected, "{}", said.err);
    assert!(folder.path().join("srv/app").is_dir(), "the image's folder is made");
    // A builtin of shells is no program, and a word that a shell would expand is a word.
    for (words, status, said) in [
        (&["nonesuch"][..], 127, "nonesuch: there is no such program in "),
        (&["exit", "3"], 127, "exit:"),
        (&["./srv"], 127, "./srv:"),
        (&["/etc"], 126, "/etc:"),
    ] {
        let refused = guest.exec(words);
        assert_eq!(refused.status, status, "{words:?}: {refused:?}");
        assert!(refused.err.starts_with(said), "{words:?}: {refused:?}");
    }
}

#[test]
fn a_login_is_roots_with_the_images_variables() {
    let folder = tempfile::tempdir().unwrap();
    let config = ImageConfig { user: Some("nobody-knows".into()), ..image(folder.path()) };
    let Some(guest) = Guest::of_image(config, "") else { return };
    let said = guest.ssh(&[], &["pwd; echo \"$HOME|$USER|$GREETING\""]).output().unwrap();
    let home = guest.folder.path().display();
    assert_eq!(text(&said), format!("{home}\n{home}|root|two\nlines\n"), "{}", errors(&said));
}

#[test]
fn a_user_that_is_not_there_is_named_with_what_to_do() {
    let config = ImageConfig { user: Some("app".into()), ..ImageConfig::default() };
    let Some(guest) = Guest::of_image(config, "") else { return };
    let refused = guest.exec(&["id"]);
    assert_eq!(refused.status, 126);
    let said = refused.err;
    assert!(said.contains("there is no user \"app\" in the guest's /etc/passwd") && said.contains("-u root"), "{said}");
}

#[test]
fn a_command_runs_as_the_images_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: not root: only root can become another user");
        return;
    }
    let config = ImageConfig { user: Some("app".into()), ..ImageConfig::default() };
    let Some(guest) = Guest::of_image(config, "app:x:4711:4712::/nonexistent:/bin/sh\n") else { return };
    std::fs::write(guest.path("group"), "staff:x:4750:app\nother:x:4751:root\n").unwrap();
    let script = "id -u; id -g; id -G; echo $HOME $USER; pwd; echo open > /dev/stdout; cat /proc/self/oom_score_adj";
    let said = guest.exec(&["sh", "-c", script]);
    assert_eq!(said.out, "4711\n4712\n4712 4750\n/nonexistent app\n/\nopen\n0\n", "{}", said.err);
}
