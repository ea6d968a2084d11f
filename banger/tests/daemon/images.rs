//! Images and kernels: imports, registrations, what is shown of them.

use super::*;

#[test]
fn an_image_is_shown_with_the_names_of_the_contract() {
    let fake = demo();
    let shown = |command: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&fake.banger(command).output().unwrap().stdout).unwrap()
    };
    for image in [shown(&["image", "show", "debian:13", "--json"]), shown(&["image", "list", "--json"])[0].clone()] {
        assert_eq!(image["env"], serde_json::json!(["PATH=/opt/bin:/usr/bin", "BANNER=two\nlines\u{1b}[31m"]));
        assert_eq!((&image["working_dir"], &image["user"]), (&"/srv".into(), &"app".into()));
        assert_eq!(image["entrypoint"], serde_json::json!(["/entry point", "it's"]));
        assert_eq!(image["cmd"], serde_json::json!(["serve", ""]));
        assert!(image["created_at"].is_string() && image.get("config").is_none(), "{image}");
    }
    let missing = fake.banger(&["image", "show", "../x"]).output().unwrap();
    assert_eq!(all(&missing), "banger: cannot show the image ../x: no such image: ../x\nstatus Some(1)\n");
}

#[test]
fn imports_send_what_they_were_given() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rootfs.tar");
    let bytes = vec![7; 3_000_001];
    std::fs::write(&path, &bytes).unwrap();
    let path = path.to_str().unwrap();
    let output = fake.banger(&["image", "import", path, "--name", "debian"]).output().unwrap();
    assert!(output.status.success(), "{}", all(&output));
    assert!(fake.state().uploaded == bytes);
    assert!(text(&output.stdout).starts_with("imported debian (aaaaaaaaaaaa, 8G, 2 MiB used) in "), "{}", all(&output));

    let stdin = std::fs::File::open(path).unwrap();
    let output = fake.banger(&["image", "import", "-", "--name", "debian"]).stdin(stdin).output().unwrap();
    assert!(output.status.success() && fake.state().uploaded == bytes);

    let output = fake.banger(&["image", "import", path, "--name", "refused"]).output().unwrap();
    let want =
        format!("banger: cannot import {path}: the file is not a tar archive\n  make one with tar\nstatus Some(1)\n");
    assert_eq!(all(&output), want);
}

/// A file system of 3 MB, as far as anybody looks, with something behind it.
fn root_disk(folder: &std::path::Path) -> (String, Vec<u8>) {
    let mut bytes = vec![7; 3 << 20];
    bytes[1024..2048].fill(0);
    for (at, value) in [(0x4, 768_u32), (0x18, 2), (0x38, 0xef53), (0x60, 0x2c2)] {
        bytes[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let path = folder.join("root.ext4");
    std::fs::write(&path, [bytes.as_slice(), &[1; 5000]].concat()).unwrap();
    (path.to_str().unwrap().to_owned(), bytes)
}

#[test]
fn a_file_system_is_registered_with_the_kernel_that_was_named() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let (disk, bytes) = root_disk(folder.path());
    let output = fake.banger(&["image", "register", "--rootfs", &disk, "own"]).output().unwrap();
    assert!(output.status.success(), "{}", all(&output));
    assert!(fake.state().uploaded == bytes, "what is behind the file system is not sent");
    assert!(text(&output.stdout).starts_with("registered own (aaaaaaaaaaaa, 8G, 3 MiB used) in "), "{}", all(&output));
    let output = fake.banger(&["image", "register", "--kernel", "6.12", "--rootfs", &disk, "own"]).output().unwrap();
    assert!(text(&output.stdout).contains(" used), kernel 6.12 in "), "{}", all(&output));
    let calls = [format!("register own of {disk} with None"), format!("register own of {disk} with Some(\"6.12\")")];
    assert_eq!(fake.state().calls, calls);
}

#[test]
fn a_kernels_file_is_imported_first_and_goes_again_when_the_image_fails() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let (disk, bytes) = root_disk(folder.path());
    let kernel = folder.path().join("vmlinux");
    std::fs::write(&kernel, "a kernel").unwrap();
    let kernel = kernel.to_str().unwrap();
    let register =
        |name: &str| fake.banger(&["image", "register", "--kernel", kernel, "--rootfs", &disk, name]).output().unwrap();
    let output = register("own");
    assert!(output.status.success() && text(&output.stdout).contains(", kernel own in "), "{}", all(&output));
    assert!(fake.state().uploaded == bytes);
    let calls =
        |name: &str| vec![format!("import kernel {name}"), format!("register {name} of {disk} with Some({name:?})")];
    assert_eq!(std::mem::take(&mut fake.state().calls), calls("own"));

    let output = register("refused");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("cannot register {disk}: the file is not")), "{}", all(&output));
    let undone = [calls("refused"), vec!["delete kernel refused".to_owned()]].concat();
    assert_eq!(std::mem::take(&mut fake.state().calls), undone);
    // What cannot be undone is said, and how.
    let output = register("used-refused");
    let said = text(&output.stderr);
    assert!(
        said.contains("could not be deleted again") && said.contains("banger kernel delete used-refused"),
        "{said}"
    );

    fake.state().calls.clear();
    let output = register("taken");
    let said = text(&output.stderr);
    assert!(said.contains("there is a kernel of the name taken already"), "{said}");
    assert!(said.contains("--kernel taken") && said.contains("banger kernel delete taken"), "{said}");
    assert_eq!(fake.state().calls, Vec::<String>::new(), "no image without its kernel, and no kernel is deleted");
}

#[test]
fn an_interrupted_registration_leaves_no_kernel() {
    let fake = demo();
    let folder = tempfile::tempdir().unwrap();
    let (disk, _) = root_disk(folder.path());
    let kernel = folder.path().join("vmlinux");
    std::fs::write(&kernel, "a kernel").unwrap();
    let words = ["image", "register", "--kernel", kernel.to_str().unwrap(), "--rootfs", &disk, "slow"];
    let mut child = fake.banger(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the image's upload", || fake.state().calls.iter().any(|call| call.starts_with("register slow")));
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fake.state().calls[2..], ["cancel job-2", "delete kernel slow"]);
}

#[test]
fn an_interrupted_import_is_cancelled() {
    let fake = demo();
    // Standard input stays open: the upload waits.
    let mut child = fake.banger(&["image", "import", "-", "--name", "slow"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"some").unwrap();
    wait_for("the upload", || !fake.state().jobs.is_empty());
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fake.state().calls, ["cancel job-1"]);
}
