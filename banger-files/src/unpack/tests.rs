//! Archives of the folder's own owner, unpacked as GNU tar does it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use crate::program;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// A guest whose `bin` is a link, as in every image with a merged `/usr`.
fn merged(folder: &Path) {
    fs::create_dir_all(folder.join("usr/bin")).unwrap();
    fs::create_dir(folder.join("sub")).unwrap();
    symlink("usr/bin", folder.join("bin")).unwrap();
    symlink("/usr", folder.join("sub/absolute")).unwrap();
    fs::write(folder.join("usr/bin/tool"), "old").unwrap();
}

/// Paths, kinds, links and contents.
fn look(folder: &Path) -> String {
    let script = "find . -printf '%p %y %l\\n' -type f -exec cat {} ';' | sort";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn tar(script: &str) -> Vec<u8> {
    let from = tempfile::tempdir().unwrap();
    let output = Command::new("sh").args(["-ec", script]).current_dir(from.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn put(folder: &Path, archive: &[u8]) -> Result<Vec<String>, crate::Error> {
    let words = ["put".into(), folder.as_os_str().to_owned()];
    program::run(&words, Path::new("/nonexistent"), &mut &archive[..], &mut Vec::new())
}

#[test]
fn links_of_the_folder_are_followed_as_tar_follows_them() {
    let archive = tar("mkdir -p bin/deep; echo new > bin/tool; echo x > bin/deep/file; ln bin/tool bin/same
        tar c bin/tool bin/same bin/deep");
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    merged(ours.path());
    merged(theirs.path());
    assert_eq!(put(ours.path(), &archive).unwrap(), [""; 0]);
    fs::write(theirs.path().with_extension("tar"), &archive).unwrap();
    let file = theirs.path().with_extension("tar");
    assert!(Command::new("tar").arg("xf").arg(&file).current_dir(theirs.path()).status().unwrap().success());
    fs::remove_file(file).unwrap();
    assert_eq!(look(ours.path()), look(theirs.path()));
    assert_eq!(fs::read_to_string(ours.path().join("usr/bin/tool")).unwrap(), "new\n");
}

#[test]
fn no_link_of_the_folder_leads_out_of_it() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("folder");
    fs::create_dir(&folder).unwrap();
    merged(&folder);
    symlink("../../../..", folder.join("sub/up")).unwrap();
    put(
        &folder,
        &tar("mkdir -p sub/absolute sub/up; echo a > sub/absolute/a; echo b > sub/up/b
        tar c sub/absolute/a sub/up/b"),
    )
    .unwrap();
    assert!(folder.join("usr/a").exists() && folder.join("b").exists());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    // A link that the archive brings counts for what comes after it.
    put(
        &folder,
        &tar("mkdir one; echo 1 > one/file; ln -s usr two; tar cf a.tar two; rm two; mkdir two; echo 2 > two/file
        tar rf a.tar two/file; cat a.tar"),
    )
    .unwrap();
    assert_eq!(fs::read_to_string(folder.join("usr/file")).unwrap(), "2\n");
    // No folder takes the place of a link to a folder, and what comes in it goes there.
    put(&folder, &tar("mkdir bin; echo 3 > bin/third; tar c bin")).unwrap();
    assert!(folder.join("bin").is_symlink() && folder.join("bin/third").exists());
    symlink("nowhere", folder.join("broken")).unwrap();
    assert!(put(&folder, &tar("mkdir broken; tar c broken")).is_err() && folder.join("broken").is_symlink());
}

#[test]
fn what_no_stream_of_ours_carries_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar("mkdir tree; echo 1 > tree/a; mkfifo tree/pipe; echo 2 > tree/z
        tar c tree/a tree/pipe tree/z");
    assert_eq!(put(folder.path(), &archive).unwrap(), ["tree/pipe is left out: a socket, pipe or device"]);
    assert!(folder.path().join("tree/a").exists() && folder.path().join("tree/z").exists());
    assert!(!folder.path().join("tree/pipe").exists());
}
