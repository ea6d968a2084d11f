//! `banger job`.

use super::Json;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// List your jobs, newest first
    #[command(visible_alias = "ls")]
    List(Json),
    /// Undo jobs that are running
    Cancel {
        /// Such as job-7
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<String>,
    },
}
