//! Words of a command as one line for a shell (POSIX shell command language, section 2.2 Quoting).
//!
//! SSH carries a command as one string, which the guest's agent gives to a shell. Used by
//! [`super::ssh`]; the words must arrive as they were.

/// Characters that no shell gives a meaning to anywhere in a word.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | ',' | '+' | '@' | '%')
}

/// Words that are not a command's name for a shell when they come first and bare (section 2.4 Reserved Words,
/// and bash's).
const RESERVED: [&str; 17] = [
    "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in", "select", "then",
    "time", "until", "while",
];

/// The line that a shell splits into exactly these words. None of them may contain NUL, which no argument
/// of a program can.
#[must_use]
pub fn line<S: AsRef<str>>(words: &[S]) -> String {
    let mut quoted: Vec<String> = words.iter().map(|word| quote(word.as_ref())).collect();
    if let Some(first) = quoted.first_mut()
        && RESERVED.contains(&first.as_str())
    {
        *first = format!("'{first}'");
    }
    quoted.join(" ")
}

fn quote(word: &str) -> String {
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    // Within single quotes everything is itself but the single quote.
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn by_shell(words: &[String]) -> Vec<String> {
        let script = format!("for word in {}; do printf '%s\\0' \"$word\"; done", line(words));
        let said = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        let text = String::from_utf8(said.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_readable_where_they_can_be() {
        assert_eq!(line(&["sh", "-c", "exit 42"]), "sh -c 'exit 42'");
        assert_eq!(line(&["uname", "-a"]), "uname -a");
        assert_eq!(line(&["it's", ""]), r"'it'\''s' ''");
        assert_eq!(line(&["time", "if"]), "'time' if");
        // An assignment or a tilde in front would be something else.
        assert_eq!(line(&["A=b", "~"]), "'A=b' '~'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_gives_the_words_back(words in prop::collection::vec("[^\0]{0,12}", 1..5)) {
            prop_assert_eq!(by_shell(&words), words);
        }

        #[test]
        fn also_those_that_shells_care_about(words in prop::collection::vec("[ '\"$`\\\\!*?~#&|;<>(){}\n\t=a-]{0,12}", 1..5)) {
            prop_assert_eq!(by_shell(&words), words);
        }
    }
}
