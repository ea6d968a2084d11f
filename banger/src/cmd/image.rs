//! `image import`, `register`, `promote`, `list`, `show`, `delete`.

use crate::catalogue;
use crate::cli::{Image, ImportImage, Json, List, ListImages};
use crate::client::{Client, answer, soon};
use crate::cmd::spec::{self, checked};
use crate::cmd::stored::{self, described, owner};
use crate::cmd::{cache, pull, register};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended};
use crate::output::{self, age, amount, facts, line, short, table, took};
use crate::{pack, upload};
use anyhow::Context as _;
use banger_policy::ImageName;
use banger_proto::model::ImageRecord;
use banger_proto::stream::StreamRequest;
use banger_proto::time::Timestamp;
use std::path::Path;
use std::time::Instant;

pub(super) async fn run(command: Image) -> anyhow::Result<u8> {
    match command {
        Image::Pull(options) => pull::run(options).await,
        Image::Import(options) => import(options).await,
        Image::Register(options) => register::run(options).await,
        Image::Promote { shared, private, images } => promote(images, shared, private).await,
        Image::List(ListImages { list, available: true }) => list_available(list.json),
        Image::List(ListImages { list: options, .. }) => list(options).await,
        Image::Show { image, json } => show(image, json).await,
        Image::Delete { images } => delete(images).await,
        Image::Cache(command) => cache::run(&command),
    }
}

async fn import(options: ImportImage) -> anyhow::Result<u8> {
    let ImportImage { path, name, size, reference, shared } = options;
    let what = || format!("cannot import {}", path.display());
    let began = Instant::now();
    checked::<ImageName>(Some(&name)).with_context(what)?;
    let build_size = spec::size("--size", size.as_deref()).with_context(what)?;
    let source = pack::image(&path).with_context(what)?;
    let client = Client::connect().await?;
    let shown = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        std::path::absolute(&path).unwrap_or_else(|_| path.clone()).display().to_string()
    };
    let (name_of, pulled) = (name.clone(), false);
    let request = StreamRequest::ImportImage { name: name_of, source: shown, build_size, shared, reference, pulled };
    let mut interrupts = Interrupts::listen()?;
    match upload::run(&client, request, source, &mut interrupts).await.with_context(what)? {
        Ended::Done(result) => {
            line(&format!("imported {} in {}", described(&job::image(result)?), took(began.elapsed())))?;
            Ok(0)
        }
        Ended::Interrupted(status, None) => Ok(status),
        Ended::Interrupted(status, Some(_)) => {
            output::note(&format!(
                "the import was done before the interruption arrived; undo it with: banger image delete {name}"
            ));
            Ok(status)
        }
    }
}

async fn promote(images: Vec<String>, shared: bool, private: bool) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    if !shared && !private {
        let promote = async |name: &str| answer(client.rpc.promote_image(soon(), name.to_owned())).await;
        return stored::each(&images, "promote the image", |name| format!("{name} is managed"), promote).await;
    }
    let share = async |name: &str| answer(client.rpc.share_image(soon(), name.to_owned(), shared)).await;
    stored::each(&images, "promote the image", |name| stored::shared(name, shared), share).await
}

async fn list(options: List) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let page = async |after| answer(client.rpc.list_images(soon(), options.all, after)).await;
    let mut images = stored::all(page).await.context("cannot list the images")?;
    images.sort_by(|a, b| (&a.name, &a.owner_name).cmp(&(&b.name, &b.owner_name)));
    if options.json.json {
        output::json(&images.iter().map(json).collect::<Result<Vec<_>, _>>()?)?;
        return Ok(0);
    }
    if images.is_empty() {
        output::note(
            "no images; get one with: banger image pull debian:13, or banger image import rootfs.tar --name NAME",
        );
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            vec![
                image.name.to_string(),
                owner(&image.owner_name, image.shared),
                short(&image.id),
                output::size(image.build_size),
                amount(image.allocated_bytes),
                age(image.updated_at, now),
                image.manifest_digest.as_ref().map(short).unwrap_or_default(),
                image.source.clone(),
            ]
        })
        .collect();
    table(&["NAME", "OWNER", "ID", "SIZE", "USED", "AGE", "MANIFEST", "SOURCE"], &rows, |_, _| None)?;
    Ok(0)
}

/// What the catalogue names; nobody is asked for it.
fn list_available(as_json: Json) -> anyhow::Result<u8> {
    let all = catalogue::all()?;
    let digest = |entry: &catalogue::Entry| entry.digest.map(|digest| format!("sha256:{digest}"));
    if as_json.json {
        let entry = |(name, entry): (&String, &catalogue::Entry)| serde_json::json!({"name": name, "reference": entry.reference, "digest": digest(entry)});
        output::json(&all.iter().map(entry).collect::<Vec<_>>())?;
        return Ok(0);
    }
    if all.is_empty() {
        output::note("the catalogue is empty; name images by their whole reference");
        return Ok(0);
    }
    let row = |(name, entry): (&String, &catalogue::Entry)| {
        vec![name.clone(), entry.reference.clone(), digest(entry).unwrap_or_default()]
    };
    table(&["NAME", "REFERENCE", "DIGEST"], &all.iter().map(row).collect::<Vec<_>>(), |_, _| None)?;
    Ok(0)
}

async fn show(image: String, as_json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let what = format!("cannot show the image {image}");
    let image = answer(client.rpc.show_image(soon(), image)).await.context(what)?;
    if as_json.json {
        output::json(&json(&image)?)?;
        return Ok(0);
    }
    let config = &image.config;
    facts(&[
        ("name", image.name.to_string()),
        ("id", image.id.to_string()),
        ("owner", owner(&image.owner_name, image.shared)),
        ("source", image.source.clone()),
        ("manifest", image.manifest_digest.map(|digest| digest.to_string()).unwrap_or_default()),
        ("size", output::size(image.build_size)),
        ("used", amount(image.allocated_bytes)),
        ("managed", yes_no(image.managed)),
        ("kernel", kernel(&image)),
        ("created", image.created_at.to_string()),
        ("updated", image.updated_at.to_string()),
        ("folder", image.artifact_dir.clone()),
        ("user", config.user.clone().unwrap_or_default()),
        ("working dir", config.working_dir.clone().unwrap_or_default()),
        ("entrypoint", words(&config.entrypoint)),
        ("cmd", words(&config.cmd)),
    ])?;
    for entry in &config.env {
        line(&format!("env          {entry}"))?;
    }
    Ok(0)
}

/// Of its VMs; nothing for the default one.
fn kernel(image: &ImageRecord) -> String {
    let nameless = || image.kernel_id.as_ref().map(short);
    image.kernel.as_ref().map(ToString::to_string).or_else(nameless).unwrap_or_default()
}

/// The model's JSON, with what the configuration says beside everything else, where scripts look
/// for it.
fn json(image: &ImageRecord) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(image)?;
    if let Some(image) = value.as_object_mut()
        && let Some(serde_json::Value::Object(config)) = image.remove("config")
    {
        image.extend(config);
    }
    Ok(value)
}

/// A command as somebody would type it.
fn words(words: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:,+@%=".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

async fn delete(images: Vec<String>) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let delete = async |name: &str| answer(client.rpc.delete_image(soon(), name.to_owned())).await;
    stored::each(&images, "delete the image", |name| format!("deleted {name}"), delete).await
}
