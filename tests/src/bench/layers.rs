//! Who uses whom: crates only downwards, as the table says, and no circle between the modules at
//! the top of a crate (a file or a folder of its `src`). Deeper, files of one folder may use each
//! other, but a folder and its neighbours may not.
//!
//! Read from the sources: `crate::NAME`, `super::`, and groups in braces. A name that the module
//! above has from one of its modules counts as that module's. Comments and tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Each crate, and the crates of this workspace that it may use.
const CRATES: &[(&str, &[&str])] = &[
    ("policy", &[]),
    ("banger-proto", &["banger-policy"]),
    ("banger-priv", &["banger-policy", "banger-proto"]),
    ("banger-image", &["banger-policy", "banger-proto"]),
    ("banger-vmm", &["banger-policy"]),
    // The agent is for the tests' fakes: an optional dependency.
    ("banger-link", &["banger-policy", "banger-proto", "banger-vmm", "banger-guest"]),
    ("banger-files", &[]),
    ("banger-guest", &["banger-files", "banger-policy", "banger-proto"]),
    ("banger", &["banger-files", "banger-policy", "banger-proto"]),
    ("bangerd", &["banger-policy", "banger-proto", "banger-image", "banger-vmm", "banger-link"]),
];

/// Modules of a crate that do not use each other at all, and why.
const APART: &[(&str, &str, &str, &str)] =
    &[("banger-guest", "agent", "init", "two processes: what they agree on is in console, init_kind and launch")];

/// Modules, each with those that it uses and where.
type Graph = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;
/// A file by its path from `src`, and its text.
type Source = (String, String);

/// Prints what is against the rules. True when nothing is.
#[expect(clippy::print_stdout, reason = "the findings are what was asked for")]
pub(super) fn check(workspace: &Path) -> Result<bool> {
    let mut findings = Vec::new();
    for (name, allowed) in CRATES {
        let folder = workspace.join(name);
        findings.extend(crate_uses(&folder, allowed)?.into_iter().map(|used| format!("{name} must not use {used}")));
        let sources = sources(&folder.join("src"))?;
        for (place, circle) in forbidden(&sources) {
            let modules = circle.modules.join(", ");
            findings.push(format!("{name}/{place}: {modules} use each other:\n{}", circle.uses));
        }
        let graph = graph(&sources, "");
        for (_, one, other, why) in APART.iter().filter(|(crate_, ..)| crate_ == name) {
            let (there, back) = (uses(&graph, one, other), uses(&graph, other, one));
            findings.extend(there.chain(back).map(|use_| format!("{name}: {use_}, but they stay apart: {why}")));
        }
    }
    findings.iter().for_each(|finding| println!("{finding}"));
    Ok(findings.is_empty())
}

/// Crates of this workspace under `[dependencies]` that are not allowed.
fn crate_uses(folder: &Path, allowed: &[&str]) -> Result<Vec<String>> {
    let path = folder.join("Cargo.toml");
    let manifest = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let names = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(['.', ' ', '=']).next());
    Ok(names.filter(|name| name.starts_with("banger") && !allowed.contains(name)).map(str::to_owned).collect())
}

/// The files of a crate.
fn sources(src: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    collect(src, "", &mut files)?;
    Ok(files)
}

/// Circles with the folder in which they are: all at the top, and deeper those with a folder in
/// them.
fn forbidden(sources: &[Source]) -> Vec<(String, Circle)> {
    let mut folders = BTreeSet::from([""]);
    for (path, _) in sources {
        folders.extend(path.match_indices('/').filter_map(|(at, _)| path.get(..at)));
    }
    let mut found = Vec::new();
    for folder in &folders {
        let of_a_folder = |circle: &Circle| {
            circle.modules.iter().any(|module| folders.contains(format!("{folder}/{module}").as_str()))
        };
        let circles = circles(&graph(sources, folder)).into_iter();
        let against = circles.filter(|circle| folder.is_empty() || of_a_folder(circle));
        found.extend(against.map(|circle| ((*folder).to_owned(), circle)));
    }
    found
}

/// The modules that lie in a folder, and which of them they use. The top of the crate is the folder
/// without a name.
fn graph(sources: &[Source], folder: &str) -> Graph {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let inside: Vec<(&str, &Source)> =
        sources.iter().filter_map(|source| Some((source.0.strip_prefix(&prefix)?, source))).collect();
    let tops: BTreeSet<&str> = inside.iter().map(|(path, _)| top_of(path)).collect();
    let faces = [format!("{prefix}lib.rs"), format!("{prefix}mod.rs"), format!("{folder}.rs")];
    let handed_on = sources.iter().filter(|(path, _)| faces.contains(path)).flat_map(|(_, text)| handed_on(text));
    let handed_on: BTreeMap<String, String> = handed_on.collect();
    let from_crate = format!("crate::{}", prefix.replace('/', "::"));
    let mut graph = Graph::new();
    for (path, (whole, text)) in inside {
        let top = top_of(path);
        if matches!(path, "lib.rs" | "main.rs" | "mod.rs") {
            continue;
        }
        let depth = path.trim_end_matches("/mod.rs").matches('/').count();
        let from_here = "super::".repeat(depth + 1);
        for used in used_modules(&without_tests_and_comments(text), &[&from_crate, &from_here]) {
            let used = if tops.contains(used.as_str()) { &used } else { handed_on.get(&used).unwrap_or(&used) };
            if used != top && tops.contains(used.as_str()) {
                graph.entry(top.to_owned()).or_default().entry(used.clone()).or_default().insert(whole.clone());
            }
        }
    }
    graph
}

/// The names that a module has from modules inside it, with the module where each is at home.
fn handed_on(text: &str) -> Vec<(String, String)> {
    let code = without_tests_and_comments(text);
    let mut names = Vec::new();
    for statement in code.split(';') {
        let Some((_, path)) = statement.split_once("use ") else { continue };
        let path = path.trim_start_matches("self::");
        let (Some(module), Some((_, rest))) = (name(path), path.split_once("::")) else { continue };
        let last = |word: &str| word.rsplit([':', ' ']).next().and_then(name);
        names.extend(rest.split(['{', '}', ',']).filter_map(|word| Some((last(word.trim())?, module.clone()))));
    }
    names
}

/// Sources below a folder by their path from `src`; tests are left out.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<Source>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if matches!(name.as_str(), "tests" | "tests.rs" | "fakes.rs") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &path, files)?;
        } else if name.ends_with(".rs") {
            files.push((path, fs::read_to_string(entry.path())?));
        }
    }
    Ok(())
}

/// The module at the top that a file belongs to.
fn top_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Tests stand at the foot of a file.
fn without_tests_and_comments(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |all, line| all + line + "\n")
}

/// The names that follow one of these beginnings of paths.
fn used_modules(code: &str, starts: &[&str]) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for start in starts {
        for (at, _) in code.match_indices(start) {
            let before = code.get(..at).and_then(|text| text.chars().next_back());
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                names_at(code.get(at + start.len()..).unwrap_or_default(), &mut used);
            }
        }
    }
    used
}

/// The name that comes next, or the first name of each path in a group of braces.
fn names_at(text: &str, used: &mut BTreeSet<String>) {
    let Some(group) = text.strip_prefix('{') else {
        used.extend(name(text));
        return;
    };
    let mut depth = 0_usize;
    let mut begins = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && depth == 0 && !c.is_whitespace() => {
                begins = false;
                used.extend(group.get(at..).and_then(name));
            }
            _ => {}
        }
    }
}

fn name(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.get(..end).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Where one module uses another.
fn uses<'a>(graph: &'a Graph, from: &'a str, to: &'a str) -> impl Iterator<Item = String> + 'a {
    let files = graph.get(from).and_then(|used| used.get(to)).into_iter().flatten();
    files.map(move |file| format!("{from} uses {to} in {file}"))
}

/// Modules each of which reaches all others.
struct Circle {
    modules: Vec<String>,
    uses: String,
}

fn circles(graph: &Graph) -> Vec<Circle> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|module| (module, reachable(graph, module))).collect();
    let mut found: Vec<Circle> = Vec::new();
    for (module, reach) in &reached {
        let together = |other: &&&String| reached.get(**other).is_some_and(|back| back.contains(module));
        let modules: Vec<String> = reach.iter().filter(together).map(|name| (*name).clone()).collect();
        if modules.len() < 2 || found.iter().any(|circle| circle.modules == modules) {
            continue;
        }
        let mut uses = String::new();
        for (from, to, files) in modules
            .iter()
            .flat_map(|from| graph.get(from).into_iter().flatten().map(move |(to, files)| (from, to, files)))
        {
            if modules.contains(to) {
                let files: Vec<&str> = files.iter().map(String::as_str).collect();
                uses += &format!("  {from} uses {to} in {}\n", files.join(", "));
            }
        }
        found.push(Circle { modules, uses });
    }
    found
}

/// All that is used by a module, directly or not; the module itself when it is in a circle.
fn reachable<'a>(graph: &'a Graph, from: &'a String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for used in graph.get(module).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(used) {
                next.push(used);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        let found = forbidden(&sources(folder.path()).expect("read"));
        found.into_iter().map(|(_, circle)| circle.modules).collect()
    }

    #[test]
    fn a_circle_is_found_whatever_way_it_is_written() {
        for back in [
            "use crate::a::X;",
            "use super::a;",
            "fn f() { crate::a::f() }",
            "use crate::{\n    c::{D, E},\n    a::F,\n};",
        ] {
            let files = [("a.rs", "use crate::b::Y;\n"), ("b.rs", back), ("c.rs", "")];
            assert_eq!(found(&files), [["a", "b"]], "{back}");
        }
        let deep = [("a/mod.rs", ""), ("a/x.rs", "use super::super::b;\n"), ("b.rs", "use crate::a;")];
        assert_eq!(found(&deep), [["a", "b"]]);
        let face = [("a/mod.rs", "use super::b;\n"), ("a/x.rs", ""), ("b.rs", "use crate::a;")];
        assert_eq!(found(&face), [["a", "b"]]);
        let long = [("a.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", "use crate::a;")];
        assert_eq!(found(&long), [["a", "b", "c"]]);
    }

    #[test]
    fn a_circle_is_found_through_names_that_the_crate_hands_on() {
        for lib in ["pub use b::{Y, Z};", "mod b;\npub(crate) use b::deeper::{\n    X as Z,\n};"] {
            let files = [("lib.rs", lib), ("a.rs", "use crate::Z;"), ("b.rs", "use crate::a;")];
            assert_eq!(found(&files), [["a", "b"]], "{lib}");
        }
        let of_another = [("lib.rs", "pub use other::Z;"), ("a.rs", "use crate::Z;"), ("b.rs", "use crate::a;")];
        assert_eq!(found(&of_another), Vec::<Vec<String>>::new());
    }

    #[test]
    fn a_folder_and_its_neighbours_use_each_other_in_no_circle() {
        for back in ["use super::super::b::Y;", "use crate::a::b::Y;", "use crate::a::{b, c};", "use super::super::Y;"]
        {
            let files = [
                ("a/mod.rs", "mod b;\nmod f;\npub use b::Y;"),
                ("a/b.rs", "use super::f;"),
                ("a/c.rs", ""),
                ("a/f/mod.rs", ""),
                ("a/f/x.rs", back),
            ];
            assert_eq!(found(&files), [["b", "f"]], "{back}");
        }
        // `super::super::z` of a file is no neighbour's.
        let above = [("a/b.rs", "use super::super::f;"), ("a/f/mod.rs", "use super::b;"), ("f.rs", "")];
        assert_eq!(found(&above), Vec::<Vec<String>>::new());
    }

    #[test]
    fn modules_that_stay_apart_are_told_in_either_direction() {
        let files = BTreeMap::from([("init".to_owned(), BTreeSet::from(["agent/mod.rs".to_owned()]))]);
        let graph = Graph::from([("agent".to_owned(), files)]);
        assert_eq!(uses(&graph, "agent", "init").collect::<Vec<_>>(), ["agent uses init in agent/mod.rs"]);
        assert_eq!(uses(&graph, "init", "agent").count(), 0);
    }

    #[test]
    fn comments_tests_and_files_of_one_folder_do_not_count() {
        let files = [
            ("a.rs", "//! See [`crate::b`].\nfn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}\n"),
            ("b/mod.rs", "use crate::a;\nmod x;\n"),
            ("b/x.rs", "use super::y;"),
            ("b/y.rs", "use super::x;"),
            ("b/tests.rs", "use crate::c;"),
            ("c.rs", "use crate::b; use othercrate::c;"),
        ];
        assert_eq!(found(&files), Vec::<Vec<String>>::new());
    }

    #[test]
    fn this_workspace_keeps_the_rules() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent");
        assert!(check(workspace).expect("read"), "see above");
    }
}
