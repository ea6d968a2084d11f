//! Which file a command's first word means, and where the command starts.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a command cannot be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("{word}: there is no such program in {path}")]
    NotInPath { word: String, path: String },
    #[error("{word}: there is no such file in the guest")]
    NoFile { word: String },
    #[error("{word}: it is not a program (not a file that may be executed)")]
    NoProgram { word: String },
    #[error("there is no folder {} in the guest; make it first, or choose another one with -w", .0.display())]
    NoFolder(PathBuf),
    #[error("the image's folder {} is not there and cannot be made ({source}); choose another one with -w", .path.display())]
    ImageFolder { path: PathBuf, source: io::Error },
}

impl Unusable {
    /// As shells say it (POSIX, "Exit Status for Commands").
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::NotInPath { .. } | Self::NoFile { .. } => 127,
            Self::NoProgram { .. } | Self::NoFolder(_) | Self::ImageFolder { .. } => 126,
        }
    }
}

/// The programs that `word` may mean in `folder`, one at least: a path as it is, another word by
/// the folders of `path`. This is asked as root; the first that its user may execute is meant
/// (execvp(3)).
pub(super) fn locate(word: &[u8], path: &[u8], folder: &Path) -> Result<Vec<PathBuf>, Unusable> {
    let shown = || String::from_utf8_lossy(word).into_owned();
    let name = Path::new(OsStr::from_bytes(word));
    if word.contains(&b'/') {
        return match look(&folder.join(name)) {
            // Relative to where the command starts, and called as it was called.
            Found::Program => Ok(vec![name.to_owned()]),
            Found::Other => Err(Unusable::NoProgram { word: shown() }),
            Found::Nothing => Err(Unusable::NoFile { word: shown() }),
        };
    }
    let (mut programs, mut other) = (Vec::new(), false);
    // The empty word would mean the folders themselves.
    let folders = path.split(|byte| *byte == b':').filter(|_| !word.is_empty());
    for candidate in folders.map(|entry| folder.join(OsStr::from_bytes(entry)).join(name)) {
        match look(&candidate) {
            Found::Program => programs.push(candidate),
            Found::Other => other = true,
            Found::Nothing => {}
        }
    }
    if !programs.is_empty() {
        return Ok(programs);
    }
    Err(if other {
        Unusable::NoProgram { word: shown() }
    } else {
        Unusable::NotInPath { word: shown(), path: String::from_utf8_lossy(path).into_owned() }
    })
}

enum Found {
    Program,
    Other,
    Nothing,
}

fn look(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Found::Program,
        Ok(_) => Found::Other,
        Err(_) => Found::Nothing,
    }
}

/// The folder that a caller has named.
pub(super) fn named_folder(path: &Path) -> Result<PathBuf, Unusable> {
    if path.is_absolute() && path.is_dir() { Ok(path.to_owned()) } else { Err(Unusable::NoFolder(path.to_owned())) }
}

/// The folder that the image has named. It is made when it is missing, as container engines do:
/// images rely on it.
pub(super) fn image_folder(path: &str) -> Result<PathBuf, Unusable> {
    let path = Path::new(path).to_owned();
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(Unusable::ImageFolder { path, source }),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn make(path: &Path, mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_word_is_looked_for_in_the_path_and_a_path_is_taken_as_it_is() {
        let guest = tempfile::tempdir().unwrap();
        let root = guest.path();
        let (one, two) = (root.join("one"), root.join("two"));
        make(&one.join("plain"), 0o644);
        make(&two.join("plain"), 0o755);
        make(&two.join("only"), 0o644);
        make(&root.join("tools/run.sh"), 0o700);
        fs::create_dir_all(two.join("folder")).unwrap();
        let path = format!("{}:{}", one.display(), two.display());
        let at =
            |word: &str| locate(word.as_bytes(), path.as_bytes(), &root.join("tools")).map(|found| found[0].clone());
        assert_eq!(at("plain").unwrap(), two.join("plain"), "what cannot be executed is passed over");
        assert_eq!(at("./run.sh").unwrap(), Path::new("./run.sh"));
        assert_eq!(at("../tools/run.sh").unwrap(), Path::new("../tools/run.sh"));
        let absolute = root.join("tools/run.sh");
        assert_eq!(at(absolute.to_str().unwrap()).unwrap(), absolute);
        // An empty entry is the folder of the command, as everywhere.
        assert!(locate(b"run.sh", b"/nonexistent:", &root.join("tools")).is_ok());
        for (word, status) in
            [("none", 127), ("", 127), ("./none", 127), ("only", 126), ("folder", 126), ("/proc/version", 126)]
        {
            let error = at(word).unwrap_err();
            assert_eq!(error.status(), status, "{word}: {error}");
        }
        assert!(at("none").unwrap_err().to_string().contains(&path));
    }

    #[test]
    fn a_missing_folder_is_made_for_the_image_and_refused_to_a_caller() {
        let guest = tempfile::tempdir().unwrap();
        let folder = guest.path().join("srv/app");
        let text = folder.to_str().unwrap();
        let refused = named_folder(&folder).unwrap_err();
        assert!(refused.to_string().contains(text) && refused.status() == 126, "{refused}");
        assert_eq!(image_folder(text).unwrap(), folder);
        assert_eq!((image_folder(text).unwrap(), named_folder(&folder).unwrap()), (folder.clone(), folder));
        assert!(named_folder(Path::new("etc")).is_err());
        let file = guest.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("below");
        let refused = image_folder(below.to_str().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("cannot be made") && refused.contains("-w"), "{refused}");
    }
}
