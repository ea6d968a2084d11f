//! A finding of `banger doctor` in the table of this suite, and how it is provoked.

/// A finding that is not well. A function of the source that can say two of them has two rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// File and function whose finding it is, as `caller::groups`.
    pub(super) said_by: &'static str,
    pub(super) way: Way,
}

/// Whether the suite can bring it about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Provoked(Case),
    /// Why not.
    NotHere(&'static str),
}

/// How a finding comes and goes. All lines are typed in [`super::FOLDER`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// Of the scenario.
    pub(super) name: &'static str,
    /// The check's name, as doctor prints it.
    pub(super) check: &'static str,
    pub(super) status: &'static str,
    /// Some words of what it has found.
    pub(super) says: &'static str,
    /// Root's command that breaks something. Empty: the asker's own shell is what is wrong.
    pub(super) provoke: &'static str,
    /// The shell in which doctor is asked, started by root.
    pub(super) shell: &'static str,
    /// What is typed into that shell before doctor.
    pub(super) before: &'static str,
    /// What is typed while the mend runs, on a terminal.
    pub(super) keys: &'static str,
    /// What the mend's words stand for: a word, and what it is here.
    pub(super) meant: Option<(&'static str, &'static str)>,
    /// A command that the mend's own output tells to go on with.
    pub(super) then: &'static str,
    /// Root's command that brings back what the mend does not.
    pub(super) after: &'static str,
}

pub(super) const ROOT: &str = "bash";
pub(super) const ALICE: &str = "runuser -u alice -- env HOME=/home/alice USER=alice bash";
pub(super) const CAROL: &str = "runuser -u carol -- env HOME=/home/carol USER=carol bash";

pub(super) const fn fail(
    said_by: &'static str,
    (name, check): (&'static str, &'static str),
    provoke: &'static str,
    says: &'static str,
) -> Row {
    row(said_by, (name, check), "fail", provoke, says)
}

pub(super) const fn warn(
    said_by: &'static str,
    (name, check): (&'static str, &'static str),
    provoke: &'static str,
    says: &'static str,
) -> Row {
    row(said_by, (name, check), "warn", provoke, says)
}

const fn row(
    said_by: &'static str,
    (name, check): (&'static str, &'static str),
    status: &'static str,
    provoke: &'static str,
    says: &'static str,
) -> Row {
    let case = Case {
        name,
        check,
        status,
        says,
        provoke,
        shell: ROOT,
        before: "",
        keys: "",
        meant: None,
        then: "",
        after: "",
    };
    Row { said_by, way: Way::Provoked(case) }
}

pub(super) const fn not_here(said_by: &'static str, why: &'static str) -> Row {
    Row { said_by, way: Way::NotHere(why) }
}

/// A row with one field of its case set. What is not provoked has none.
macro_rules! with {
    ($row:expr, $($field:ident : $value:expr),*) => {
        match $row.way {
            Way::Provoked(case) => Row { said_by: $row.said_by, way: Way::Provoked(Case { $($field: $value,)* ..case }) },
            Way::NotHere(_) => $row,
        }
    };
}

impl Row {
    pub(super) const fn after(self, after: &'static str) -> Self {
        with!(self, after: after)
    }

    pub(super) const fn asked_in(self, shell: &'static str) -> Self {
        with!(self, shell: shell)
    }

    pub(super) const fn typed_before(self, before: &'static str) -> Self {
        with!(self, before: before)
    }

    pub(super) const fn answered(self, keys: &'static str) -> Self {
        with!(self, keys: keys)
    }

    pub(super) const fn meaning(self, word: &'static str, here: &'static str) -> Self {
        with!(self, meant: Some((word, here)))
    }

    pub(super) const fn then(self, then: &'static str) -> Self {
        with!(self, then: then)
    }
}
