//! The subsystem by which the daemon replaces the users' keys ([`banger_proto::guest::KEYS_SUBSYSTEM`]).
//!
//! Started by the connection handler, and only for the daemon's own connection.

use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use std::sync::Arc;

use super::server::Shared;

/// The longest list, bytes: some thousands of keys.
const MAX_LIST: usize = 1024 * 1024;

/// Reads lines to the end of input and answers with an exit status; what is wrong goes to stderr.
pub(super) async fn run(mut channel: Channel<Msg>, shared: Arc<Shared>) {
    let mut list = Vec::new();
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Data { data }) if list.len() + data.len() <= MAX_LIST => list.extend_from_slice(&data),
            Some(ChannelMsg::Data { .. }) => return finish(&channel, Err("the list is too long".into())).await,
            Some(ChannelMsg::Eof) => break,
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
    let replaced = match std::str::from_utf8(&list) {
        Ok(text) => shared.keys.replace(text).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    finish(&channel, replaced).await;
}

async fn finish(channel: &Channel<Msg>, result: Result<(), String>) {
    let status = u32::from(result.is_err());
    if let Err(message) = result {
        let _ = channel.extended_data_bytes(1, format!("{message}\n").into_bytes()).await;
    }
    let _ = channel.eof().await;
    let _ = channel.exit_status(status).await;
    let _ = channel.close().await;
}
