//! `banger system`.

use super::List;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show versions, and how many VMs and jobs there are and what the VMs use
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
