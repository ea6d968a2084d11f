//! `context`: names for other machines.

use crate::cli::Context;
use crate::contexts::{file, read, write};
use crate::machine::LOCAL;
use crate::output;
use serde::Serialize;

#[derive(Serialize)]
struct Shown {
    name: String,
    host: String,
    used: bool,
}

pub(super) fn run(command: Context) -> anyhow::Result<u8> {
    let file = file()?;
    let mut contexts = read(&file)?;
    match command {
        Context::Add { name, host } => contexts.add(&name, &host.parse()?)?,
        Context::Use { name } => contexts.choose(&name)?,
        Context::Remove { name } => contexts.remove(&name)?,
        Context::List(json) => {
            let used = contexts.current.as_deref().unwrap_or(LOCAL);
            let local = (LOCAL.to_owned(), "this machine".to_owned());
            let all = std::iter::once(local).chain(contexts.hosts.clone());
            let shown: Vec<Shown> = all.map(|(name, host)| Shown { used: name == used, name, host }).collect();
            if json.json {
                output::json(&shown)?;
            } else {
                let lines: String = shown
                    .iter()
                    .map(|one| format!("{} {}  {}\n", if one.used { "*" } else { " " }, one.name, one.host))
                    .collect();
                output::print(&lines)?;
            }
            return Ok(0);
        }
    }
    write(&file, &contexts)?;
    Ok(0)
}
