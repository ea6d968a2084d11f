//! The indexes that `depmod` writes when a kernel's package is installed: without them neither we
//! nor the guest's `modprobe` know which module needs which.

use super::index::Index;
use super::{Files, PackageError};
use crate::codec::Codec;
use crate::source::{Progress, Window};
use banger_policy::kernel::MODULES_PREFIX;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read as _, Write as _};
use std::path::Path;

/// The largest module of a distribution has a few MiB.
const MAX_MODULE: u64 = 64 << 20;
/// Bytes of all that is written; a full kernel of a distribution comes to 4 MiB.
const MAX_INDEXES: usize = 64 << 20;

/// What a module says of itself (`.modinfo`; `MODULE_INFO` in `linux/module.h`).
struct Said {
    path: String,
    needs: Vec<String>,
    aliases: Vec<String>,
    soft: Vec<String>,
}

/// Adds the indexes to the files.
pub(super) fn complete(files: &mut Files, staging: &Path, progress: &dyn Progress) -> Result<(), PackageError> {
    let mut modules: BTreeMap<String, Said> = BTreeMap::new();
    for (name, file) in files.iter() {
        let Some(path) = name.strip_prefix(MODULES_PREFIX) else { continue };
        let Some(module) = name_of(path) else { continue };
        if progress.cancelled() {
            return Err(PackageError::Inside { number: 1, source: crate::ImageError::Cancelled });
        }
        modules.insert(module, said(path, file)?);
    }
    let (mut dep, mut alias, mut soft, mut nodes) = (String::new(), String::new(), String::new(), String::new());
    let (mut dep_index, mut alias_index) = (Index::default(), Index::default());
    for (name, module) in &modules {
        let needs: Vec<&str> = all_needs(name, &modules).iter().filter_map(|need| path_of(need, &modules)).collect();
        let line = format!("{}: {}", module.path, needs.join(" "));
        let line = line.trim_end();
        dep.push_str(line);
        dep.push('\n');
        dep_index.add(name, line);
        for pattern in &module.aliases {
            alias.push_str(&format!("alias {pattern} {name}\n"));
            alias_index.add(&underscored(pattern), name);
        }
        if let Some(node) = device(&module.aliases) {
            nodes.push_str(&format!("{name} {node}\n"));
        }
        for after in &module.soft {
            soft.push_str(&format!("softdep {name} {after}\n"));
        }
        if dep.len() + alias.len() + soft.len() > MAX_INDEXES {
            let why = "the modules need more of each other, or have more aliases, than those of any kernel".to_owned();
            return Err(PackageError::Module { path: module.path.clone(), why });
        }
    }
    let builtin = files.get(&format!("{MODULES_PREFIX}modules.builtin"));
    let builtin = builtin.filter(|file| file.len() <= banger_policy::kernel::MAX_INDEX_BYTES);
    let builtin = builtin.and_then(|file| file.read_all().ok()).unwrap_or_default();
    let mut builtin_index = Index::default();
    String::from_utf8_lossy(&builtin).lines().filter_map(name_of).for_each(|name| builtin_index.add(&name, ""));
    for (name, bytes) in [
        ("modules.dep", dep.into_bytes()),
        ("modules.alias", alias.into_bytes()),
        ("modules.softdep", soft.into_bytes()),
        ("modules.devname", nodes.into_bytes()),
        ("modules.dep.bin", dep_index.bytes()),
        ("modules.alias.bin", alias_index.bytes()),
        ("modules.builtin.bin", builtin_index.bytes()),
    ] {
        files.insert(format!("{MODULES_PREFIX}{name}"), kept(&bytes, staging)?);
    }
    Ok(())
}

fn kept(bytes: &[u8], staging: &Path) -> Result<Window, PackageError> {
    let mut file = tempfile::tempfile_in(staging).map_err(PackageError::Write)?;
    file.write_all(bytes).map_err(PackageError::Write)?;
    Window::whole(file).map_err(|source| PackageError::Inside { number: 1, source })
}

/// A module's name, by its file; `None` for other files.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let (stem, packed) = file.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"].contains(&packed).then(|| stem.replace('-', "_"))
}

fn path_of<'a>(name: &str, modules: &'a BTreeMap<String, Said>) -> Option<&'a str> {
    modules.get(name).map(|module| module.path.as_str())
}

/// All that `name` needs, each before what it needs itself: `modprobe` loads from the line's end.
fn all_needs(name: &str, modules: &BTreeMap<String, Said>) -> Vec<String> {
    // Depth first without recursion: a name is done when all that it needs is.
    let (mut done, mut seen) = (Vec::new(), BTreeSet::new());
    let mut todo = vec![(name.to_owned(), false)];
    while let Some((at, is_done)) = todo.pop() {
        if is_done {
            done.push(at);
            continue;
        }
        // Not before its turn: what needs it may come in between.
        if !seen.insert(at.clone()) {
            continue;
        }
        let needs = modules.get(&at).map(|module| module.needs.as_slice()).unwrap_or_default();
        todo.push((at, true));
        todo.extend(needs.iter().filter(|need| !seen.contains(*need)).map(|need| (need.clone(), false)));
    }
    // The last is `name` itself.
    done.pop();
    done.reverse();
    done
}

fn said(path: &str, file: &Window) -> Result<Said, PackageError> {
    let bad = |why: String| PackageError::Module { path: path.to_owned(), why };
    let head = file.head().map_err(|error| bad(error.to_string()))?;
    let reader = Codec::of(&head).decode(BufReader::new(file.reader())).map_err(|error| bad(error.to_string()))?;
    let mut module = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut module).map_err(|error| bad(error.to_string()))?;
    if module.len() as u64 > MAX_MODULE {
        return Err(bad("it is larger than 64 MiB".to_owned()));
    }
    let mut said = Said { path: path.to_owned(), needs: Vec::new(), aliases: Vec::new(), soft: Vec::new() };
    for text in modinfo(&module).split(|byte| *byte == 0) {
        let Some((key, value)) = text.iter().position(|byte| *byte == b'=').map(|at| text.split_at(at)) else {
            continue;
        };
        let value = value.get(1..).and_then(|value| std::str::from_utf8(value).ok());
        let Some(value) = value.filter(|value| value.bytes().all(|c| c.is_ascii_graphic() || c == b' ')) else {
            continue;
        };
        match key {
            b"depends" => {
                let names = value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_"));
                said.needs.extend(names);
            }
            b"alias" if !value.contains(' ') => said.aliases.push(value.to_owned()),
            b"softdep" => said.soft.push(value.to_owned()),
            _ => {}
        }
    }
    Ok(said)
}

/// The section of that name (elf(5), 64 bits, little-endian); all of what is no such file, which no
/// kernel loads.
fn modinfo(module: &[u8]) -> &[u8] {
    section(module, b".modinfo").unwrap_or(module)
}

fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize, bytes: usize| {
        let bytes = elf.get(at..at.checked_add(bytes)?)?.iter().rev();
        usize::try_from(bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))).ok()
    };
    elf.strip_prefix(b"\x7fELF\x02\x01")?;
    let (table, size, count, names) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let bytes = |header: usize| {
        let start = number(header.checked_add(0x18)?, 8)?;
        elf.get(start..start.checked_add(number(header.checked_add(0x20)?, 8)?)?)
    };
    let names = bytes(header(names)?)?;
    let is_it = |header: usize| {
        let name = names.get(number(header, 4)?..)?.strip_prefix(wanted)?;
        (name.first() == Some(&0)).then(|| bytes(header)).flatten()
    };
    (0..count).find_map(|index| is_it(header(index)?))
}

/// The device node that is there before its module is loaded, and loads it when it is opened: `tun`
/// and `fuse` are found so (`devname` and `char-major` in `linux/miscdevice.h`).
fn device(aliases: &[String]) -> Option<String> {
    let node = aliases.iter().find_map(|alias| alias.strip_prefix("devname:"))?;
    let numbers = |kind: &str, prefix: &str| {
        let (major, minor) = aliases.iter().find_map(|alias| alias.strip_prefix(prefix))?.split_once('-')?;
        Some(format!("{node} {kind}{}:{}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    numbers("c", "char-major-").or_else(|| numbers("b", "block-major-"))
}

/// As `modprobe` writes what it looks for: `-` is `_`, but not in a range.
fn underscored(alias: &str) -> String {
    let mut in_range = false;
    let each = |c: char| {
        in_range = (in_range || c == '[') && c != ']';
        if c == '-' && !in_range { '_' } else { c }
    };
    alias.chars().map(each).collect()
}
