//! What SECURITY.md says of tests, against the tree: a name that nothing bears holds nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Words of the table that are no tests: lints of clippy, keys of the configuration.
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

    /// Is there something of this name? Words with underscores are tests, with hyphens scenarios or crates.
    fn has(&self, word: &str) -> bool {
        let file = |word: &str| self.paths.iter().any(|path| path == word || path.ends_with(&format!("/{word}")));
        if [".rs", ".toml", "/"].iter().any(|end| word.ends_with(end)) {
            return file(word);
        }
        if word.contains('_') {
            return self.tests.contains(word) || NO_TESTS.contains(&word);
        }
        self.texts.contains(word) || file(&format!("{word}/")) || file(&format!("{word}.rs"))
    }
}

/// Words in backticks in the column "held by" of the table of rules.
fn claims(text: &str) -> Vec<(usize, &str)> {
    let rows = text.lines().enumerate().skip_while(|(_, line)| !line.starts_with("| rule |")).skip(2);
    let column = rows.filter_map(|(at, row)| Some((at + 1, row.strip_prefix("| ")?.split(" | ").nth(1)?)));
    let words = column.flat_map(|(at, held)| held.split('`').skip(1).step_by(2).map(move |word| (at, word)));
    let is_name = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    words.filter(|(_, word)| is_name(word) && word.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

#[test]
fn every_test_that_security_md_names_is_there() -> Result<()> {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tree = Tree::read(&root)?;
    ensure!(!tree.has("only_whole_marks_are_ours") && !tree.has("no-such-scenario"), "everything is there");
    let text = std::fs::read_to_string(root.join("SECURITY.md")).context("read SECURITY.md")?;
    let claims = claims(&text);
    ensure!(claims.len() > 60, "the table was not read: {claims:?}");
    let missing: Vec<_> = claims.into_iter().filter(|(_, word)| !tree.has(word)).collect();
    ensure!(missing.is_empty(), "SECURITY.md names what is not there (line, name): {missing:?}");
    Ok(())
}
