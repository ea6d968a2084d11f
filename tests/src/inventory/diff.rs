//! Comparison of two inventories, and what a scenario may change on purpose.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::{Inventory, Kind};

/// What happened to one thing between two inventories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It was not there before.
    Added {
        /// Its detail now.
        detail: String,
    },
    /// It is not there any more.
    Gone {
        /// Its detail then.
        detail: String,
    },
    /// It is there under the same name with another detail.
    Altered {
        /// Its detail then.
        before: String,
        /// Its detail now.
        after: String,
    },
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Sort of the thing.
    pub kind: Kind,
    /// Its name in the inventory.
    pub name: String,
    /// What happened to it.
    pub what: What,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, detail) = match &self.what {
            What::Added { detail } => ('+', detail.clone()),
            What::Gone { detail } => ('-', detail.clone()),
            What::Altered { before, after } => ('~', format!("{before}  =>  {after}")),
        };
        write!(f, "{sign} {:<8} {}", self.kind, self.name)?;
        if detail.is_empty() { Ok(()) } else { write!(f, "  ({detail})") }
    }
}

/// Which changes an [`Allow`] covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Covers {
    Anything,
    OnlyAltered,
}

/// A change that a scenario declares to be its purpose. Declared in the scenario, with the reason,
/// never globally.
#[derive(Debug, Clone)]
pub struct Allow {
    kind: Kind,
    pattern: String,
    covers: Covers,
    reason: &'static str,
}

impl Allow {
    /// Things of this sort whose name matches `pattern` (`*` stands for any text) may come, go and
    /// change.
    #[must_use]
    pub fn anything(kind: Kind, pattern: impl Into<String>, reason: &'static str) -> Self {
        Self { kind, pattern: pattern.into(), covers: Covers::Anything, reason }
    }

    /// They may change, but not come or go.
    #[must_use]
    pub fn altered(kind: Kind, pattern: impl Into<String>, reason: &'static str) -> Self {
        Self { kind, pattern: pattern.into(), covers: Covers::OnlyAltered, reason }
    }

    /// Why it may.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    fn covers(&self, change: &Change) -> bool {
        self.kind == change.kind
            && matches_pattern(&self.pattern, &change.name)
            && (self.covers == Covers::Anything || matches!(change.what, What::Altered { .. }))
    }
}

fn matches_pattern(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    // The shortest match of the text before each further star leaves the most to what follows; the
    // last piece must sit at the end.
    (0..=name.len()).filter_map(|at| name.get(at..)).any(|tail| matches_pattern(rest, tail))
}

/// The differences that nobody declared, and those that somebody did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Leaks, losses and alterations.
    pub leaks: Vec<Change>,
    /// Declared by the scenario.
    pub declared: Vec<Change>,
}

impl fmt::Display for Difference {
    /// Readable, a line per leak; the last line is `leaks: N`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.leaks {
            writeln!(f, "{change}")?;
        }
        write!(f, "leaks: {}", self.leaks.len())
    }
}

/// Compares. Every name of either side is looked at.
#[must_use]
pub fn leaks(before: &Inventory, after: &Inventory, allowed: &[Allow]) -> Difference {
    let mut difference = Difference::default();
    for kind in Kind::ALL {
        let old: std::collections::BTreeMap<&str, &str> = before.of(kind).collect();
        let new: std::collections::BTreeMap<&str, &str> = after.of(kind).collect();
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for name in names {
            let what = match (old.get(name), new.get(name)) {
                (None, Some(detail)) => What::Added { detail: (*detail).to_owned() },
                (Some(detail), None) => What::Gone { detail: (*detail).to_owned() },
                (Some(before), Some(after)) if before != after => {
                    What::Altered { before: (*before).to_owned(), after: (*after).to_owned() }
                }
                _ => continue,
            };
            let change = Change { kind, name: name.to_owned(), what };
            if allowed.iter().any(|allow| allow.covers(&change)) {
                difference.declared.push(change);
            } else {
                difference.leaks.push(change);
            }
        }
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(items: &[(Kind, &str, &str)]) -> Inventory {
        let mut inventory = Inventory::default();
        for (kind, name, detail) in items {
            inventory.add(*kind, *name, *detail);
        }
        inventory
    }

    #[test]
    fn added_gone_and_altered_are_told_apart() {
        let before = inventory(&[(Kind::Link, "eth0", "up"), (Kind::Link, "old", "up"), (Kind::Dm, "same", "t")]);
        let after = inventory(&[(Kind::Link, "eth0", "down"), (Kind::Link, "new", "up"), (Kind::Dm, "same", "t")]);
        let text = leaks(&before, &after, &[]).to_string();
        assert_eq!(text, "~ link     eth0  (up  =>  down)\n+ link     new  (up)\n- link     old  (up)\nleaks: 3");
    }

    #[test]
    fn a_declared_change_is_no_leak_and_only_of_its_sort() {
        let after =
            inventory(&[(Kind::File, "/var/lib/banger/images/a", ""), (Kind::Row, "/var/lib/banger/images/a", "")]);
        let allow = [Allow::anything(Kind::File, "/var/lib/banger/images/*", "imported on purpose")];
        let difference = leaks(&Inventory::default(), &after, &allow);
        assert_eq!(difference.leaks.len(), 1);
        assert_eq!(difference.declared.len(), 1);
        assert!(difference.leaks.iter().all(|change| change.kind == Kind::Row));
    }

    #[test]
    fn growth_may_be_allowed_without_allowing_a_new_file() {
        let before = inventory(&[(Kind::File, "/db", "1 byte")]);
        let after = inventory(&[(Kind::File, "/db", "2 bytes"), (Kind::File, "/db-journal", "9 bytes")]);
        let difference = leaks(&before, &after, &[Allow::altered(Kind::File, "/db*", "it grows")]);
        assert_eq!(difference.leaks.len(), 1, "{difference}");
    }

    #[test]
    fn stars_match_any_text_in_any_place() {
        for (pattern, name, expected) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abcd", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a", "ab", false),
            ("*é", "né", true),
        ] {
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} {name}");
        }
    }
}
