//! How much of what a user may have, has, and by which word.

use serde::{Deserialize, Serialize};

/// A limit and its use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaLimit {
    /// The key in the configuration.
    pub name: String,
    /// In bytes, or else counted.
    pub bytes: bool,
    /// What there is of it.
    pub used: u64,
    /// The most; `None`: no limit.
    pub limit: Option<u64>,
    /// Where the limit comes from: a section of the configuration, or that nobody has set it.
    pub from: String,
}

/// The limits of one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The user's number.
    pub owner: u32,
    /// The user's login name.
    pub owner_name: String,
    /// Each limit.
    pub limits: Vec<QuotaLimit>,
}

/// Some of the users, ordered by number and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaPage {
    /// At most 16, so that a page fits a frame.
    pub quotas: Vec<Quota>,
    /// Pass it on to get the rest.
    pub next: Option<(u32, String)>,
    /// The limits of the whole host.
    pub host: Vec<QuotaLimit>,
}
