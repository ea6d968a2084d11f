//! `banger image`.

use super::{Json, List};
use clap::{ArgGroup, Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Get an image from a registry, with your own network, logins (docker's) and certificate
    /// authorities
    Pull(PullImage),
    /// Make an image of a root file system: a tar, an OCI archive, the folder of an OCI layout, or
    /// what `docker save` writes
    Import(ImportImage),
    /// Take an ext4 file system of your own as an image, as it is
    Register(RegisterImage),
    /// Make registered images managed ones, as pulled and imported images are; for everybody, or
    /// for their owners only
    #[command(group(ArgGroup::new("whom").args(["shared", "private"])))]
    Promote {
        /// Everybody may use them (for administrators)
        #[arg(long)]
        shared: bool,
        /// Only their owners may, again (for administrators)
        #[arg(long)]
        private: bool,
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// List your images and those that are shared
    #[command(visible_alias = "ls")]
    List(ListImages),
    /// Show one image, and how commands run in it
    Show {
        /// The image
        image: String,
        #[command(flatten)]
        json: Json,
    },
    /// Remove images that no VM uses
    #[command(visible_alias = "rm")]
    Delete {
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// What pulls keep on your own disk
    #[command(subcommand)]
    Cache(Cache),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// Remove all downloaded layers, those of interrupted downloads too
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PullImage {
    /// A name of the catalogue, or such as debian:13 (of docker.io), ghcr.io/acme/tool:v1,
    /// localhost:5000/tool
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// The image's name [default: REF as it is]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The most that it may hold; it is stored as small as its contents allow [default: 8G]
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) size: Option<String>,
    /// OS/ARCH[/VARIANT], when the image is made for several [default: that of this host]
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// For everybody (for administrators)
    #[arg(long)]
    pub(crate) shared: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListImages {
    #[command(flatten)]
    pub(crate) list: List,
    /// The short names of the catalogue instead, and what they stand for
    #[arg(long, conflicts_with = "all")]
    pub(crate) available: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterImage {
    /// The file: an ext4 file system, without a table of partitions
    #[arg(long, value_name = "PATH")]
    pub(crate) rootfs: PathBuf,
    /// What its VMs boot with: a kernel's name, or a file (with a / in its path), which is imported
    /// under the image's name [default: as for any image]
    #[arg(long)]
    pub(crate) kernel: Option<String>,
    /// The folder with modules.dep in it, for a kernel that is a file [default: found by the
    /// kernel's release]
    #[arg(long, value_name = "FOLDER", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,
    /// The image's name
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ImportImage {
    /// The file (plain, or compressed with gzip, zstd, xz, bzip2 or lz4), the folder, or - for
    /// standard input
    pub(crate) path: PathBuf,
    /// The image's name
    #[arg(long)]
    pub(crate) name: String,
    /// The most that it may hold; it is stored as small as its contents allow [default: 8G]
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) size: Option<String>,
    /// Which image, when the archive holds several: its name or tag there
    #[arg(long = "ref", value_name = "NAME")]
    pub(crate) reference: Option<String>,
    /// For everybody (for administrators)
    #[arg(long)]
    pub(crate) shared: bool,
}
