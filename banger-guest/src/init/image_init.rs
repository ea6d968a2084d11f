//! Whether an image brings an init of its own, and which.
//!
//! Which one it is tells the agent later how to ask for an end, so it is found out from the program
//! that is executed and not from what a running system looks like: early in a boot that looks like
//! nothing yet.
//!
//! Called by `init` after the switch of the root. Container images often ship a busybox whose
//! `/sbin/init` is there and whose inittab names programs that are not: that is no init.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::image::Image;
use crate::init_kind::InitKind;

/// Places of an init, in the kernel's own order (`init/main.c`), with systemd's before the
/// fallbacks.
const CANDIDATES: [&str; 5] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"];
/// Places of a busybox, of which an init may be a hard link.
const BUSYBOXES: [&str; 4] = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox", "/bin/busybox.static"];

/// As much of a program as is looked at. sysvinit has 50 KiB, a static busybox 2 MiB.
const LOOKED_AT: u64 = 4 << 20;
/// Longest inittab, bytes.
const MAX_INITTAB: u64 = 1 << 20;

/// The init of an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImageInit {
    /// To execute, inside the root: by this name, which a busybox goes by.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) kind: InitKind,
}

/// The inits to execute, best first. A later one counts when the kernel refuses to execute those
/// before it.
pub(super) fn find(image: &Image) -> Vec<ImageInit> {
    let found = |path: &str| Some(ImageInit { path: path.into(), kind: kind(image, path)? });
    CANDIDATES.into_iter().filter_map(found).collect()
}

/// `None` when the path is no usable init.
fn kind(image: &Image, path: &str) -> Option<InitKind> {
    if !image.is_program(path) {
        return None;
    }
    let program = image.seen(path)?;
    let name = program.file_name()?.to_string_lossy().into_owned();
    let kind = match InitKind::of_program(&name) {
        Some(known) => known,
        None if name.starts_with("busybox") || is_hard_link_to_busybox(image, path) => InitKind::Busybox,
        None => of_content(&image.read_beginning(path, LOOKED_AT).unwrap_or_default()),
    };
    (kind != InitKind::Busybox || busybox_is_configured(image)).then_some(kind)
}

fn is_hard_link_to_busybox(image: &Image, path: &str) -> bool {
    let file = |path: &str| image.metadata(path).map(|found| (found.dev(), found.ino()));
    let init = file(path);
    BUSYBOXES.into_iter().any(|busybox| init.is_some() && file(busybox) == init)
}

/// sysvinit is called `init` like many others, and is the one that makes a pipe of this name. A
/// copy of busybox may have any name and bears its own inside (`libbb/messages.c`).
fn of_content(bytes: &[u8]) -> InitKind {
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if bytes.starts_with(b"#!") {
        InitKind::Script
    } else if has(b"BusyBox v") {
        InitKind::Busybox
    } else if has(b"/initctl") {
        InitKind::Sysvinit
    } else {
        InitKind::Other
    }
}

/// busybox init runs what `/etc/inittab` says, or `/etc/init.d/rcS` when there is none.
fn busybox_is_configured(image: &Image) -> bool {
    let Ok(table) = image.read("/etc/inittab", MAX_INITTAB) else {
        return image.is_program("/etc/init.d/rcS");
    };
    let table = String::from_utf8_lossy(&table);
    let mut startup = table.lines().filter_map(startup_program).peekable();
    startup.peek().is_some() && startup.all(|program| image.is_program(program))
}

/// The program of an inittab line `id:runlevels:sysinit:command` (or wait, once).
fn startup_program(line: &str) -> Option<&str> {
    if line.trim_start().starts_with('#') {
        return None;
    }
    let mut fields = line.splitn(4, ':').skip(2);
    let action = fields.next()?;
    let command = fields.next()?;
    if !matches!(action, "sysinit" | "wait" | "once") {
        return None;
    }
    let program = command.trim_start_matches('-').split_whitespace().next()?;
    program.starts_with('/').then_some(program)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn image() -> TempDir {
        let image = tempfile::tempdir().unwrap();
        for folder in ["sbin", "bin", "etc/init.d", "usr/lib/systemd", "usr/bin"] {
            fs::create_dir_all(image.path().join(folder)).unwrap();
        }
        image
    }

    fn program(image: &TempDir, path: &str, mode: u32) {
        let path = image.path().join(path);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn path(image: &TempDir) -> Option<PathBuf> {
        first(image).map(|init| init.path)
    }

    fn first(image: &TempDir) -> Option<ImageInit> {
        find(&Image::at(image.path())).into_iter().next()
    }

    #[test]
    fn an_init_is_known_by_its_program() {
        let kind = |image: &TempDir| first(image).map(|init| init.kind);
        let image = image();
        let init = image.path().join("sbin/init");
        program(&image, "sbin/init", 0o755);
        assert_eq!(kind(&image), Some(InitKind::Other));
        fs::write(&init, "#!/bin/sh\nexec sleep /run/initctl\n").unwrap();
        assert_eq!(kind(&image), Some(InitKind::Script));
        fs::write(&init, [b"\x7fELF".as_slice(), &[0; 4000], b"\0/run/initctl\0"].concat()).unwrap();
        assert_eq!(kind(&image), Some(InitKind::Sysvinit));
        let links = [
            ("usr/lib/systemd/systemd", InitKind::Systemd),
            ("sbin/openrc-init", InitKind::Openrc),
            ("bin/busybox.static", InitKind::Busybox),
            ("sbin/runit-init", InitKind::Other),
        ];
        program(&image, "etc/init.d/rcS", 0o755);
        for (target, expected) in links {
            program(&image, target, 0o755);
            fs::remove_file(&init).unwrap();
            symlink(format!("/{target}"), &init).unwrap();
            assert_eq!(kind(&image), Some(expected), "{target}");
        }
    }

    #[test]
    fn an_image_without_an_init_has_none() {
        let image = image();
        assert_eq!(first(&image), None);
        program(&image, "sbin/init", 0o644);
        assert_eq!(first(&image), None);
    }

    #[test]
    fn links_mean_the_image() {
        let image = image();
        program(&image, "usr/lib/systemd/systemd", 0o755);
        symlink("/usr/lib/systemd/systemd", image.path().join("sbin/init")).unwrap();
        assert_eq!(path(&image), Some("/sbin/init".into()));
        fs::remove_file(image.path().join("sbin/init")).unwrap();
        symlink("../usr/../usr/lib/systemd/systemd", image.path().join("sbin/init")).unwrap();
        assert_eq!(path(&image), Some("/sbin/init".into()));
        fs::remove_file(image.path().join("sbin/init")).unwrap();
        symlink("/nowhere", image.path().join("sbin/init")).unwrap();
        assert_eq!(path(&image), Some("/usr/lib/systemd/systemd".into()));
    }

    #[test]
    fn a_loop_of_links_ends() {
        let image = image();
        symlink("/sbin/init", image.path().join("sbin/init")).unwrap();
        assert_eq!(first(&image), None);
    }

    #[test]
    fn busybox_counts_when_its_startup_programs_exist() {
        let image = image();
        program(&image, "bin/busybox", 0o755);
        symlink("/bin/busybox", image.path().join("sbin/init")).unwrap();
        assert_eq!(first(&image), None);
        program(&image, "etc/init.d/rcS", 0o755);
        assert_eq!(path(&image), Some("/sbin/init".into()));
        fs::write(image.path().join("etc/inittab"), "# x\n::sysinit:/sbin/openrc sysinit\n::respawn:/bin/sh\n")
            .unwrap();
        assert_eq!(first(&image), None);
        program(&image, "sbin/openrc", 0o755);
        assert_eq!(path(&image), Some("/sbin/init".into()));
    }

    #[test]
    fn chains_of_links_and_what_is_no_program() {
        let image = image();
        program(&image, "usr/bin/real", 0o755);
        symlink("/etc/one", image.path().join("sbin/init")).unwrap();
        symlink("../usr/two", image.path().join("etc/one")).unwrap();
        symlink("../../../../usr/bin/real", image.path().join("usr/two")).unwrap();
        assert_eq!(path(&image), Some("/sbin/init".into()));
        // An end that is a folder, and one that does not exist: the next candidate counts.
        program(&image, "bin/init", 0o755);
        for target in ["/usr/bin", "/usr/bin/none", "/etc/none/../../usr/none"] {
            fs::remove_file(image.path().join("usr/two")).unwrap();
            symlink(target, image.path().join("usr/two")).unwrap();
            assert_eq!(path(&image), Some("/bin/init".into()), "{target}");
        }
        fs::remove_file(image.path().join("sbin/init")).unwrap();
        fs::create_dir(image.path().join("sbin/init")).unwrap();
        assert_eq!(path(&image), Some("/bin/init".into()));
    }

    #[test]
    fn every_candidate_is_named_in_case_one_does_not_execute() {
        let image = image();
        program(&image, "sbin/init", 0o755);
        program(&image, "usr/lib/systemd/systemd", 0o755);
        let found = find(&Image::at(image.path()));
        let paths: Vec<_> = found.iter().map(|init| init.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/sbin/init", "/usr/lib/systemd/systemd"]);
    }

    #[test]
    fn a_busybox_is_known_without_its_name() {
        let image = image();
        program(&image, "usr/bin/busybox", 0o755);
        fs::hard_link(image.path().join("usr/bin/busybox"), image.path().join("bin/init")).unwrap();
        assert_eq!(path(&image), None, "a hard link, and nothing that it would run");
        program(&image, "sbin/init", 0o755);
        fs::write(image.path().join("sbin/init"), b"\x7fELF /dev/initctl BusyBox v1.36.1").unwrap();
        assert_eq!(path(&image), None, "a copy");
        program(&image, "etc/init.d/rcS", 0o755);
        assert_eq!(first(&image).unwrap().kind, InitKind::Busybox);
    }

    #[test]
    fn an_inittab_that_is_a_pipe_holds_nothing_up() {
        let image = image();
        program(&image, "bin/busybox", 0o755);
        symlink("busybox", image.path().join("bin/init")).unwrap();
        nix::unistd::mkfifo(&image.path().join("etc/inittab"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(path(&image), None);
    }
}
