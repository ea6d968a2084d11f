//! What lies in the store: images and kernels, each as one of its names.

use crate::time::Timestamp;
use banger_policy::{Digest, ImageConfig, ImageName, KernelName};
use serde::{Deserialize, Serialize};

/// A root file system in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its id: the digest of its content.
    pub id: Digest,
    /// Its name, unique per owner.
    pub name: ImageName,
    /// Whose the name is.
    pub owner: u32,
    /// The owner's login name when it was imported.
    pub owner_name: String,
    /// An administrator lets everybody use it.
    pub shared: bool,
    /// Made by banger, or promoted; not so when it was registered.
    pub managed: bool,
    /// Its folder.
    pub artifact_dir: String,
    /// The ext4 in it.
    pub rootfs_path: String,
    /// What seeds `/root` of new work disks.
    pub work_seed_path: Option<String>,
    /// Size of the ext4, bytes; no root disk of a VM of this image is smaller.
    pub build_size: u64,
    /// What it takes on the host, bytes.
    pub allocated_bytes: u64,
    /// The image carries a container engine; informational.
    pub docker: bool,
    /// Where it came from, as the user named it.
    pub source: String,
    /// Digest of the image's manifest, when it was an OCI image: what registries call it.
    pub manifest_digest: Option<Digest>,
    /// How commands run in it. The command line shows its fields beside these.
    pub config: ImageConfig,
    /// What the kernel is called that VMs of it get when none is named. `None`: the default one, or
    /// one that those who may use the image have no name for any more.
    pub kernel: Option<KernelName>,
    /// The digest of that kernel.
    pub kernel_id: Option<Digest>,
    /// When it was imported.
    pub created_at: Timestamp,
    /// When its row last changed.
    pub updated_at: Timestamp,
}

/// A guest kernel in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// Its id: the digest of its content.
    pub id: Digest,
    /// Its name, unique per owner.
    pub name: KernelName,
    /// Whose the name is.
    pub owner: u32,
    /// The owner's login name when it was imported.
    pub owner_name: String,
    /// An administrator lets everybody use it.
    pub shared: bool,
    /// What the kernel says of itself, such as `6.12.41+deb13-cloud-amd64`.
    pub version: String,
    /// Modules that go into the initramfs, in load order.
    pub modules: Vec<String>,
    /// What it and its modules take on the host, bytes.
    pub size_bytes: u64,
    /// When it was imported.
    pub created_at: Timestamp,
}

/// Where a list of images or kernels goes on: behind this entry, by owner and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoreKey {
    /// The owner's uid.
    pub owner: u32,
    /// The owner's login name.
    pub owner_name: String,
    /// The entry's name.
    pub name: String,
}

/// Some of the images or kernels, ordered by owner and name: as many as fit a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorePage<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Pass it on to get the rest.
    pub next: Option<StoreKey>,
}

/// An image of a registry that the daemon may have: by the digest of its manifest, for one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    /// Name of the image.
    pub name: String,
    /// The reference. A name that was pulled from the same one before changes its meaning; another
    /// one is taken.
    pub source: String,
    /// Of the manifest for one platform.
    pub manifest: Digest,
    /// The most that it may hold, bytes; the default when `None`.
    pub build_size: Option<u64>,
    /// Everybody may use it; for administrators.
    pub shared: bool,
}
