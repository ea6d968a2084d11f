//! The manual pages, written from the tree that is parsed: banger(1) and one per command. They are
//! kept in `packaging/man`, from where the packages take them; the test here, the only caller,
//! compares the two.

use crate::cli::Cli;
use clap::{Arg, Command, CommandFactory as _};

const SEE_ALSO: &str = ".SH SEE ALSO\n";

/// File name and text of each page, in the language of man(7): banger(1), and a page per command.
pub(crate) fn pages() -> Vec<(String, String)> {
    let mut root = Cli::command();
    root.build();
    let mut pages = vec![("banger.1".to_owned(), overview(&root))];
    for leaf in leaves(&root) {
        pages.push((format!("{}.1", page_name(leaf)), page(leaf)));
    }
    pages
}

fn overview(root: &Command) -> String {
    let mut page = head("banger", root);
    page += ".SH SYNOPSIS\n.B banger\n.I COMMAND\n.SH DESCRIPTION\n";
    page += "Each command has a page of its own: \\fBman banger\\-vm\\-run\\fR is about \\fBbanger vm run\\fR.\n";
    page += ".SH COMMANDS\n";
    for leaf in leaves(root) {
        page += &format!(".TP\n.BR {} (1)\n{}\n", escape(&page_name(leaf)), escape(&about(leaf)));
    }
    page += &options(root);
    let after = root.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (notes, rest) = after.split_once("Environment:\n").unwrap_or((after.as_str(), ""));
    let (environment, files) = rest.split_once("Files:\n").unwrap_or((rest, ""));
    page += &format!(".SH NOTES\n{}\n.SH ENVIRONMENT\n{}", escape(notes.trim()), entries(environment));
    page += EXIT_STATUS;
    page += &format!(".SH FILES\n{}", entries(files));
    page += ".TP\n.B /etc/banger/banger.toml\nThe configuration of the daemon.\n.TP\n\
             .B ~/.local/share/banger/ssh\nThe key and the pinned host keys of \\fBvm ssh\\fR.\n";
    page + SEE_ALSO + ".BR ssh (1),\n.BR systemctl (1)\n"
}

/// What docs/contract.md promises, for all commands.
const EXIT_STATUS: &str = ".SH EXIT STATUS\n0 when everything that was asked for is done, 1 after a failure, 2 for a \
                           command line that is not understood, 128 + n when signal n interrupted banger (130 after \
                           Ctrl\\-C), 141 when the reader of standard output went away. \\fBvm run\\fR and \\fBvm \
                           exec\\fR end with the status of their command, \\fBvm session wait\\fR and \\fBvm session \
                           attach\\fR with that of the session, \\fBvm ssh\\fR with that of ssh.\n";

/// A list of the help: a name and its meaning, behind two spaces or on the lines below, which are
/// indented further.
fn entries(list: &str) -> String {
    let mut page = String::new();
    for line in list.lines().filter(|line| !line.trim().is_empty()) {
        let words = line.trim_start();
        if line.len() - words.len() > 2 {
            page += &format!("{}\n.br\n", escape(words));
            continue;
        }
        let (name, meaning) = words.split_once("  ").unwrap_or((words, ""));
        page += &format!(".TP\n.B {}\n", escape(name));
        if !meaning.is_empty() {
            page += &format!("{}\n", escape(meaning.trim()));
        }
    }
    page
}

/// The page of one command.
fn page(command: &Command) -> String {
    let mut page = head(&page_name(command), command);
    let usage = Command::clone(command).render_usage().to_string();
    page += &format!(".SH SYNOPSIS\n{}\n", escape(usage.trim_start_matches("Usage: ")));
    let long = command.get_long_about().map(ToString::to_string).unwrap_or_else(|| about(command));
    page += &format!(".SH DESCRIPTION\n{}\n", escape(&long));
    page += &options(command);
    if let Some(after) = command.get_after_help() {
        page += &format!(".SH NOTES\n{}\n", escape(&after.to_string()));
    }
    page + EXIT_STATUS + SEE_ALSO + ".BR banger (1)\n"
}

fn options(command: &Command) -> String {
    let shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let of_one = |arg: &Arg| format!(".TP\n.B {}\n{}\n", escape(&name(arg)), escape(&meaning(arg)));
    let all: String = command.get_arguments().filter(shown).map(of_one).collect();
    if all.is_empty() { all } else { format!(".SH OPTIONS\n{all}") }
}

fn head(name: &str, command: &Command) -> String {
    let name = escape(name);
    format!(".TH {} 1\n.SH NAME\n{name} \\- {}\n", name.to_uppercase(), escape(&about(command)))
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// `banger-vm-run` of `banger vm run`.
fn page_name(command: &Command) -> String {
    command.get_bin_name().unwrap_or_else(|| command.get_name()).replace(' ', "-")
}

/// The commands that do something.
fn leaves(command: &Command) -> Vec<&Command> {
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let own = |sub: &Command| !sub.has_subcommands() || !sub.is_subcommand_required_set();
    visible.flat_map(|sub| own(sub).then_some(sub).into_iter().chain(leaves(sub))).collect()
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

/// roff's own characters: a backslash anywhere, a dot or quote at the beginning of a line, and `-`,
/// which would become a hyphen that cannot be copied.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() };
    escaped.lines().map(line).collect::<Vec<_>>().join("\n.br\n")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    #[test]
    fn the_packaged_pages_are_these() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/man"));
        let pages: BTreeMap<String, String> = pages().into_iter().collect();
        if std::env::var_os("INSTA_UPDATE").is_some_and(|value| value == "always") {
            std::fs::remove_dir_all(folder).unwrap();
            std::fs::create_dir(folder).unwrap();
            pages.iter().for_each(|(name, page)| std::fs::write(folder.join(name), page).unwrap());
        }
        let packaged: BTreeMap<String, String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
            .collect();
        let others: Vec<&String> =
            pages.keys().chain(packaged.keys()).filter(|name| pages.get(*name) != packaged.get(*name)).collect();
        assert!(
            others.is_empty(),
            "write {others:?} again: INSTA_UPDATE=always cargo nextest run --workspace the_packaged_pages"
        );
    }

    #[test]
    fn a_command_has_its_own_page_with_its_options() {
        let pages: BTreeMap<String, String> = pages().into_iter().collect();
        let run = &pages["banger-vm-run.1"];
        assert!(run.starts_with(".TH BANGER\\-VM\\-RUN 1\n"), "{run}");
        assert!(run.contains(".B \\-\\-name NAME") && run.contains(".SH DESCRIPTION\n"), "{run}");
        assert!(pages["banger.1"].contains(".BR banger\\-vm\\-run (1)"));
        assert!(!pages.contains_key("banger-vm.1"), "a group does nothing by itself");
    }

    #[test]
    fn the_page_of_banger_has_variables_files_and_options_each_in_its_place() {
        let pages: BTreeMap<String, String> = pages().into_iter().collect();
        let section = |title: &str| {
            let (_, rest) = pages["banger.1"].split_once(&format!(".SH {title}\n")).unwrap();
            rest.split("\n.SH ").next().unwrap().to_owned()
        };
        let environment = section("ENVIRONMENT");
        let names: Vec<&str> = environment.lines().filter_map(|line| line.strip_prefix(".B ")).collect();
        assert!(names.len() > 5, "{environment}");
        let is_variable = |name: &&str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        assert!(names.iter().all(is_variable), "{names:?}");
        let files = section("FILES");
        assert!(
            files.lines().filter_map(|line| line.strip_prefix(".B ")).all(|name| name.starts_with(['~', '/'])),
            "{files}"
        );
        assert!(files.contains("\ncache_size = \"10G\"\n"), "{files}");
        assert!(section("OPTIONS").contains(".B \\-\\-host HOST\n"), "{}", section("OPTIONS"));
    }
}
