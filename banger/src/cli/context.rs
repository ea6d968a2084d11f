//! Names for other machines.

use super::Json;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Context {
    /// Give a machine a name
    Add {
        /// The name, for --host and for `context use`
        name: String,
        /// `ssh://[USER@]MACHINE[:PORT]`
        host: String,
    },
    /// List the names; * is the one in use
    List(Json),
    /// Ask this machine's daemon from now on; `local` is this one's
    Use {
        /// The name
        name: String,
    },
    /// Forget a name
    Remove {
        /// The name
        name: String,
    },
}
