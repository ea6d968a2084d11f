//! The console file: what the guest's kernel and the VMM wrote since the last start.
//!
//! The VMM appends, the daemon reads and frees. The file is kept under its cap by punching a hole
//! at its beginning (fallocate(2)): the offsets of what is left stay, so no reader loses its place
//! and no writer is disturbed; its apparent size says nothing. Used by the monitor, by `logs` and
//! for errors. What is in here may be anything, terminal control included.

use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// What a console may take on the host, bytes.
pub const CAP: u64 = 4 * 1024 * 1024;
/// What is left of it when it exceeds the cap, bytes.
const KEEP: u64 = 2 * 1024 * 1024;
/// Holes are made of whole blocks; no file system that can make them has larger ones.
const BLOCK: u64 = 64 * 1024;
/// What [`tail`] reads at most, bytes.
const TAIL_BYTES: u64 = 64 * 1024;
/// A longer line is cut.
const MAX_LINE: usize = 512;

/// What a kernel says last (kernel/reboot.c, kernel/panic.c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// `reboot: Power down`.
    PowerDown,
    /// `reboot: System halted`.
    Halted,
    /// `reboot: Restarting system`, with or without a command.
    Restarting,
    /// `Kernel panic - not syncing: ...`: what follows.
    Panic(String),
}

/// Where the file's data begins: what lies before was freed.
///
/// # Errors
/// What the file system says.
pub fn data_start(file: &File) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(0)) {
        Ok(start) => Ok(start),
        // Nothing but a hole.
        Err(rustix::io::Errno::NXIO) => Ok(file.metadata()?.len()),
        // A file system that does not tell.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// The last lines, cleaned. A missing file has none.
///
/// # Errors
/// What the file system says.
pub fn tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL_BYTES);
    file.seek(io::SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut cleaned: Vec<String> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
    Ok(cleaned.split_off(cleaned.len().saturating_sub(lines)))
}

/// The offset at which the last `lines` lines begin, within the last `at_most` bytes.
///
/// # Errors
/// What the file system says.
pub fn lines_from_end(file: &File, lines: u32, at_most: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let floor = length.saturating_sub(at_most).max(data_start(file)?);
    let mut end = length;
    let mut found = 0_u32;
    let mut block = vec![0; 16 * 1024];
    while end > floor {
        let begin = end.saturating_sub(16 * 1024).max(floor);
        let size = usize::try_from(end - begin).unwrap_or(0);
        let part = block.get_mut(..size).unwrap_or_default();
        file.read_exact_at(part, begin)?;
        for (at, byte) in (begin..end).rev().zip(part.iter().rev()) {
            // The newline that ends the last line begins nothing.
            if *byte == b'\n' && at + 1 < length {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = begin;
    }
    Ok(if lines == 0 { length } else { floor })
}

/// A line without escape sequences (ECMA-48) and control characters.
#[must_use]
pub fn clean(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().take(4 * MAX_LINE).peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            match chars.next() {
                // A control sequence ends with a letter or one of @[\]^_`{|}~.
                Some('[') => while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {},
                // A string ends with BEL or another escape.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    while chars.next_if(|c| !matches!(c, '\u{7}' | '\u{1b}')).is_some() {}
                }
                Some(' '..='/') => {}
                _ => continue,
            }
            chars.next();
        } else if c == '\t' {
            out.push(' ');
        } else if !c.is_control() && out.chars().count() < MAX_LINE {
            out.push(c);
        }
    }
    out.trim_end().to_owned()
}

/// The kernel's message in a cleaned line: what follows `[   12.345678] `, which may come after an
/// unfinished line of somebody else, or the whole line of a kernel that writes no times.
fn last_word(line: &str) -> Option<LastWord> {
    let stamped = line.match_indices("] ").map(|(at, mark)| line.get(at + mark.len()..).unwrap_or_default());
    std::iter::once(line).chain(stamped).find_map(|message| match message {
        // Firecracker offers no power-off: a guest that powers off says the second.
        "reboot: Power down" | "reboot: Power off not available: System halted instead" => Some(LastWord::PowerDown),
        "reboot: System halted" => Some(LastWord::Halted),
        _ if message.starts_with("reboot: Restarting system") => Some(LastWord::Restarting),
        _ => message.strip_prefix("Kernel panic - not syncing: ").map(|why| LastWord::Panic(why.to_owned())),
    })
}

/// Follows a console from the beginning of the file, which is the beginning of this boot, and frees
/// what is over the cap.
#[derive(Debug, Default)]
pub struct Scanner {
    offset: u64,
    partial: Vec<u8>,
    panic: Option<LastWord>,
}

impl Scanner {
    /// Reads what was written since the last call and says what the kernel's last word in it is. A
    /// panic stays the last word for good: the restart after it is its consequence.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scan(&mut self, path: &Path) -> io::Result<Option<LastWord>> {
        let file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let length = file.metadata()?.len();
        if length < self.offset {
            (self.offset, self.partial) = (0, Vec::new());
        }
        self.offset = self.offset.max(data_start(&file)?);
        // A guest that writes faster than this is read from where its last words are.
        if length.saturating_sub(self.offset) > CAP {
            self.offset = length.saturating_sub(CAP);
        }
        let mut word = None;
        let mut block = [0; 8192];
        loop {
            let read = file.read_at(&mut block, self.offset)?;
            if read == 0 {
                break;
            }
            self.offset += u64::try_from(read).unwrap_or(0);
            for byte in block.get(..read).unwrap_or_default() {
                if *byte == b'\n' {
                    word = self.line().or(word);
                } else if self.partial.len() < 8 * MAX_LINE {
                    self.partial.push(*byte);
                }
            }
        }
        free(&file, CAP)?;
        Ok(word)
    }

    fn line(&mut self) -> Option<LastWord> {
        let bytes = std::mem::take(&mut self.partial);
        let word = last_word(&clean(&String::from_utf8_lossy(&bytes)));
        if self.panic.is_none() && matches!(word, Some(LastWord::Panic(_))) {
            self.panic.clone_from(&word);
        }
        // Only a line that is a word at all repeats it.
        word.map(|word| self.panic.clone().unwrap_or(word))
    }
}

/// Frees the beginning of a file that the VMM appends to, when it takes more than [`CAP`]. A
/// missing one takes nothing.
///
/// # Errors
/// What the file system says.
pub fn trim(path: &Path) -> io::Result<()> {
    match File::options().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => free(&opened?, CAP),
    }
}

/// The last line that has an end, without it; empty when it is longer than `at_most` bytes, or
/// there is none.
///
/// # Errors
/// What the file system says.
pub fn last_line(path: &Path, at_most: usize) -> io::Result<String> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened?,
    };
    // Its own end, and that of the line before it.
    let window = u64::try_from(at_most).unwrap_or(u64::MAX).saturating_add(2);
    let start = file.metadata()?.len().saturating_sub(window);
    file.seek(io::SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes)?;
    let Some((last, before)) = bytes.split_last() else { return Ok(String::new()) };
    if *last != b'\n' {
        return Ok(String::new());
    }
    let begin = before.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let line = match begin {
        Some(begin) => before.get(begin..).unwrap_or_default(),
        None if start == 0 => before,
        None => return Ok(String::new()),
    };
    Ok(if line.len() <= at_most { String::from_utf8_lossy(line).into_owned() } else { String::new() })
}

fn free(file: &File, cap: u64) -> io::Result<()> {
    let metadata = file.metadata()?;
    // 512: the unit of st_blocks whatever the file system's blocks are (stat(3type)).
    if metadata.blocks().saturating_mul(512) <= cap.saturating_add(BLOCK) {
        return Ok(());
    }
    let freed = metadata.len().saturating_sub(KEEP) / BLOCK * BLOCK;
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, how, 0, freed) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(0),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    fn scan(text: &str) -> Option<LastWord> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Scanner::default().scan(file.path()).unwrap()
    }

    #[test]
    fn the_last_words_of_kernels_are_understood() {
        assert_eq!(scan("[   12.3] reboot: Power down\r\n"), Some(LastWord::PowerDown));
        let firecracker = "[   12.3] reboot: Power off not available: System halted instead\r\n";
        assert_eq!(scan(firecracker), Some(LastWord::PowerDown));
        assert_eq!(scan("reboot: System halted\n"), Some(LastWord::Halted));
        assert_eq!(scan("[    1.0][    T1] reboot: Restarting system\r\n"), Some(LastWord::Restarting));
        assert_eq!(scan("debian login: [   20.1] reboot: Power down\r\n"), Some(LastWord::PowerDown));
        assert_eq!(scan("\u{1b}[0m[   20.1] reboot: Power down\u{1b}[K\r\n"), Some(LastWord::PowerDown));
        let panic = "[  9.1] sysrq: Trigger a crash\r\n[  9.2] Kernel panic - not syncing: sysrq triggered crash\r\n\
                     [  9.3] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n\
                     [ 10.3] reboot: Restarting system\r\n";
        assert_eq!(scan(panic), Some(LastWord::Panic("sysrq triggered crash".into())));
    }

    #[test]
    fn talk_about_them_is_not_one() {
        for harmless in [
            "the kernel said reboot: Power down\n",
            "[ 1.0] systemd[1]: reboot: Power down.\n",
            "[ 9.3] ---[ end Kernel panic - not syncing: x ]---\n",
            "[ 1.0] reboot: Power down",
            "",
        ] {
            assert_eq!(scan(harmless), None, "{harmless}");
        }
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = OpenOptions::new().append(true).open(file.path()).unwrap();
        let mut scanner = Scanner::default();
        writer.write_all(b"[ 1.0] reboot: Po").unwrap();
        assert_eq!(scanner.scan(file.path()).unwrap(), None);
        writer.write_all(b"wer down\n").unwrap();
        assert_eq!(scanner.scan(file.path()).unwrap(), Some(LastWord::PowerDown));
        assert_eq!(scanner.scan(Path::new("/nonexistent/console")).unwrap(), None);
    }

    #[test]
    fn tail_is_clean_and_bounded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let noise = "x".repeat(200_000);
        std::fs::write(file.path(), format!("{noise}\nfirst\n\x1b[31mred\x1b[0m\ttab\x07\n\u{9b}last\r\n\n")).unwrap();
        assert_eq!(tail(file.path(), 2).unwrap(), ["red tab", "last"]);
        let all = tail(file.path(), 100).unwrap();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|line| line.len() <= MAX_LINE));
        assert!(tail(Path::new("/nonexistent/console"), 3).unwrap().is_empty());
    }

    #[test]
    fn escape_sequences_end_where_they_end() {
        assert_eq!(clean("\u{1b}]0;title\u{7}a\u{1b}(Bb\u{1b}[1;31mc\u{1b}=d\u{1b}"), "abcd");
        assert_eq!(clean("\u{1b}[12"), "");
    }

    #[test]
    fn a_console_over_its_cap_is_freed_without_moving_what_is_left() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = OpenOptions::new().append(true).open(file.path()).unwrap();
        let mut scanner = Scanner::default();
        let line = [b'y'; 1023];
        for _ in 0..6 * 1024 {
            writer.write_all(&line).unwrap();
            writer.write_all(b"\n").unwrap();
        }
        writer.write_all(b"last\n").unwrap();
        scanner.scan(file.path()).unwrap();
        let left = std::fs::metadata(file.path()).unwrap();
        assert!(left.blocks() * 512 <= KEEP + 2 * BLOCK, "{}", left.blocks() * 512);
        assert_eq!(left.len(), 6 * 1024 * 1024 + 5, "offsets stay");
        writer.write_all(b"[ 1.0] reboot: Power down\n").unwrap();
        assert_eq!(scanner.scan(file.path()).unwrap(), Some(LastWord::PowerDown));
        let opened = File::open(file.path()).unwrap();
        assert!(data_start(&opened).unwrap() >= 3 * 1024 * 1024);
        assert_eq!(tail(file.path(), 2).unwrap(), ["last", "[ 1.0] reboot: Power down"]);
    }

    #[test]
    fn the_last_line_is_whole_or_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, wanted) in [
            ("", ""),
            ("{1}", ""),
            ("{1}\n", "{1}"),
            ("{1}\n{22}\n", "{22}"),
            ("{1}\n{2", ""),
            ("{1234567}\n", "{1234567}"),
            ("{12345678}\n", ""),
            ("{1}\n{1234567}\n", "{1234567}"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(last_line(file.path(), 9).unwrap(), wanted, "{text:?}");
        }
        assert_eq!(last_line(Path::new("/nonexistent/metrics"), 9).unwrap(), "");
        trim(Path::new("/nonexistent/metrics")).unwrap();
    }

    #[test]
    fn lines_are_counted_from_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\nbb\nccc\n").unwrap();
        let opened = File::open(file.path()).unwrap();
        let from = |lines| lines_from_end(&opened, lines, 1 << 20).unwrap();
        assert_eq!((from(0), from(1), from(2), from(3), from(9)), (9, 5, 2, 0, 0));
        assert_eq!(lines_from_end(&opened, 9, 5).unwrap(), 4);
    }
}
