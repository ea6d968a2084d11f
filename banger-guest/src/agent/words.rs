//! The words of a command that the daemon sends.
//!
//! SSH carries a command as one line (RFC 4254 section 6.5). The daemon quotes each word as a POSIX shell would want it; here the line
//! becomes the same words again, and no shell sees them.

/// A line that the daemon does not write.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command's words cannot be told apart")]
pub(super) struct BadLine;

/// The words of a line in which nothing but single quotes, a backslash before one character, and spaces between words have a meaning
/// (POSIX shell command language, section 2.2).
pub(super) fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, BadLine> {
    let mut words = Vec::new();
    // A word begins with its first character or quote: '' is an empty one.
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' => words.extend(word.take()),
            b'\'' => {
                let quoted = word.get_or_insert_default();
                loop {
                    match bytes.next().ok_or(BadLine)? {
                        b'\'' => break,
                        other => quoted.push(other),
                    }
                }
            }
            b'\\' => word.get_or_insert_default().push(bytes.next().ok_or(BadLine)?),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    if words.is_empty() || line.contains(&0) { Err(BadLine) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn words(line: &str) -> Vec<String> {
        split(line.as_bytes()).unwrap().into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
    }

    #[test]
    fn what_the_daemon_writes_becomes_its_words_again() {
        assert_eq!(words("uname -a"), ["uname", "-a"]);
        assert_eq!(words("sh -c 'exit 42'"), ["sh", "-c", "exit 42"]);
        assert_eq!(words(r"'it'\''s' ''"), ["it's", ""]);
        assert_eq!(words("'time' if"), ["time", "if"]);
        assert_eq!(words("'a\n\t$HOME \"*\" \\' 'ü'"), ["a\n\t$HOME \"*\" \\", "ü"]);
    }

    #[test]
    fn nothing_is_expanded() {
        assert_eq!(
            words("echo $HOME * ~ `id` ; & | > x"),
            ["echo", "$HOME", "*", "~", "`id`", ";", "&", "|", ">", "x"]
        );
    }

    #[test]
    fn half_a_line_is_no_command() {
        for line in ["", "   ", "'a", "a\\", "'a\0'"] {
            assert_eq!(split(line.as_bytes()), Err(BadLine), "{line:?}");
        }
    }
}
