//! What errors of all parts of the daemon have in common. What a user is answered is decided in
//! `rpc/answer`.

use banger_policy::access::Owner;
use banger_policy::quota::Exceeded;
use banger_proto::model::{MAX_ERROR, cut};
use std::borrow::Cow;
use std::error::Error;
use std::io;

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        // Some errors repeat their source in their own message.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    // Also for the journal: a line of a log is one line.
    cut(text, MAX_ERROR).replace('\n', " ")
}

/// Did the host's disk run full somewhere below this error?
pub(crate) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let file = error.downcast_ref::<io::Error>().map(io::Error::kind);
        let record = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        if file == Some(io::ErrorKind::StorageFull) || record == Some(rusqlite::ErrorCode::DiskFull) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A failed step in one line: its name is the error's own text, and why it failed are its sources.
pub(crate) fn step(error: &(dyn Error + 'static)) -> String {
    if is_full(error) { format!("{error}: the host's disk is full") } else { chain(error) }
}

/// A user would have too much.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct OverLimit {
    /// Whose limit it is.
    pub(crate) user: Cow<'static, str>,
    pub(crate) why: Exceeded,
}

impl OverLimit {
    pub(crate) fn of(user: &Owner, why: Exceeded) -> Self {
        Self { user: user.name.clone(), why }
    }
}
