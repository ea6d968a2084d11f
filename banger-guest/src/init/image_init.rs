//! Whether an image brings an init of its own, and which.
//!
//! Which one it is tells the agent later how to ask for an end, so it is found out from the program that is
//! executed and not from what a running system looks like: early in a boot that looks like nothing yet.
//!
//! Called by `init` with `/` after the switch; tests give it a folder. Container images often ship a
//! busybox whose `/sbin/init` is there and whose inittab names programs that are not: that is no init.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::init_kind::InitKind;

/// Places of an init, in the kernel's own order (`init/main.c`), with systemd's before the fallbacks.
const CANDIDATES: [&str; 5] = ["sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "etc/init", "bin/init"];
/// Links that are followed before a path counts as broken, as in the kernel.
const MAX_LINKS: usize = 40;

/// As much of a program as is looked at. sysvinit is 50 KiB.
const LOOKED_AT: u64 = 1024 * 1024;

/// The init of an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImageInit {
    /// To execute, inside the root: by this name, which a busybox goes by.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) kind: InitKind,
}

/// The init to execute, or `None`.
pub(super) fn find(root: &Path) -> Option<ImageInit> {
    CANDIDATES.into_iter().find_map(|path| {
        let kind = kind(root, Path::new(path))?;
        Some(ImageInit { path: Path::new("/").join(path), kind })
    })
}

/// `None` when the path is no usable init.
fn kind(root: &Path, path: &Path) -> Option<InitKind> {
    let program = resolve(root, path)?;
    if !executable(root, &program) {
        return None;
    }
    let name = program.file_name()?.to_string_lossy().into_owned();
    if name.starts_with("busybox") {
        return busybox_is_configured(root).then_some(InitKind::Busybox);
    }
    Some(InitKind::of_program(&name).unwrap_or_else(|| of_content(&root.join(program))))
}

/// sysvinit is called `init` like many others, and is the one that makes a pipe of this name.
fn of_content(program: &Path) -> InitKind {
    let mut bytes = Vec::new();
    let _ = fs::File::open(program).and_then(|file| file.take(LOOKED_AT).read_to_end(&mut bytes));
    if bytes.starts_with(b"#!") {
        return InitKind::Script;
    }
    let pipe = b"/initctl";
    if bytes.windows(pipe.len()).any(|window| window == pipe) { InitKind::Sysvinit } else { InitKind::Other }
}

/// busybox init runs what `/etc/inittab` says, or `/etc/init.d/rcS` when there is none.
fn busybox_is_configured(root: &Path) -> bool {
    let exists = |path: &str| resolve(root, Path::new(path)).is_some_and(|found| executable(root, &found));
    let Some(table) = resolve(root, Path::new("etc/inittab")).and_then(|path| fs::read(root.join(path)).ok()) else {
        return exists("etc/init.d/rcS");
    };
    let table = String::from_utf8_lossy(&table);
    let mut startup = table.lines().filter_map(startup_program).peekable();
    startup.peek().is_some() && startup.all(exists)
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

fn executable(root: &Path, path: &Path) -> bool {
    fs::metadata(root.join(path)).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Follows links with `root` as `/`: the result is relative to `root` and has none left.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut todo: Vec<PathBuf> = parts(path);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == Path::new("..") {
            done.pop();
            continue;
        }
        let here = done.join(&part);
        match fs::read_link(root.join(&here)) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                todo.extend(parts(&target));
            }
            Err(_not_a_link) => done = here,
        }
    }
    fs::symlink_metadata(root.join(&done)).ok().map(|_| done)
}

/// The names in `path`, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let named = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::symlink;
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
        find(image.path()).map(|init| init.path)
    }

    #[test]
    fn an_init_is_known_by_its_program() {
        let kind = |image: &TempDir| find(image.path()).map(|init| init.kind);
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
        assert_eq!(find(image.path()), None);
        program(&image, "sbin/init", 0o644);
        assert_eq!(find(image.path()), None);
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
        assert_eq!(find(image.path()), None);
    }

    #[test]
    fn busybox_counts_when_its_startup_programs_exist() {
        let image = image();
        program(&image, "bin/busybox", 0o755);
        symlink("/bin/busybox", image.path().join("sbin/init")).unwrap();
        assert_eq!(find(image.path()), None);
        program(&image, "etc/init.d/rcS", 0o755);
        assert_eq!(path(&image), Some("/sbin/init".into()));
        fs::write(image.path().join("etc/inittab"), "# x\n::sysinit:/sbin/openrc sysinit\n::respawn:/bin/sh\n")
            .unwrap();
        assert_eq!(find(image.path()), None);
        program(&image, "sbin/openrc", 0o755);
        assert_eq!(path(&image), Some("/sbin/init".into()));
    }
}
