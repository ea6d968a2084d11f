//! The files of an image, reached so that nothing in it leads anywhere else.
//!
//! Used by every step of `init` behind the switch of the root, where the image's `/` is the
//! process's; tests give a folder. Links are resolved here with that folder as `/`, so that an
//! absolute one means the image in both. Nothing that is found in the way is lost: it is renamed.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::console::say;

/// Links that are followed before a path counts as broken, as in the kernel (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Behind the name of what was in the way.
const ASIDE: &str = ".image";
/// Behind the name of a file that is not complete yet.
const UNFINISHED: &str = ".banger";

/// An image's root.
#[derive(Debug)]
pub(super) struct Image {
    root: PathBuf,
}

impl Image {
    /// The image whose root is the folder `root`, which is a path without links.
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where `path` leads, as a path from the process's `/` without links. Names that do not exist
    /// stay as they are. `None` for links that never end.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let mut todo: Vec<PathBuf> = parts(path.as_ref());
        let mut done = self.root.clone();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == Path::new("..") {
                if done != self.root {
                    done.pop();
                }
                continue;
            }
            let here = done.join(&part);
            match fs::read_link(&here) {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.is_absolute() {
                        done.clone_from(&self.root);
                    }
                    todo.extend(parts(&target));
                }
                Err(_not_a_link) => done = here,
            }
        }
        Some(done)
    }

    /// What [`Self::resolve`] says, seen from the image: `/usr/bin/busybox`.
    pub(super) fn seen(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let real = self.resolve(path)?;
        Some(Path::new("/").join(real.strip_prefix(&self.root).ok()?))
    }

    /// What is there, links followed.
    pub(super) fn metadata(&self, path: impl AsRef<Path>) -> Option<fs::Metadata> {
        fs::symlink_metadata(self.resolve(path)?).ok()
    }

    /// Whether anything is there, links followed.
    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_some()
    }

    /// Whether it is a program: a regular file that may be executed.
    pub(super) fn is_program(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_some_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    }

    /// The content of a regular file, at most `max` bytes.
    ///
    /// # Errors
    /// `FileTooLarge` when there are more, `InvalidInput` when it is no regular file: a pipe would
    /// hold up the boot for ever, and a device has no end.
    pub(super) fn read(&self, path: impl AsRef<Path>, max: u64) -> io::Result<Vec<u8>> {
        let (file, size) = self.open(path)?;
        if size > max {
            return Err(ErrorKind::FileTooLarge.into());
        }
        beginning(file, max)
    }

    /// The same, cut at `max` bytes.
    pub(super) fn read_beginning(&self, path: impl AsRef<Path>, max: u64) -> io::Result<Vec<u8>> {
        beginning(self.open(path)?.0, max)
    }

    fn open(&self, path: impl AsRef<Path>) -> io::Result<(File, u64)> {
        let real = self.resolve(path).ok_or(ErrorKind::NotFound)?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(real)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok((file, found.len()))
    }

    /// Makes sure that `path` leads to a folder and says where it is. A link that leads nowhere
    /// gets a folder at its end; what cannot be a folder is set aside.
    pub(super) fn folder(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let path = path.as_ref();
        if let Some(real) = self.resolve(path).filter(|real| *real != self.root) {
            match fs::symlink_metadata(&real) {
                Ok(found) if found.is_dir() => return Ok(real),
                Err(error) if error.kind() == ErrorKind::NotFound => match make_folder(&real) {
                    Ok(()) => return Ok(real),
                    // A file lies on the way to where a link leads.
                    Err(error) if error.kind() == ErrorKind::NotADirectory => {}
                    Err(error) => return Err(error),
                },
                _ => {}
            }
        }
        self.own_folder(path)
    }

    /// The same without following a link at `path` itself.
    pub(super) fn own_folder(&self, path: &Path) -> io::Result<PathBuf> {
        let here = self.itself(path)?;
        match fs::symlink_metadata(&here) {
            Ok(found) if found.is_dir() => return Ok(here),
            Ok(_) => self.set_aside(path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        make_folder(&here)?;
        Ok(here)
    }

    /// Puts a new file in the place of whatever is there; a link is replaced and never followed. A
    /// file that has this content already is left alone, so that an unchanged one costs a full disk
    /// nothing.
    pub(super) fn write(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        let here = match path.parent() {
            Some(parent) if parent != Path::new("/") => self.folder(parent)?.join(path.file_name().unwrap_or_default()),
            _ => self.itself(path)?,
        };
        let found = fs::symlink_metadata(&here).ok();
        let as_long = found.as_ref().is_some_and(|found| found.is_file() && found.len() == content.len() as u64);
        if as_long && fs::read(&here).is_ok_and(|old| old == content) {
            return Ok(());
        }
        if found.is_some_and(|found| found.is_dir()) {
            self.set_aside(path)?;
        }
        let unfinished = behind(&here, UNFINISHED);
        let written = replace(&unfinished, &here, content, mode);
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Removes a file or a link, and says whether there was one. A folder is an error.
    pub(super) fn remove(&self, path: impl AsRef<Path>) -> io::Result<bool> {
        let here = self.itself(path.as_ref())?;
        // A read-only file system refuses the removal of what is not there, too.
        match fs::symlink_metadata(&here) {
            Ok(_) => fs::remove_file(here).map(|()| true),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names in a folder, in no order. None when there is no such folder.
    pub(super) fn names(&self, folder: impl AsRef<Path>) -> Vec<OsString> {
        let entries = self.resolve(folder).and_then(|folder| fs::read_dir(folder).ok());
        entries.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
    }

    /// Renames what is there, links not followed.
    fn set_aside(&self, path: &Path) -> io::Result<()> {
        let here = self.itself(path)?;
        fs::rename(&here, behind(&here, ASIDE))?;
        say(format_args!("{0} of the image was in the way and is now {0}{ASIDE}", path.display()));
        Ok(())
    }

    /// The entry at `path`, with links followed on the way and not at its end.
    pub(super) fn itself(&self, path: &Path) -> io::Result<PathBuf> {
        let parent = self.resolve(path.parent().unwrap_or(Path::new("/"))).ok_or(ErrorKind::NotFound)?;
        Ok(parent.join(path.file_name().ok_or(ErrorKind::InvalidInput)?))
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn beginning(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(max).read_to_end(&mut content)?;
    Ok(content)
}

fn replace(unfinished: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(unfinished) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    fs::rename(unfinished, path)
}

/// The path with `end` at its name.
fn behind(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
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

    /// An image and, beside it, what it must not reach.
    fn image() -> (TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("image")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/file"), "theirs").unwrap();
        let image = Image::at(folder.path().join("image"));
        (folder, image)
    }

    fn link(image: &Image, target: &str, name: &str) {
        symlink(target, image.root.join(name)).unwrap();
    }

    #[test]
    fn no_link_leads_out_of_the_image() {
        let (folder, image) = image();
        link(&image, "../../../outside", "up");
        link(&image, "/outside/../../outside", "absolute");
        link(&image, folder.path().join("outside").to_str().unwrap(), "real");
        for name in ["up/file", "absolute/file", "real/file"] {
            assert_ne!(image.read(name, 10).ok().as_deref(), Some(&b"theirs"[..]), "{name}");
            image.write(Path::new("/").join(name), b"ours", 0o644).unwrap();
            assert_eq!(image.read(name, 10).unwrap(), b"ours", "{name}");
        }
        assert_eq!(fs::read(folder.path().join("outside/file")).unwrap(), b"theirs");
        assert_eq!(image.seen("/up/file").unwrap(), Path::new("/outside/file"));
    }

    #[test]
    fn a_folder_is_made_whatever_is_there() {
        let (_folder, image) = image();
        let made = |name: &str| image.folder(Path::new("/").join(name)).unwrap();
        assert_eq!(made("missing"), image.root.join("missing"));
        link(&image, "var/roothome", "dangling");
        assert_eq!(made("dangling"), image.root.join("var/roothome"));
        link(&image, "round", "round");
        link(&image, "/", "all");
        fs::write(image.root.join("file"), "x").unwrap();
        link(&image, "file/below", "through");
        for name in ["round", "all", "through", "file"] {
            assert_eq!(made(name), image.root.join(name));
            assert!(fs::symlink_metadata(image.root.join(format!("{name}.image"))).is_ok(), "{name}: it is kept");
        }
        assert_eq!(fs::read(image.root.join("file.image")).unwrap(), b"x");
    }

    #[test]
    fn a_file_is_replaced_whatever_is_there() {
        let (_folder, image) = image();
        fs::write(image.root.join("target"), "theirs").unwrap();
        link(&image, "/target", "link");
        link(&image, "nowhere", "dangling");
        fs::create_dir_all(image.root.join("folder/full")).unwrap();
        nix::unistd::mkfifo(&image.root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(image.root.join("locked"), "x").unwrap();
        fs::set_permissions(image.root.join("locked"), Permissions::from_mode(0o400)).unwrap();
        for name in ["link", "dangling", "folder", "pipe", "locked", "etc/deep/new"] {
            image.write(Path::new("/").join(name), b"ours", 0o644).unwrap();
            let found = fs::symlink_metadata(image.root.join(name)).unwrap();
            assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o644, "{name}");
        }
        assert_eq!(image.read("target", 10).unwrap(), b"theirs");
        assert!(image.exists("folder.image/full"));
        assert_eq!(image.names("/etc/deep"), ["new"]);
    }

    #[test]
    fn what_is_no_regular_file_is_not_read() {
        let (_folder, image) = image();
        nix::unistd::mkfifo(&image.root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(image.root.join("long"), "12345").unwrap();
        assert_eq!(image.read("pipe", 10).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(image.read("/", 10).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(image.read("none", 10).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(image.read("long", 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(image.read_beginning("long", 4).unwrap(), b"1234");
    }

    #[test]
    fn an_unchanged_file_is_left_alone() {
        let (_folder, image) = image();
        let number = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(image.root.join("file")).unwrap());
        image.write("/file", b"ours", 0o644).unwrap();
        let first = number();
        image.write("/file", b"ours", 0o644).unwrap();
        assert_eq!(number(), first);
        image.write("/file", b"new!", 0o644).unwrap();
        assert_ne!(number(), first);
        assert!(image.remove("/file").unwrap() && !image.remove("/file").unwrap());
        assert!(!image.remove("/none/below").unwrap());
    }
}
