//! The manual page banger(1), written from the tree that is parsed. The package carries it as
//! `packaging/man/banger.1`; the test here, its only caller, compares the two.

use crate::cli::Cli;
use clap::{Arg, Command, CommandFactory as _};

/// The page in the language of man(7).
pub(crate) fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let about = root.get_about().map(ToString::to_string).unwrap_or_default();
    let mut page = format!(".TH BANGER 1\n.SH NAME\nbanger \\- {}\n", escape(&about));
    page += ".SH SYNOPSIS\n.B banger\n.I COMMAND\n.SH COMMANDS\n";
    leaves(&root, &mut page);
    let after = root.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (notes, environment) = after.split_once("Environment:").unwrap_or((after.as_str(), ""));
    page += &format!(".SH NOTES\n{}\n.SH ENVIRONMENT\n", escape(notes.trim()));
    for line in environment.trim().lines() {
        let (name, meaning) = line.trim().split_once("  ").unwrap_or((line, ""));
        page += &format!(".TP\n.B {}\n{}\n", escape(name), escape(meaning.trim()));
    }
    page += ".SH EXIT STATUS\nThat of the command for \\fBvm run\\fR, \\fBvm exec\\fR and \\fBvm ssh\\fR; else 0, 1 after \
             a failure, 2 for a command line that is not understood, 130 after Ctrl\\-C.\n";
    page += ".SH FILES\n.TP\n.B /etc/banger/banger.toml\nThe configuration of the daemon.\n.TP\n\
             .B ~/.local/share/banger/ssh\nThe key and the pinned host keys of \\fBvm ssh\\fR.\n";
    page += ".SH SEE ALSO\n.BR ssh (1),\n.BR systemctl (1)\n";
    page
}

/// A section of each command that does something.
fn leaves(command: &Command, page: &mut String) {
    let visible: Vec<&Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    for sub in &visible {
        if sub.has_subcommands() {
            leaves(sub, page);
            continue;
        }
        let usage = Command::clone(sub).render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").to_owned();
        *page += &format!(".SS {}\n", escape(&usage));
        *page += &format!("{}\n", escape(&sub.get_about().map(ToString::to_string).unwrap_or_default()));
        for arg in
            sub.get_arguments().filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        {
            *page += &format!(".TP\n.B {}\n{}\n", escape(&name(arg)), escape(&meaning(arg)));
        }
    }
}

fn name(arg: &Arg) -> String {
    let flags = [arg.get_short().map(|c| format!("-{c}")), arg.get_long().map(|long| format!("--{long}"))];
    let flags: Vec<String> = flags.into_iter().flatten().collect();
    let values =
        arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    match (flags.is_empty(), arg.get_action().takes_values()) {
        (true, _) => values,
        (false, true) => format!("{} {values}", flags.join(", ")),
        (false, false) => flags.join(", "),
    }
}

fn meaning(arg: &Arg) -> String {
    arg.get_help().map(ToString::to_string).unwrap_or_default()
}

/// roff's own characters: a backslash anywhere, a dot or quote at the beginning of a line, and `-`, which
/// would become a hyphen that cannot be copied.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() };
    escaped.lines().map(line).collect::<Vec<_>>().join("\n.br\n")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_packaged_page_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/man/banger.1");
        if std::env::var_os("INSTA_UPDATE").is_some_and(|value| value == "always") {
            std::fs::write(path, page()).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap() == page(),
            "write it again: INSTA_UPDATE=always cargo test -p banger"
        );
    }
}
