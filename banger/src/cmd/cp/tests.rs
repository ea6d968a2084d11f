#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;

#[test]
fn a_guest_brings_the_file_that_was_asked_for_and_no_other() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".bashrc"), "mine").unwrap();
    let sent = |name: &str| {
        let mut bytes = Vec::new();
        let mut packer = Packer::new(&mut bytes);
        packer.add_bytes(name.as_bytes(), 0o644, b"sent").unwrap();
        packer.finish().unwrap();
        bytes
    };
    take(sent(".bashrc").as_slice(), home.path(), "note.txt").unwrap_err();
    assert_eq!(fs::read(home.path().join(".bashrc")).unwrap(), b"mine");
    take(sent("note.txt").as_slice(), home.path(), "note.txt").unwrap();
    assert_eq!(fs::read(home.path().join("note.txt")).unwrap(), b"sent");
}

#[tokio::test]
async fn only_a_path_with_a_dot_leaves_the_names_to_the_guest() {
    let (host, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(home.path().join("sub")).unwrap();
    fs::write(home.path().join("sub/.bashrc"), "theirs").unwrap();
    let guest = Guest::Folder(home.path().to_owned());
    let path = |below: &str| format!("{}{below}", home.path().display());
    for bad in ["/", ".", "..", "~", &path("/sub/..")] {
        let refused = from_guest(&guest, bad, host.path(), &Arc::default()).await.unwrap_err();
        assert!(refused.to_string().contains("has no name"), "{bad}: {refused:#}");
        Box::pin(between(&guest, bad, &guest, &path("/sub"), &Arc::default())).await.unwrap_err();
    }
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
    from_guest(&guest, &path("/sub/."), host.path(), &Arc::default()).await.unwrap();
    assert!(host.path().join(".bashrc").exists());
}

#[tokio::test]
async fn what_goes_to_a_guest_comes_back_as_it_was() {
    let (host, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = host.path().join("tree");
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::write(from.join("sub/file"), "text").unwrap();
    fs::set_permissions(from.join("sub/file"), std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("file", from.join("sub/link")).unwrap();
    fs::hard_link(from.join("sub/file"), from.join("same")).unwrap();
    let hole = fs::File::create(from.join("hole")).unwrap();
    hole.set_len(64 << 20).unwrap();
    fs::write(from.join("x".repeat(200)), "long").unwrap();
    let guest = Guest::Folder(home.path().to_owned());
    to_guest(&guest, &from, "~/copy", Arc::default()).await.unwrap();
    to_guest(&guest, &from, "~", Arc::default()).await.unwrap();
    assert!(home.path().join("tree/sub/empty").is_dir() && home.path().join("copy/sub/empty").is_dir());
    let back = host.path().join("back");
    from_guest(&guest, "~/copy", &back, &Arc::default()).await.unwrap();
    let same =
        std::process::Command::new("diff").args(["-r", "--no-dereference"]).args([&from, &back]).status().unwrap();
    assert!(same.success());
    use std::os::unix::fs::MetadataExt as _;
    let stat = |name: &str| fs::symlink_metadata(back.join(name)).unwrap();
    assert_eq!((stat("sub/file").mode() & 0o777, stat("sub/file").nlink()), (0o750, 2));
    assert!(stat("hole").blocks() < 64, "a hole came back as zeros");
    assert_eq!(fs::read_link(back.join("sub/link")).unwrap(), Path::new("file"));
    let missing = from_guest(&guest, "~/nothing", &back, &Arc::default()).await.unwrap_err();
    assert!(format!("{missing:#}").contains("nothing"), "{missing:#}");
    let nowhere = host.path().join("new/dir/x");
    from_guest(&guest, "~/nothing", &nowhere, &Arc::default()).await.unwrap_err();
    assert!(!host.path().join("new").exists(), "a folder for nothing");
    // One guest to another.
    let other = tempfile::tempdir().unwrap();
    let into = Guest::Folder(other.path().to_owned());
    Box::pin(between(&guest, "~/copy", &into, "~/there", &Arc::default())).await.unwrap();
    assert!(other.path().join("there/sub/file").exists());
}

#[test]
fn a_path_of_this_machine_need_not_be_text() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = OsString::from_vec(b"/tmp/\xff".to_vec());
    assert_eq!(parse(&odd).unwrap(), End::Host(odd.into()));
    parse(&OsString::from_vec(b"demo:\xff".to_vec())).unwrap_err();
}

#[tokio::test]
async fn a_file_goes_to_a_guest_whatever_the_name_of_its_folder_is() {
    use std::os::unix::ffi::OsStringExt as _;
    let (host, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let odd = host.path().join(OsString::from_vec(b"\xff".to_vec()));
    fs::write(&odd, "odd").unwrap();
    let guest = Guest::Folder(home.path().to_owned());
    to_guest(&guest, &odd, "~", Arc::default()).await.unwrap();
    assert_eq!(fs::read(home.path().join(OsString::from_vec(b"\xff".to_vec()))).unwrap(), b"odd");
}

#[tokio::test]
async fn what_is_no_file_is_refused_and_not_copied_as_a_link() {
    let (host, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let guest = Guest::Folder(home.path().to_owned());
    let path = |name: &str| host.path().join(name);
    let (read, _write) = std::io::pipe().unwrap();
    let open = std::path::PathBuf::from(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read)));
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    std::os::unix::fs::symlink("socket", path("link")).unwrap();
    for bad in [open.as_path(), Path::new("/dev/stdin"), Path::new("/dev/null"), &path("socket"), &path("link")] {
        let refused = to_guest(&guest, bad, "~", Arc::default()).await.unwrap_err();
        assert!(refused.to_string().contains("is not a file"), "{}: {refused:#}", bad.display());
    }
    // In a folder it is left out; of a guest the same.
    to_guest(&guest, host.path(), "~/tree", Arc::default()).await.unwrap();
    assert!(home.path().join("tree/link").is_symlink() && !home.path().join("tree/socket").exists());
    let _socket = std::os::unix::net::UnixListener::bind(home.path().join("tree/socket")).unwrap();
    from_guest(&guest, "~/tree", &path("back"), &Arc::default()).await.unwrap();
    let refused = from_guest(&guest, "~/tree/socket", &path("copy"), &Arc::default()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("a socket, a pipe or a device"), "{refused:#}");
    assert!(path("back").is_dir() && !path("copy").exists());
}

#[tokio::test]
async fn a_folder_is_not_copied_into_itself() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("tree/sub")).unwrap();
    fs::write(home.path().join("tree/file"), "text").unwrap();
    std::os::unix::fs::symlink("tree/sub", home.path().join("way")).unwrap();
    let guest = Guest::Folder(home.path().to_owned());
    let copy = async |from: &str, to: &str| Box::pin(between(&guest, from, &guest, to, &Arc::default())).await;
    for (from, to) in [
        ("~/tree", "~/tree/backup"),
        ("~/tree", "~/tree"),
        ("~/tree", "~/tree/sub"),
        ("~/tree", "~/way"),
        ("~/tree", "~/way/new/deep"),
        ("~/tree", "~/nothing/../tree/sub/"),
        ("~/tree/.", "~/tree/backup"),
        ("~/tree", "~"),
    ] {
        let refused = copy(from, to).await.unwrap_err();
        assert!(refused.to_string().contains("in the folder that is copied"), "{from} {to}: {refused:#}");
    }
    for (from, to) in [("~/tree", "~/treetop"), ("~/tree/sub", "~"), ("~/way", "~/tree/sub"), ("~/tree/file", "~/tree")]
    {
        copy(from, to).await.unwrap();
    }
    assert!(home.path().join("treetop/file").exists() && home.path().join("tree/sub/way").is_symlink());
}
