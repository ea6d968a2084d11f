//! Who uses whom: crates only downwards, as the table says, and no circle between the modules at
//! the top of a crate (a file or a folder of its `src`). What is inside a folder is the folder's
//! affair.
//!
//! Read from the sources: `crate::NAME`, `super::` from the top, and `use crate::{...}` groups.
//! Comments and tests do not count.

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

/// Prints what is against the rules. True when nothing is.
#[expect(clippy::print_stdout, reason = "the findings are what was asked for")]
pub(super) fn check(workspace: &Path) -> Result<bool> {
    let mut findings = Vec::new();
    for (name, allowed) in CRATES {
        let folder = workspace.join(name);
        findings.extend(crate_uses(&folder, allowed)?.into_iter().map(|used| format!("{name} must not use {used}")));
        let graph = graph(&folder.join("src"))?;
        for circle in circles(&graph) {
            findings.push(format!("{name}: {} use each other:\n{}", circle.modules.join(", "), circle.uses));
        }
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

/// The modules at the top of a crate and what they use.
fn graph(src: &Path) -> Result<Graph> {
    let mut files = Vec::new();
    collect(src, "", &mut files)?;
    let tops: BTreeSet<String> = files.iter().map(|(path, _)| top_of(path).to_owned()).collect();
    let mut graph = Graph::new();
    for (path, text) in &files {
        let top = top_of(path);
        if matches!(top, "lib" | "main") {
            continue;
        }
        let depth = path.matches('/').count();
        for used in used_modules(&without_tests_and_comments(text), depth) {
            if used != top && tops.contains(&used) {
                graph.entry(top.to_owned()).or_default().entry(used).or_default().insert(path.clone());
            }
        }
    }
    Ok(graph)
}

/// Sources below a folder by their path from `src`; tests are left out.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) -> Result<()> {
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

/// Names after `crate::`, and after as many `super::` as lead to the top, for a file so deep in
/// folders.
fn used_modules(code: &str, depth: usize) -> BTreeSet<String> {
    let to_top = "super::".repeat(depth + 1);
    let mut used = BTreeSet::new();
    for start in ["crate::", to_top.as_str()] {
        let mut rest = code;
        while let Some(at) = rest.find(start) {
            let before = rest.get(..at).and_then(|text| text.chars().next_back());
            let after = rest.get(at + start.len()..).unwrap_or_default();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                names_at(after, &mut used);
            }
            rest = after;
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
        circles(&graph(folder.path()).expect("read")).into_iter().map(|circle| circle.modules).collect()
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
        let long = [("a.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", "use crate::a;")];
        assert_eq!(found(&long), [["a", "b", "c"]]);
    }

    #[test]
    fn modules_that_stay_apart_are_told_in_either_direction() {
        let files = BTreeMap::from([("init".to_owned(), BTreeSet::from(["agent/mod.rs".to_owned()]))]);
        let graph = Graph::from([("agent".to_owned(), files)]);
        assert_eq!(uses(&graph, "agent", "init").collect::<Vec<_>>(), ["agent uses init in agent/mod.rs"]);
        assert_eq!(uses(&graph, "init", "agent").count(), 0);
    }

    #[test]
    fn comments_tests_and_a_folders_own_affairs_do_not_count() {
        let files = [
            ("a.rs", "//! See [`crate::b`].\nfn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}\n"),
            ("b/mod.rs", "use crate::a;\nmod x;\n"),
            ("b/x.rs", "use super::y; use crate::b::y;"),
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
