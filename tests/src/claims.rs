//! What the pages say of tests and files, against the tree: a name that nothing bears holds
//! nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Pages with a table whose column names tests: how that column is called.
const TABLES: [(&str, &str); 3] =
    [("SECURITY.md", "held by"), ("docs/threat-model.md", "test"), ("banger-image/tests/README.md", "held by")];

/// Pages that name files.
const PAGES: [&str; 10] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/contract.md",
    "docs/dependencies.md",
    "docs/known-issues.md",
    "docs/threat-model.md",
    "tests/README.md",
    "banger-image/tests/README.md",
];

/// Words of the tables that are no tests: lints of clippy, keys of the configuration.
const NO_TESTS: [&str; 3] = ["indexing_slicing", "arithmetic_side_effects", "bridge_ip"];

/// What the tree has.
struct Tree {
    /// Functions with an attribute that makes them tests.
    tests: BTreeSet<String>,
    /// Texts in the bench, whole: among them the names of suites, scenarios and attempts.
    texts: BTreeSet<String>,
    /// Files and folders, from the root.
    paths: Vec<String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self { tests: BTreeSet::new(), texts: BTreeSet::new(), paths: Vec::new() };
        tree.folder(root, root)?;
        ensure!(tree.tests.len() > 300 && tree.texts.len() > 100, "the tree was not read");
        Ok(tree)
    }

    fn folder(&mut self, root: &Path, folder: &Path) -> Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry?.path();
            let below = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if below.starts_with("target") || below.starts_with('.') || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                self.paths.push(format!("{below}/"));
                self.folder(root, &path)?;
                continue;
            }
            if below.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).with_context(|| format!("read {below}"))?;
                // This file names what is not there.
                self.source(&text, below.starts_with("tests/src/") && !below.ends_with("claims.rs"));
            }
            self.paths.push(below);
        }
        Ok(())
    }

    fn source(&mut self, text: &str, bench: bool) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(name) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
                && std::mem::take(&mut is_test)
            {
                self.tests.extend(name.split('(').next().map(str::to_owned));
            }
        }
        if bench {
            self.texts.extend(text.split('"').filter(|text| text.len() < 80).map(str::to_owned));
        }
    }

    /// Is there a file or folder whose path ends so?
    fn has_file(&self, word: &str) -> bool {
        self.paths.iter().any(|path| path == word || path.ends_with(&format!("/{word}")))
    }

    /// Is there something of this name? Words with underscores are tests, with hyphens scenarios or
    /// crates.
    fn has(&self, word: &str) -> bool {
        let file = |word: &str| self.has_file(word);
        if [".rs", ".toml", "/"].iter().any(|end| word.ends_with(end)) {
            return file(word);
        }
        if word.contains('_') {
            return self.tests.contains(word) || NO_TESTS.contains(&word);
        }
        self.texts.contains(word) || file(&format!("{word}/")) || file(&format!("{word}.rs"))
    }
}

/// Words in backticks, each with the number of its line.
fn words(line: (usize, &str)) -> impl Iterator<Item = (usize, &str)> {
    let (at, text) = line;
    text.split('`').skip(1).step_by(2).map(move |word| (at, word))
}

/// Names in backticks in the column of that title, of all tables of a page.
fn claims<'a>(page: &'a str, title: &str) -> Vec<(usize, &'a str)> {
    let mut column = None;
    let mut found = Vec::new();
    for (at, line) in (1..).zip(page.lines()) {
        let Some(cells) = line.strip_prefix("| ").map(|row| row.trim_end_matches(" |").split(" | ")) else {
            // The line below a head is of bars and hyphens only.
            column = column.filter(|_| line.starts_with("|-"));
            continue;
        };
        let cells: Vec<&str> = cells.collect();
        match column {
            None => column = cells.iter().position(|cell| *cell == title).or(Some(usize::MAX)),
            Some(column) => found.extend(cells.get(column).into_iter().flat_map(|cell| words((at, cell)))),
        }
    }
    let is_name = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    found.retain(|(_, word)| is_name(word) && word.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

/// Files of the repository that a page names: with a folder before them, or one of ours alone.
fn files(page: &str) -> Vec<(usize, &str)> {
    let lines = (1..).zip(page.lines());
    let is_path = |word: &str| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        plain && !word.starts_with('/') && [".rs", ".md", ".toml", ".sh", ".sql"].iter().any(|end| word.ends_with(end))
    };
    // `000N` stands for the next number.
    lines.flat_map(words).filter(|(_, word)| is_path(word) && !word.contains("000N")).collect()
}

/// The releases that pages and messages name are those that the daemon knows.
#[test]
fn every_release_of_firecracker_that_is_named_is_the_one_that_counts() -> Result<()> {
    use banger_policy::vmm::{NEWEST_TESTED, OLDEST, Release};
    let admin = page(&root(), "docs/admin.md")?;
    let tested = if OLDEST == NEWEST_TESTED {
        format!("Tested is {OLDEST};")
    } else {
        format!("Tested are {OLDEST} to {NEWEST_TESTED};")
    };
    for words in [format!("Firecracker {OLDEST} or newer"), tested] {
        ensure!(admin.contains(&words), "docs/admin.md does not say {words:?}");
    }
    for name in ["README.md", "docs/admin.md", "docs/guide.md", "bangerd/src/rpc/answer/vm.rs"] {
        let text = page(&root(), name)?;
        for (before, _) in text.match_indices(" or newer").map(|(at, _)| text.split_at(at)) {
            let mut words = before.split_whitespace().rev();
            let (release, program) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if program.ends_with("Firecracker") {
                ensure!(Release::of(&format!("v{release}")) == Some(OLDEST), "{name}: {program} {release} or newer");
            }
        }
    }
    Ok(())
}

fn page(root: &Path, name: &str) -> Result<String> {
    std::fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_test_that_a_table_names_is_there() -> Result<()> {
    let tree = Tree::read(&root())?;
    ensure!(!tree.has("only_whole_marks_are_ours") && !tree.has("no-such-scenario"), "everything is there");
    for (name, title) in TABLES {
        let text = page(&root(), name)?;
        let claims = claims(&text, title);
        ensure!(claims.len() > 50, "the tables of {name} were not read: {claims:?}");
        let missing: Vec<_> = claims.into_iter().filter(|(_, word)| !tree.has(word)).collect();
        ensure!(missing.is_empty(), "{name} names what is not there (line, name): {missing:?}");
    }
    Ok(())
}

#[test]
fn every_file_that_a_page_names_is_there() -> Result<()> {
    let tree = Tree::read(&root())?;
    let mut seen = 0;
    for name in PAGES {
        let text = page(&root(), name)?;
        let files = files(&text);
        seen += files.len();
        let missing: Vec<_> = files.into_iter().filter(|(_, word)| !tree.has_file(word)).collect();
        ensure!(missing.is_empty(), "{name} names files that are not there (line, name): {missing:?}");
    }
    ensure!(seen > 80, "only {seen} names of files were read");
    Ok(())
}
