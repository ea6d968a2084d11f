//! What commands for images and for kernels have in common.

use crate::error::{FAILED, say};
use crate::output::{self, amount, line, short};
use banger_proto::model::{ImageRecord, StoreKey, StorePage};

/// An image's name, and what it is.
pub(super) fn described(image: &ImageRecord) -> String {
    let (id, size) = (short(&image.id), output::size(image.build_size));
    format!("{} ({id}, {size}, {} used)", image.name, amount(image.allocated_bytes))
}

/// Whose it is, and whether everybody may use it.
pub(super) fn owner(name: &str, shared: bool) -> String {
    if shared { format!("{name} (shared)") } else { name.to_owned() }
}

/// All entries of a list, page by page.
pub(super) async fn all<T>(
    page: impl AsyncFn(Option<StoreKey>) -> anyhow::Result<StorePage<T>>,
) -> anyhow::Result<Vec<T>> {
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let StorePage { entries: more, next } = page(after).await?;
        entries.extend(more);
        after = next;
        if after.is_none() {
            return Ok(entries);
        }
    }
}

/// What was done to one that was shared, or is its owner's again.
pub(super) fn shared(name: &str, shared: bool) -> String {
    if shared { format!("{name} is for everybody") } else { format!("{name} is for its owner only") }
}

/// Does `work` with each and says what was done; one that is refused keeps no other from it. `what`
/// completes "cannot ...".
pub(super) async fn each(
    names: &[String],
    what: &str,
    done: impl Fn(&str) -> String,
    work: impl AsyncFn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let mut status = 0;
    for name in names {
        match work(name).await {
            Ok(()) => line(&done(name))?,
            Err(error) => {
                say(&error.context(format!("cannot {what} {name}")));
                status = FAILED;
            }
        }
    }
    Ok(status)
}
