//! What can be typed about repositories.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Workspace {
    /// Send a git repository with its working tree to a running VM
    Prepare(PrepareWorkspace),
    /// Get what was changed in the VM: as a patch, or as a branch
    Export(ExportWorkspace),
}

/// What of a repository is sent.
#[derive(Debug, Args)]
pub(crate) struct Repository {
    /// How much of it: shallow_overlay, full_copy (all history, submodules) or metadata_only (no
    /// files)
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: Mode,
    /// Begin a branch of this name in the VM [default: the branch that is checked out here]
    #[arg(long, value_name = "NAME")]
    pub(crate) branch: Option<String>,
    /// Send this commit or branch instead of HEAD and the working tree's changes
    #[arg(long, value_name = "REF")]
    pub(crate) from: Option<String>,
    /// Send files that git does not track as well, those that it ignores excepted
    #[arg(long)]
    pub(crate) include_untracked: bool,
    /// Only say what would be sent
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// One commit without its history, and the working tree as it is
    #[default]
    ShallowOverlay,
    /// All branches with their history, the working tree, and the files of submodules
    FullCopy,
    /// One commit without its history, and no files
    MetadataOnly,
}

#[derive(Debug, Args)]
pub(crate) struct PrepareWorkspace {
    /// The VM
    pub(crate) vm: String,
    /// A folder in the working tree of a git repository [default: the present folder]
    pub(crate) path: Option<PathBuf>,
    /// The folder in the VM [default: the repository's name, in the home of the image's user]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) guest_path: Option<String>,
    #[command(flatten)]
    pub(crate) repository: Repository,
    /// Replace the folder in the VM even if it holds work that is not on this host
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportWorkspace {
    /// The VM
    pub(crate) vm: String,
    /// Write the patch to this file [default: standard output]
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["diff", "branch"])]
    pub(crate) output: Option<PathBuf>,
    /// Only show which files were changed
    #[arg(long, conflicts_with = "branch")]
    pub(crate) diff: bool,
    /// Make a branch of this name in the repository on this host, with the VM's commits and what is
    /// not committed there
    #[arg(long, value_name = "NAME")]
    pub(crate) branch: Option<String>,
    /// Replace the branch, though it has other commits
    #[arg(long, requires = "branch")]
    pub(crate) force: bool,
    /// Against this commit of the repository on this host [default: what was prepared]
    #[arg(long, value_name = "REF", conflicts_with = "branch")]
    pub(crate) from: Option<String>,
    /// The most that the VM may send [default: 2G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) max_size: Option<String>,
}
