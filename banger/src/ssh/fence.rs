//! Our lines in the text of a `~/.ssh/config`: put at its top, and taken out again. Everything else
//! stays as it is, byte for byte, whatever it is: the text need not be UTF-8.

const BEGIN: &[u8] = b"# >>> banger: made by `banger ssh-config --install`, removed by `--uninstall` >>>\n";
/// Stands between the two when there was no file before, so that none is left behind.
const NEW_FILE: &[u8] = b"# (banger made this file)\n";
const END: &[u8] = b"# <<< banger <<<\n";

/// What is wrong with the lines that are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// The text without our lines.
///
/// # Errors
/// When only one of the two marks is there: what is ours cannot be told.
pub(super) fn without(text: &[u8]) -> Result<Vec<u8>, Damaged> {
    let mut rest = text.to_vec();
    while let Some(from) = find(&rest, BEGIN) {
        let length = rest.get(from..).and_then(|ours| find(ours, END)).ok_or(Damaged)?;
        rest.drain(from..from + length + END.len());
    }
    if find(&rest, END).is_some() { Err(Damaged) } else { Ok(rest) }
}

/// The text with our lines at its top; `None`: there was no file.
///
/// # Errors
/// As [`without`].
pub(super) fn with(text: Option<&[u8]>, line: &str) -> Result<Vec<u8>, Damaged> {
    let is_ours = text.is_none_or(is_new_file);
    let mut all = BEGIN.to_vec();
    if is_ours {
        all.extend(NEW_FILE);
    }
    all.extend(line.as_bytes());
    all.push(b'\n');
    all.extend(END);
    all.extend(without(text.unwrap_or_default())?);
    Ok(all)
}

/// Did we make the file?
pub(super) fn is_new_file(text: &[u8]) -> bool {
    find(text, &[BEGIN, NEW_FILE].concat()).is_some()
}

/// Where a line begins that is this one.
fn find(text: &[u8], line: &[u8]) -> Option<usize> {
    let at_line_start = |at: usize| at == 0 || text.get(at - 1) == Some(&b'\n');
    text.windows(line.len()).enumerate().position(|(at, part)| part == line && at_line_start(at))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const LINE: &str = "Include \"/x\"";

    #[test]
    fn the_users_text_comes_back_byte_for_byte() {
        for text in
            [&b""[..], b"Host *\n  User bob", b"\n\nHost a\r\n", b"\xff\xfe\0", b"# >>> banger\n", b"Port 22\n# no\n"]
        {
            let installed = with(Some(text), LINE).unwrap();
            assert!(installed.ends_with(text) && find(&installed, b"Include \"/x\"\n").is_some());
            assert_eq!(without(&installed).unwrap(), text);
            assert_eq!(with(Some(&installed), LINE).unwrap(), installed, "once is enough");
            assert_eq!(without(&with(Some(&installed), "Include \"/y\"").unwrap()).unwrap(), text);
            assert_eq!(without(text).unwrap(), text);
            assert!(!is_new_file(&installed));
        }
        let made = with(None, LINE).unwrap();
        assert!(is_new_file(&made) && with(Some(&made), LINE).unwrap() == made && without(&made).unwrap().is_empty());
    }

    #[test]
    fn lines_that_were_moved_go_back_to_the_top() {
        let ours = with(Some(b""), LINE).unwrap();
        let moved = [b"Host a\n", ours.as_slice(), b"Host b\n"].concat();
        assert_eq!(with(Some(&moved), LINE).unwrap(), [ours.as_slice(), b"Host a\nHost b\n"].concat());
    }

    #[test]
    fn half_of_our_lines_are_left_alone() {
        let ours = with(Some(b""), LINE).unwrap();
        let half = ours.strip_suffix(END).unwrap();
        for text in [half, END, &[b"Host a\n", END].concat()] {
            assert_eq!((without(text), with(Some(text), LINE)), (Err(Damaged), Err(Damaged)));
        }
    }
}
