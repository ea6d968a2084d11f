//! What an upload shall become: parsed from the request once, when its stream is asked for, and
//! kept with the ticket.

use super::error::StoreError;
use super::spooled::most_for;
use banger_policy::limits::{DEFAULT_BUILD_BYTES, MAX_DISK_BYTES};
use banger_policy::{Digest, ImageName, KernelName, Peer};
use banger_proto::model::{ImageRecord, KernelRecord};

/// What a kernel's tar may have, bytes; a full one of a distribution has about 600 MiB.
const MAX_KERNEL_UPLOAD: u64 = 2 << 30;
/// The longest text of where an image came from, characters.
const MAX_SOURCE: usize = 200;

/// A checked request, which its user may make: of nothing else there is one.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    Image(WantedImage),
    Kernel(WantedKernel),
}

#[derive(Clone, Debug)]
pub(crate) struct WantedImage {
    pub(super) name: ImageName,
    pub(super) source: String,
    pub(super) build_size: u64,
    pub(super) shared: bool,
    pub(super) reference: Option<String>,
    /// The source is a registry's reference.
    pub(super) pulled: bool,
    /// It is a file system of the peer's own, and no archive.
    pub(super) registered: Option<Registered>,
}

/// What is said of an image that is registered.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    /// Digest and name of the kernel of its VMs; the default one when `None`.
    pub(super) kernel: Option<(Digest, KernelName)>,
}

#[derive(Clone, Debug)]
pub(crate) struct WantedKernel {
    pub(super) name: Option<KernelName>,
    pub(super) shared: bool,
}

impl WantedImage {
    /// # Errors
    /// For a bad name or size, and when it shall be shared and the peer does not decide that.
    pub(crate) fn new(
        peer: &Peer,
        name: &str,
        source: &str,
        build_size: Option<u64>,
        shared: bool,
    ) -> Result<Self, StoreError> {
        let size = build_size.unwrap_or(DEFAULT_BUILD_BYTES);
        if size > MAX_DISK_BYTES {
            return Err(StoreError::TooLarge(size));
        }
        let name = name.parse::<ImageName>()?;
        may_be_shared(peer, shared)?;
        Ok(Self {
            name,
            source: source.chars().filter(|c| !c.is_control()).take(MAX_SOURCE).collect(),
            build_size: size.next_multiple_of(4096),
            shared,
            reference: None,
            pulled: false,
            registered: None,
        })
    }

    /// An ext4 file system that is taken as it is. `kernel` is one that the peer may use.
    ///
    /// # Errors
    /// For a bad name.
    pub(crate) fn registered(
        peer: &Peer,
        name: &str,
        source: &str,
        kernel: Option<KernelRecord>,
    ) -> Result<Self, StoreError> {
        let image = Self::new(peer, name, source, Some(MAX_DISK_BYTES), false)?;
        let kernel = kernel.map(|kernel| (kernel.id, kernel.name));
        Ok(Self { registered: Some(Registered { kernel }), ..image })
    }

    /// Which of several images of an archive is meant.
    pub(crate) fn reference(self, reference: Option<&str>) -> Self {
        Self { reference: reference.map(|text| text.chars().take(MAX_SOURCE).collect()), ..self }
    }

    /// The source is a registry's reference.
    pub(crate) fn pulled(self, pulled: bool) -> Self {
        Self { pulled, ..self }
    }

    /// Was it pulled from the same place before?
    pub(super) fn renews(&self, image: &ImageRecord) -> bool {
        self.pulled && self.name == image.name && self.source == image.source
    }
}

impl WantedKernel {
    /// # Errors
    /// For a bad name, and when it shall be shared and the peer does not decide that.
    pub(crate) fn new(peer: &Peer, name: Option<&str>, shared: bool) -> Result<Self, StoreError> {
        let name = name.map(str::parse).transpose()?;
        may_be_shared(peer, shared)?;
        Ok(Self { name, shared })
    }
}

fn may_be_shared(peer: &Peer, shared: bool) -> Result<(), StoreError> {
    if shared {
        let _grant = banger_policy::store::share(peer).granted().map_err(StoreError::ImportShared)?;
    }
    Ok(())
}

impl Wanted {
    pub(super) fn title(&self) -> String {
        match self {
            Self::Image(WantedImage { name, registered: Some(_), .. }) => format!("register image {name}"),
            Self::Image(WantedImage { name, .. }) => format!("import image {name}"),
            Self::Kernel(WantedKernel { name: Some(name), .. }) => format!("import kernel {name}"),
            Self::Kernel(WantedKernel { name: None, .. }) => "import kernel".to_owned(),
        }
    }

    /// How much may be uploaded for it, bytes.
    pub(super) fn cap(&self) -> u64 {
        match self {
            Self::Image(image) if image.registered.is_some() => image.build_size,
            Self::Image(image) => most_for(image.build_size),
            Self::Kernel(_) => MAX_KERNEL_UPLOAD,
        }
    }
}
