//! Adding up: what nextest, doctests, single checks and suites have passed, failed and skipped.

use std::fmt;
use std::ops::AddAssign;

use anyhow::{Context, Result};

/// Counts of one stage or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Tally {
    /// A check that is one thing and passed.
    pub(super) const PASS: Self = Self { passed: 1, failed: 0, skipped: 0 };
    /// A check that is one thing and failed.
    pub(super) const FAIL: Self = Self { passed: 0, failed: 1, skipped: 0 };
    /// A check that was not made.
    pub(super) const SKIP: Self = Self { passed: 0, failed: 0, skipped: 1 };
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// From nextest's `Summary [ 0.2s] 32 tests run: 30 passed (1 slow, 2 leaky), 1 failed, 1 timed
/// out, 0 skipped`.
pub(super) fn nextest(output: &str) -> Result<Tally> {
    let line = output
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("Summary ["))
        .context("nextest printed no summary: the tests were not run")?;
    let (_, counts) = line.split_once("run: ").context("nextest's summary has another form")?;
    let mut tally = Tally::default();
    // What stands in brackets has been counted before them, and may have commas.
    let counts: String = counts.split('(').map(|part| part.split_once(')').map_or(part, |(_, after)| after)).collect();
    for part in counts.split(", ") {
        let mut words = part.split_whitespace();
        let number: usize = words
            .next()
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("no number in {part:?} of {line:?}"))?;
        match words.next() {
            Some("passed") => tally.passed += number,
            Some("skipped") => tally.skipped += number,
            // failed, timed out, exec failed: whatever is not named above is not good.
            _ => tally.failed += number,
        }
    }
    Ok(tally)
}

/// A test that could show nothing here, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skip {
    pub(super) test: String,
    pub(super) why: String,
}

/// The tests that have said "skipped: why" and come back early, from nextest's JUnit report.
/// nextest itself knows them as passed.
pub(super) fn skips(junit: &str) -> Vec<Skip> {
    let attribute =
        |text: &str, name: &str| Some(text.split_once(&format!(" {name}=\""))?.1.split('"').next()?.to_owned());
    let skip = |case: &str| {
        let (head, output) = case.split_once('>')?;
        let own = output.split("</testcase>").next()?;
        let why =
            own.lines().find_map(|line| line.split_once("skipped: ").filter(|(before, _)| is_beginning(before)))?.1;
        let test = format!("{} {}", attribute(head, "classname")?, attribute(head, "name")?);
        Some(Skip { test, why: why.split("</").next()?.trim().to_owned() })
    };
    junit.split("<testcase").skip(1).filter_map(skip).collect()
}

/// The beginning of a line, or of a test's output.
fn is_beginning(before: &str) -> bool {
    matches!(before.trim(), "" | "<system-out>" | "<system-err>")
}

/// From every `test result: ok. 3 passed; 0 failed; 1 ignored; ...` of `cargo test --doc`.
pub(super) fn doctests(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result: ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let [number, word] = pair else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match *word {
                "passed;" => tally.passed += number,
                "failed;" => tally.failed += number,
                "ignored;" => tally.skipped += number,
                _ => {}
            }
        }
    }
    tally
}

/// Lines of one failure that are said once more at the end.
const LINES: usize = 8;
/// Characters of such a line.
const WIDTH: usize = 300;

/// What has failed in a suite's transcript or in nextest's output, and the first lines of why:
/// whoever sees only the end of `make test` sees this.
pub(super) fn failures(output: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut open = 0;
    // The suite's result comes after everything else; before it, steps fail that may be begun
    // again.
    let result = output.rfind("\nsuite ").and_then(|from| output.get(from..)).unwrap_or(output);
    for line in result.lines() {
        let cut = || line.trim().chars().take(WIDTH).collect::<String>();
        let words = line.trim_start();
        let test = words.starts_with("FAIL [") || words.starts_with("TIMEOUT [") || words.starts_with("SIGABRT [");
        if line.starts_with("  FAIL  ") || (test && !found.contains(&cut())) {
            found.push(cut());
            open = if test { 0 } else { LINES };
        } else if open > 0 && line.starts_with("        ") {
            open -= 1;
            if let Some(last) = found.last_mut() {
                last.push_str("\n    ");
                last.push_str(&cut());
            }
        } else {
            open = 0;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_summaries_of_every_form_are_read() -> Result<()> {
        let good = "  PASS [ 0.1s] x\n────\n     Summary [   0.205s] 32 tests run: 32 passed, 0 skipped\n";
        assert_eq!(nextest(good)?, Tally { passed: 32, failed: 0, skipped: 0 });
        let held =
            "Summary [ 227.0s] 9 tests run: 8 passed (1 slow, 1 leaky), 1 failed (1 due to being leaky), 3 skipped\n";
        assert_eq!(nextest(held)?, Tally { passed: 8, failed: 1, skipped: 3 });
        let bad = "     Summary [   3.1s] 5/7 tests run: 2 passed (1 slow), 2 failed, 1 timed out, 4 skipped\nerror: test run failed\n";
        assert_eq!(nextest(bad)?, Tally { passed: 2, failed: 3, skipped: 4 });
        assert!(nextest("error: could not compile").is_err());
        Ok(())
    }

    #[test]
    fn a_test_that_says_that_it_is_skipped_is_not_one_that_passed() {
        let junit = r#"<testsuite name="a">
        <testcase name="one" classname="a::b" timestamp="x" time="0.1">
            <system-out>
running 1 test
skipped: not root
skipped: and more
test one ... ok
</system-out>
            <system-err></system-err>
        </testcase>
        <testcase name="two" classname="a" time="0.1"><system-out>nothing was skipped: all ran</system-out></testcase>
        <testcase name="three" classname="a" time="0.1"><system-err>skipped: no cpio</system-err></testcase>
        <testcase name="four" classname="a" time="0.1"/>"#;
        let skip = |test: &str, why: &str| Skip { test: test.to_owned(), why: why.to_owned() };
        assert_eq!(skips(junit), [skip("a::b one", "not root"), skip("a three", "no cpio")]);
    }

    #[test]
    fn failures_are_found_with_their_reasons() {
        let suite = "  FAIL     0.1 s  a step of an attempt\n\nsuite undo with stand-in\n  pass  a   8.2 s\n  FAIL  b   41.2 s\n        not within 20 s\n        \
                     + file\n  pass  c  1.0 s\nleaks: 1\n2 passed, 1 failed, 0 skipped";
        assert_eq!(failures(suite), ["FAIL  b   41.2 s\n    not within 20 s\n    + file"]);
        let units = "   PASS [ 0.1s] x\n   FAIL [ 0.2s] (1/2) banger a::b\n────\n   FAIL [ 0.2s] (1/2) banger a::b\n   TIMEOUT [ 9s] banger c\n";
        assert_eq!(failures(units), ["FAIL [ 0.2s] (1/2) banger a::b", "TIMEOUT [ 9s] banger c"]);
        let long = format!("\nsuite x\n  FAIL  b  1 s\n        {}\n", "y".repeat(2000));
        assert!(failures(&long).iter().all(|text| text.len() < 400));
    }

    #[test]
    fn doctests_of_all_crates_are_added() {
        let text = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        assert_eq!(doctests(text), Tally { passed: 4, failed: 2, skipped: 1 });
    }
}
