//! `image register`: an ext4 file system of the user's own becomes an image as it is, with a kernel
//! of its own if the user says so.

use crate::cli::RegisterImage;
use crate::client::{Client, answer, soon};
use crate::cmd::kernel;
use crate::cmd::spec::checked;
use crate::cmd::stored::described;
use crate::error::explained;
use crate::interrupt::Interrupts;
use crate::job::{self, Ended};
use crate::output::{self, line, took};
use crate::{pack, upload};
use anyhow::Context as _;
use banger_policy::{ImageName, KernelName};
use banger_proto::stream::StreamRequest;
use std::path::Path;
use std::time::Instant;

pub(super) async fn run(options: RegisterImage) -> anyhow::Result<u8> {
    let RegisterImage { rootfs, kernel, modules, name } = options;
    let what = || format!("cannot register {}", rootfs.display());
    let began = Instant::now();
    checked::<ImageName>(Some(&name)).with_context(what)?;
    // A kernel's name has no slash that a file's path would not have, too: `./` makes a path of
    // any.
    let file = kernel.as_deref().filter(|word| word.contains('/')).map(Path::new);
    if file.is_some() {
        checked::<KernelName>(Some(&name)).context("its kernel gets the image's name").with_context(what)?;
    } else if modules.is_some() {
        let hint = "a kernel that banger knows has its modules: leave --modules out";
        return Err(explained("--modules goes with a kernel that is a file", hint)).with_context(what);
    }
    let source = pack::root_file_system(&rootfs).with_context(what)?;
    let shown = std::path::absolute(&rootfs).unwrap_or_else(|_| rootfs.clone()).display().to_string();
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let mut brought = None;
    if let Some(file) = file {
        match kernel::of_image(&client, file, modules, &name, &mut interrupts).await.with_context(what)? {
            Ended::Done(_) => brought = Some(Brought { client: &client, name: &name }),
            Ended::Interrupted(status, None) => return Ok(status),
            Ended::Interrupted(status, Some(_)) => {
                Brought { client: &client, name: &name }.delete().await;
                return Ok(status);
            }
        }
    }
    let kernel = if brought.is_some() { Some(name.clone()) } else { kernel };
    let request = StreamRequest::RegisterImage { name: name.clone(), source: shown, kernel };
    let sent = upload::run(&client, request, source, &mut interrupts).await;
    if let (Some(kernel), Err(_) | Ok(Ended::Interrupted(_, None))) = (&brought, &sent) {
        kernel.delete().await;
    }
    match sent.with_context(what)? {
        Ended::Done(result) => {
            let image = job::image(result)?;
            let kernel = image.kernel.as_ref().map(|kernel| format!(", kernel {kernel}")).unwrap_or_default();
            line(&format!("registered {}{kernel} in {}", described(&image), took(began.elapsed())))?;
            Ok(0)
        }
        Ended::Interrupted(status, None) => Ok(status),
        Ended::Interrupted(status, Some(_)) => {
            let kernel = brought.map(|_| format!(" && banger kernel delete {name}")).unwrap_or_default();
            output::note(&format!(
                "it was registered before the interruption arrived; undo it with: banger image delete {name}{kernel}"
            ));
            Ok(status)
        }
    }
}

/// The kernel that was imported for an image that there is not yet.
struct Brought<'a> {
    client: &'a Client,
    name: &'a str,
}

impl Brought<'_> {
    async fn delete(&self) {
        let name = self.name;
        if let Err(error) = answer(self.client.rpc.delete_kernel(soon(), name.to_owned())).await {
            output::note(&format!(
                "the kernel {name}, which was imported for the image, could not be deleted again: {error:#}\n  \
                 delete it with: banger kernel delete {name}"
            ));
        }
    }
}
