//! Comments, against the rule for them: lines of prose end at 100 columns.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const COLUMNS: usize = 100;

/// Lines of comments that are wider, but for what cannot be broken: tables, code, and one long
/// word.
fn wide(text: &str) -> Vec<(usize, &str)> {
    let mut fence = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some(words) = line.trim_start().strip_prefix("//") else {
            fence = false;
            continue;
        };
        let words = words.trim_start_matches(['/', '!']);
        fence ^= words.trim_start().starts_with("```");
        // Behind the marker and its space, code is four columns further in.
        let plain = !words.starts_with("     ") && !words.trim_start().starts_with('|') && words.trim().contains(' ');
        let drawn = words.trim_start().split("   ").count() > 1;
        if line.chars().count() > COLUMNS && plain && !fence && !drawn {
            found.push((number, line));
        }
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') || name == "target" || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            sources(&path, found)?;
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn a_comment_that_is_too_wide_is_found_and_a_table_is_none() {
    let long = "word ".repeat(30);
    assert_eq!(wide(&format!("/// {long}\nfn x() {{}}\n")).len(), 1);
    for fine in [
        format!("/// | {long} |"),
        format!("//!     {long}"),
        format!("/// ```\n/// {long}"),
        format!("let x = {long};"),
    ] {
        assert!(wide(&fine).is_empty(), "{fine}");
    }
}

#[test]
fn lines_of_prose_end_at_100_columns() -> Result<()> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files)?;
    ensure!(files.len() > 300, "only {} files were found", files.len());
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        all.extend(wide(&text).into_iter().map(|line| format!("{}: {line:?}", path.display())));
    }
    ensure!(all.is_empty(), "{}", all.join("\n"));
    Ok(())
}
