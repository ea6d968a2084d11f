//! The answer to a question of permission.

/// The answer to a question of permission. It cannot be mistaken for a boolean, and what it allows
/// is a value that the operation consumes.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<Grant, Reason> {
    /// Do it, with this.
    Allow(Grant),
    /// Do not, because.
    Deny(Reason),
}

impl<Grant, Reason> Decision<Grant, Reason> {
    /// The grant, or the reason as an error.
    ///
    /// # Errors
    /// The reason of a refusal.
    pub fn granted(self) -> Result<Grant, Reason> {
        match self {
            Self::Allow(grant) => Ok(grant),
            Self::Deny(reason) => Err(reason),
        }
    }
}
