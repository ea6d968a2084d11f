//! What the guest's agent does for the command line: the words after [`crate::COMMAND`].
//!
//! - `look PATH`: a [`crate::Look`] as JSON.
//! - `put FOLDER NAME`: unpacks standard input there, which has that name and what is below it
//!   only; `.` for any names.
//! - `put FOLDER`: unpacks a tar stream of the VM's owner there as tar(1) does: links of the folder
//!   are followed ([`unpack_own`]).
//! - `state FOLDER`: a word that is another one when what a replacement of the folder would destroy
//!   is another.
//! - `replace FOLDER UID:GID STATE`: unpacks standard input as a workspace of that user and puts it
//!   in the folder's place, if the folder has that state; without a state, whatever is there;
//!   without an owner, as one of whoever runs it. Says `placed` as soon as the new folder has its
//!   place.
//! - `pack PATH NAME`: a tar of the path and what is in it, under that name. What is not in it is
//!   named on standard error; the status is 1 when it should be.
//! - `changes FOLDER`: what is not as it was prepared.
//! - `get FOLDER`: the files whose names standard input has, each with a zero byte after it, as a
//!   tar.

use crate::manifest;
use crate::pack::as_path;
use crate::place::{absolute, look};
use crate::replace::{Owner, WAIT, Wanted, replace};
use crate::{Error, Left, Limits, Packer, open_folder, unpack_named, unpack_own};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A list of names is not longer.
const MAX_NAMES: u64 = 256 * 1024 * 1024;

/// Does what the words say; `home` is what `~` means. Gives lines for standard error.
///
/// # Errors
/// Why not, for standard error.
pub fn run(
    words: &[OsString],
    home: &Path,
    input: &mut dyn Read,
    output: &mut dyn Write,
) -> Result<Vec<String>, Error> {
    let mut left = Left::default();
    let words: Vec<&Path> = words.iter().map(Path::new).collect();
    match words.as_slice() {
        [verb, path, rest @ ..] => {
            let path = absolute(path, home)?;
            match (verb.as_os_str().as_bytes(), rest) {
                (b"look", []) => {
                    let text = serde_json::to_vec(&look(&path)?).map_err(|error| Error::Stream(error.into()))?;
                    output.write_all(&text).map_err(Error::Stream)?;
                }
                (b"put", []) => {
                    std::fs::create_dir_all(&path).map_err(Error::path(&path))?;
                    left = unpack_own(input, &open_folder(&path)?)?;
                }
                (b"put", [name]) => {
                    std::fs::create_dir_all(&path).map_err(Error::path(&path))?;
                    unpack_named(input, &open_folder(&path)?, Limits::NONE, name.as_os_str().as_bytes())?;
                }
                (b"state", []) => output.write_all(manifest::state(&path)?.as_bytes()).map_err(Error::Stream)?,
                (b"replace", [] | [_] | [_, _]) => {
                    let said = rest.first().map(|owner| Owner::parse(owner.as_os_str().as_bytes()));
                    let owner = said.map(|owner| owner.ok_or_else(|| Error::Usage("an owner is UID:GID".to_owned())));
                    let state = rest.get(1).and_then(|state| state.to_str());
                    let wanted = Wanted { owner: owner.transpose()?, state, wait: WAIT };
                    // Whoever does not listen any more has a new folder all the same.
                    replace(&path, wanted, input, || {
                        drop(output.write_all(b"placed\n").and_then(|()| output.flush()))
                    })?;
                }
                (b"pack", [name]) => {
                    let mut packer = Packer::of_what_changes(&mut *output);
                    packer.add_tree(name.as_os_str().as_bytes(), &path)?;
                    left = packer.finish()?;
                }
                (b"changes", []) => manifest::write_changes(&manifest::changes(&path)?, output)?,
                (b"get", []) => get(&path, input, output)?,
                _ => return Err(Error::Usage("these words are not understood".to_owned())),
            }
        }
        _ => return Err(Error::Usage("these words are not understood".to_owned())),
    }
    output.flush().map_err(Error::Stream)?;
    if left.lost.is_empty() { Ok(left.lines()) } else { Err(Error::Incomplete(left.lines().join("\n"))) }
}

fn get(folder: &Path, input: &mut dyn Read, output: &mut dyn Write) -> Result<(), Error> {
    let mut names = Vec::new();
    input.take(MAX_NAMES).read_to_end(&mut names).map_err(Error::Stream)?;
    let mut packer = Packer::new(&mut *output);
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match packer.add(name, &folder.join(as_path(name)), None) {
            // It went away meanwhile: whoever asked sees that it did not come.
            Err(Error::Path { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    packer.finish().map(drop)
}
