//! `image pull`, and the pull of an image that `vm run` and `vm create` name and the daemon does
//! not have. A name means what the catalogue says, else what it means to docker.

use crate::catalogue;
use crate::cli::PullImage;
use crate::client::{Client, answer, soon};
use crate::cmd::spec::{self, checked};
use crate::cmd::stored::described;
use crate::interrupt::Interrupts;
use crate::job::{self, Ended};
use crate::output::{Event, Transfers, line, ms, note, tell, took};
use crate::registry::{Platform, Reference, Registries};
use crate::upload;
use anyhow::Context as _;
use banger_policy::{Digest, ImageName};
use banger_proto::model::{CreateRequest, ErrorCode, ImageRecord, LinkRequest};
use banger_proto::stream::StreamRequest;
use std::time::Instant;

/// What is to be pulled, and as what.
struct Wanted {
    reference: Reference,
    /// What the catalogue says about the image that the reference leads to.
    expected: Option<Digest>,
    platform: Platform,
    name: String,
    build_size: Option<u64>,
    shared: bool,
}

enum Pulled {
    /// Downloaded, or taken from the cache, and sent.
    Sent(Box<ImageRecord>),
    /// The daemon had it.
    Known(Box<ImageRecord>),
    /// Interrupted, and undone but for what is in the cache; end with this status.
    Nothing(u8),
}

pub(super) async fn run(options: PullImage) -> anyhow::Result<u8> {
    let PullImage { reference: text, name, size, platform, shared } = options;
    let what = || format!("cannot pull {text}");
    let wanted = (|| {
        let (reference, expected) = meant(&text)?;
        let platform = platform.as_deref().map(Platform::parse).transpose().context("--platform")?;
        let name = name.unwrap_or_else(|| text.clone());
        checked::<ImageName>(Some(&name)).context("give it a name with --name")?;
        let build_size = spec::size("--size", size.as_deref())?;
        let platform = platform.unwrap_or_else(Platform::of_host);
        anyhow::Ok(Wanted { reference, expected, platform, name, build_size, shared })
    })();
    let wanted = wanted.with_context(what)?;
    let client = Client::connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let began = Instant::now();
    match pull(&client, &wanted, &mut interrupts).await.with_context(what)? {
        Pulled::Sent(image) => line(&format!("pulled {} in {}", described(&image), took(began.elapsed())))?,
        Pulled::Known(image) => line(&format!("{} is up to date; nothing was downloaded", described(&image)))?,
        Pulled::Nothing(status) => return Ok(status),
    }
    Ok(0)
}

/// The reference that a name stands for, and the digest that the catalogue gives with it.
///
/// # Errors
/// The catalogue cannot be read; no registry can have an image of this name.
fn meant(name: &str) -> anyhow::Result<(Reference, Option<Digest>)> {
    Ok(match catalogue::find(name)? {
        Some(entry) => (Reference::parse(&entry.reference).context("the catalogue")?, entry.digest),
        None => (Reference::parse(name)?, None),
    })
}

/// Pulls the image of a request when its name means nothing to the daemon. Gives the status to end
/// with when the user interrupted. `json`: that it is pulled is said on standard output.
///
/// # Errors
/// Why it cannot be pulled; the daemon's refusal.
pub(super) async fn missing(
    client: &Client,
    request: &CreateRequest,
    json: bool,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<u8>> {
    let Some(name) = request.image_name.clone() else { return Ok(None) };
    let unknown = match client.rpc.show_image(soon(), name.clone()).await {
        Ok(Err(error)) if error.code == ErrorCode::NotFound => error,
        other => return answer(async { other }).await.map(|_| None),
    };
    let (reference, expected) = match meant(&name) {
        Ok(meant) => meant,
        // What no registry can have is only not here.
        Err(_) if Reference::parse(&name).is_err() => return answer(async { Ok(Err(unknown)) }).await,
        Err(error) => return Err(error),
    };
    // No VM boots without a kernel, so nothing is downloaded for one.
    answer(client.rpc.pick_kernel(soon(), request.kernel_name.clone())).await?;
    if json {
        tell(&Event::Pulling { image: &name, reference: &reference.to_string() }).await?;
    } else {
        note(&format!("image {name} is not here: pulling {reference}"));
    }
    let platform = Platform::of_host();
    let wanted = Wanted { reference, expected, platform, name, build_size: None, shared: false };
    let what = || format!("there is no image {} here, and it cannot be pulled", wanted.name);
    let began = Instant::now();
    Ok(match pull(client, &wanted, interrupts).await.with_context(what)? {
        Pulled::Nothing(status) => Some(status),
        Pulled::Sent(_) | Pulled::Known(_) if json => {
            tell(&Event::Pulled { image: &wanted.name, took_ms: ms(began.elapsed()) }).await?;
            None
        }
        Pulled::Sent(image) => {
            note(&format!("pulled {} in {}", described(&image), took(began.elapsed())));
            None
        }
        Pulled::Known(_) => None,
    })
}

async fn pull(client: &Client, wanted: &Wanted, interrupts: &mut Interrupts) -> anyhow::Result<Pulled> {
    let registries = Registries::new()?;
    let pulled = pull_from(&registries, client, wanted, interrupts).await;
    // Whatever became of it: what was downloaded is in the cache.
    registries.tidy();
    pulled
}

async fn pull_from(
    registries: &Registries,
    client: &Client,
    wanted: &Wanted,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Pulled> {
    let Wanted { reference, expected, platform, name, build_size, shared } = wanted;
    let found = tokio::select! {
        found = registries.find(reference, platform.clone(), *expected) => found?,
        status = interrupts.next() => return Ok(Pulled::Nothing(status)),
    };
    let link = LinkRequest {
        name: name.clone(),
        source: reference.to_string(),
        manifest: found.digest,
        build_size: *build_size,
        shared: *shared,
    };
    if let Some(image) = answer(client.rpc.link_image(soon(), link)).await? {
        return Ok(Pulled::Known(Box::new(image)));
    }
    let lines = Transfers::new();
    let source = tokio::select! {
        source = registries.fetch(found, *build_size, &lines) => source?,
        status = interrupts.next() => {
            lines.say("interrupted; what was downloaded is kept, and the next pull goes on from there");
            return Ok(Pulled::Nothing(status));
        }
    };
    let request = StreamRequest::ImportImage {
        name: name.clone(),
        source: reference.to_string(),
        build_size: *build_size,
        shared: *shared,
        reference: None,
        pulled: true,
    };
    Ok(match upload::run(client, request, source, interrupts).await? {
        Ended::Done(result) => Pulled::Sent(Box::new(job::image(result)?)),
        Ended::Interrupted(status, None) => Pulled::Nothing(status),
        Ended::Interrupted(status, Some(_)) => {
            note(&format!("it was done before the interruption arrived; undo it with: banger image delete {name}"));
            Pulled::Nothing(status)
        }
    })
}
