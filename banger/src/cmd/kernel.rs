//! `kernel import`, `share`, `list`, `show`, `delete`.

use crate::cli::{Json, Kernel, List};
use crate::client::{Client, answer, soon};
use crate::cmd::spec::checked;
use crate::cmd::stored;
use crate::error::{explained, is};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended};
use crate::kernel_file::{is_package, modules_folder};
use crate::output::{self, age, amount, facts, line, short, table, took};
use crate::{pack, upload};
use anyhow::Context as _;
use banger_policy::KernelName;
use banger_proto::model::ErrorCode;
use banger_proto::stream::StreamRequest;
use banger_proto::time::Timestamp;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Ubuntu and others keep kernels from users; the bytes are public all the same.
const DENIED: &str = "this system keeps its kernels readable for root only. Either ask an administrator to run the\n\
    same import once, for everybody: sudo banger kernel import --shared PATH\n\
    or import the public packages: apt-get download linux-image-VERSION linux-modules-VERSION &&\n\
    banger kernel import linux-image-*.deb linux-modules-*.deb   (Debian has the modules in linux-image-VERSION)";

pub(super) async fn run(command: Kernel) -> anyhow::Result<u8> {
    match command {
        Kernel::Import { paths, modules, name, shared } => import(&paths, modules, name.as_deref(), shared).await,
        Kernel::Share { off, kernels } => share(kernels, !off).await,
        Kernel::List(options) => list(options).await,
        Kernel::Show { kernel, json } => show(kernel, json).await,
        Kernel::Delete { kernels } => delete(kernels).await,
    }
}

async fn import(paths: &[PathBuf], modules: Option<PathBuf>, name: Option<&str>, shared: bool) -> anyhow::Result<u8> {
    let what = || {
        let named: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        format!("cannot import {}", named.join(", "))
    };
    let began = Instant::now();
    let name = checked::<KernelName>(name).with_context(what)?;
    let source = source(paths, modules).with_context(what)?;
    let client = Client::connect().await?;
    let request = StreamRequest::ImportKernel { name, shared };
    let mut interrupts = Interrupts::listen()?;
    match upload::run(&client, request, source, &mut interrupts).await.with_context(what)? {
        Ended::Done(result) => {
            let kernel = job::kernel(result)?;
            line(&format!(
                "imported {} ({}, {}, {} modules) in {}",
                kernel.name,
                short(&kernel.id),
                kernel.version,
                kernel.modules.len(),
                took(began.elapsed())
            ))?;
            Ok(0)
        }
        Ended::Interrupted(status, None) => Ok(status),
        Ended::Interrupted(status, Some(result)) => {
            let kernel = job::kernel(result)?;
            output::note(&format!(
                "the import was done before the interruption arrived; undo it with: banger kernel delete {}",
                kernel.name
            ));
            Ok(status)
        }
    }
}

/// Sends the kernel of an image that is registered, which gets the image's name.
///
/// # Errors
/// Why it cannot be imported; another sentence than that of `kernel import` when the name is taken.
pub(super) async fn of_image(
    client: &Client,
    path: &Path,
    modules: Option<PathBuf>,
    name: &str,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Ended> {
    let what = || format!("cannot import the kernel {}", path.display());
    let source = source(&[path.to_owned()], modules).with_context(what)?;
    let request = StreamRequest::ImportKernel { name: Some(name.to_owned()), shared: false };
    let sent = upload::run(client, request, source, interrupts).await;
    let taken = |error: anyhow::Error| {
        if is(&error, ErrorCode::AlreadyExists) {
            let hint = format!(
                "take that one: --kernel {name}; or delete it: banger kernel delete {name}; or give the image another name"
            );
            return explained(format!("there is a kernel of the name {name} already"), hint);
        }
        error
    };
    sent.map_err(taken).with_context(what)
}

/// A kernel's file with the folder of its modules, or the packages of a distribution.
fn source(paths: &[PathBuf], modules: Option<PathBuf>) -> anyhow::Result<upload::Source> {
    let files = paths.iter().map(|path| upload::open(path, DENIED)).collect::<anyhow::Result<Vec<File>>>()?;
    let mut packages = 0;
    for (path, file) in paths.iter().zip(&files) {
        let is = is_package(file).with_context(|| format!("cannot read {}", path.display()))?;
        packages += usize::from(is);
    }
    match (paths, packages) {
        ([path], 0) => {
            let mut files = files;
            let file = files.pop().context("no kernel was named")?;
            let modules = modules.map_or_else(|| modules_folder(path, &file), |given| Ok(Some(given)))?;
            pack::kernel(file, modules.as_deref())
        }
        (_, packages) if packages < paths.len() => Err(explained(
            "several files can only be the packages (.deb, .rpm) of one kernel",
            "give one kernel file, or every package of it as it was downloaded",
        )),
        _ if modules.is_some() => {
            Err(explained("packages have their modules in them", "leave --modules out, or give the kernel file itself"))
        }
        _ => pack::packages(files),
    }
}

async fn share(kernels: Vec<String>, shared: bool) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let share = async |name: &str| answer(client.rpc.share_kernel(soon(), name.to_owned(), shared)).await;
    stored::each(&kernels, "share the kernel", |name| stored::shared(name, shared), share).await
}

async fn list(options: List) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let page = async |after| answer(client.rpc.list_kernels(soon(), options.all, after)).await;
    let mut kernels = stored::all(page).await.context("cannot list the kernels")?;
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    if options.json.json {
        output::json(&kernels)?;
        return Ok(0);
    }
    if kernels.is_empty() {
        output::note("no kernels; import one with: banger kernel import /boot/vmlinuz-VERSION");
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = kernels
        .iter()
        .map(|kernel| {
            vec![
                kernel.name.to_string(),
                stored::owner(&kernel.owner_name, kernel.shared),
                short(&kernel.id),
                kernel.version.clone(),
                amount(kernel.size_bytes),
                kernel.modules.len().to_string(),
                age(kernel.created_at, now),
            ]
        })
        .collect();
    table(&["NAME", "OWNER", "ID", "VERSION", "SIZE", "MODULES", "AGE"], &rows, |_, _| None)?;
    Ok(0)
}

async fn show(kernel: String, as_json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let what = format!("cannot show the kernel {kernel}");
    let kernel = answer(client.rpc.pick_kernel(soon(), Some(kernel))).await.context(what)?;
    if as_json.json {
        output::json(&kernel)?;
        return Ok(0);
    }
    facts(&[
        ("name", kernel.name.to_string()),
        ("id", kernel.id.to_string()),
        ("owner", stored::owner(&kernel.owner_name, kernel.shared)),
        ("version", kernel.version.clone()),
        ("size", amount(kernel.size_bytes)),
        ("modules", kernel.modules.join(" ")),
        ("created", kernel.created_at.to_string()),
    ])?;
    Ok(0)
}

async fn delete(kernels: Vec<String>) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let delete = async |name: &str| answer(client.rpc.delete_kernel(soon(), name.to_owned())).await;
    stored::each(&kernels, "delete the kernel", |name| format!("deleted {name}"), delete).await
}
