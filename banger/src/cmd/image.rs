//! `image import`, `list`, `delete`.

use crate::cli::{Image, Json};
use crate::client::{Client, answer, soon};
use crate::cmd::spec::{checked, size};
use crate::error::{FAILED, say};
use crate::job::{self, Ended};
use crate::output::{self, age, amount, line, short, table, took};
use crate::{pack, upload};
use anyhow::Context as _;
use banger_policy::ImageName;
use banger_proto::stream::StreamRequest;
use banger_proto::time::Timestamp;
use std::path::Path;
use std::time::Instant;

pub(super) async fn run(command: Image) -> anyhow::Result<u8> {
    match command {
        Image::Import { path, name, size } => import(&path, &name, size.as_deref()).await,
        Image::List(json) => list(json).await,
        Image::Delete { images } => delete(images).await,
    }
}

async fn import(path: &Path, name: &str, build_size: Option<&str>) -> anyhow::Result<u8> {
    let what = || format!("cannot import {}", path.display());
    let began = Instant::now();
    checked::<ImageName>(Some(name)).with_context(what)?;
    let build_size = size("--size", build_size).with_context(what)?;
    let source = pack::image(path).with_context(what)?;
    let client = Client::connect().await?;
    let shown = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
    };
    let request = StreamRequest::ImportImage { name: name.to_owned(), source: shown, build_size };
    match upload::run(&client, request, source).await.with_context(what)? {
        Ended::Done(result) => {
            let image = job::image(result)?;
            let (id, size) = (short(&image.id), output::size(image.build_size));
            line(&format!(
                "imported {} ({id}, {size}, {} used) in {}",
                image.name,
                amount(image.allocated_bytes),
                took(began.elapsed())
            ))?;
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

async fn list(json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let mut images = answer(client.rpc.list_images(soon())).await.context("cannot list the images")?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    if json.json {
        output::json(&images)?;
        return Ok(0);
    }
    if images.is_empty() {
        output::note("no images; make one with: banger image import rootfs.tar --name NAME");
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            vec![
                image.name.to_string(),
                short(&image.id),
                output::size(image.build_size),
                amount(image.allocated_bytes),
                age(image.created_at, now),
                image.source.clone(),
            ]
        })
        .collect();
    table(&["NAME", "ID", "SIZE", "USED", "AGE", "SOURCE"], &rows, |_, _| None)?;
    Ok(0)
}

async fn delete(images: Vec<String>) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let mut status = 0;
    for image in images {
        let what = format!("cannot delete the image {image}");
        match answer(client.rpc.delete_image(soon(), image.clone())).await.context(what) {
            Ok(()) => line(&format!("deleted {image}"))?,
            Err(error) => {
                say(&error);
                status = FAILED;
            }
        }
    }
    Ok(status)
}
