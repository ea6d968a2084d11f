//! `banger system`.

use super::List;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show versions, what VMs, images and kernels there are, and what they take
    Status(List),
    /// Print the same numbers as Prometheus reads them, for node_exporter's folder of text files
    Metrics(Metrics),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Metrics {
    /// Everyone's, for root and members of group banger-admin
    #[arg(long)]
    pub(crate) all: bool,
}
