//! An honest client in the daemon's place: one call after the other, each as a line of JSON to a
//! program that runs as the daemon would.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};

use anyhow::{Context, Result, bail, ensure};
use banger_policy::VmId;
use banger_proto::helper::{DiskIdentity, HelperRequest, HelperResponse, Holding, HoldingPage, TapIdentity};
use banger_proto::wire::{NotServed, ToClient};
use serde::{Deserialize, Serialize};

use super::Json;
use super::place::{Who, role};

/// What the program answers.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and never kept")]
pub(in crate::suite) enum Told {
    /// The helper's reply; `None` when it did not take the call up.
    Reply(Result<HelperResponse, NotServed>),
    /// The helper has closed, or there was no connection.
    Closed(String),
}

/// A client that is running.
#[derive(Debug)]
pub(in crate::suite) struct Helper {
    child: Child,
    calls: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts the program in the daemon's place. It connects with its first call.
    pub(in crate::suite) fn open() -> Result<Self> {
        Self::open_as(&Who::daemon())
    }

    /// The same as somebody else.
    pub(in crate::suite) fn open_as(who: &Who) -> Result<Self> {
        let mut child = who.start(&role("calls")?)?;
        let calls = child.stdin.take().context("no pipe to the client")?;
        let replies = BufReader::new(child.stdout.take().context("no pipe from the client")?);
        Ok(Self { child, calls, replies })
    }

    /// One call, whatever becomes of it.
    pub(in crate::suite) fn told(&mut self, request: &HelperRequest) -> Result<Told> {
        writeln!(self.calls, "{}", serde_json::to_string(request)?).context("ask the client")?;
        let mut line = String::new();
        self.replies.read_line(&mut line).context("hear the client")?;
        serde_json::from_str(&line).with_context(|| format!("the client said {line:?} to {request:?}"))
    }

    /// One call; the reply.
    pub(in crate::suite) fn call(&mut self, request: &HelperRequest) -> Result<HelperResponse> {
        match self.told(request)? {
            Told::Reply(Ok(response)) => Ok(response),
            other => bail!("{request:?} was answered with {other:?}"),
        }
    }

    /// After the helper was restarted: the first call finds the connection closed, the next one
    /// makes another.
    pub(in crate::suite) fn reconnect(&mut self) -> Result<()> {
        match self.told(&HelperRequest::List { after: None })? {
            Told::Closed(_) => self.ok(&HelperRequest::List { after: None }),
            Told::Reply(_) => Ok(()),
        }
    }

    /// One call, and what its answer comes to in a word: `Ok`, or the code.
    pub(in crate::suite) fn word(&mut self, request: &HelperRequest) -> Result<String> {
        word(&self.call(request)?)
    }

    /// One call that must be answered so.
    pub(in crate::suite) fn expect(&mut self, request: &HelperRequest, expected: &[&str]) -> Result<String> {
        let word = self.word(request)?;
        ensure!(expected.contains(&word.as_str()), "{request:?} was answered with {word}, expected {expected:?}");
        Ok(word)
    }

    /// One call that must succeed.
    pub(in crate::suite) fn ok(&mut self, request: &HelperRequest) -> Result<()> {
        self.expect(request, &["Ok"]).map(drop)
    }

    /// A tap.
    pub(in crate::suite) fn tap(&mut self, vm: VmId, owner: u32, address_index: u16) -> Result<TapIdentity> {
        match self.call(&HelperRequest::AcquireTap { vm, owner, address_index })? {
            HelperResponse::AcquireTap(Ok(tap)) => Ok(tap),
            other => bail!("no tap for {vm}: {other:?}"),
        }
    }

    /// A disk.
    pub(in crate::suite) fn disk(&mut self, vm: VmId, owner: u32) -> Result<DiskIdentity> {
        match self.call(&HelperRequest::AttachDisk { vm, owner })? {
            HelperResponse::AttachDisk(Ok(disk)) => Ok(disk),
            other => bail!("no disk for {vm}: {other:?}"),
        }
    }

    /// Everything that is held.
    pub(in crate::suite) fn all(&mut self) -> Result<Vec<Holding>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let HelperResponse::List(Ok(HoldingPage { holdings, next })) = self.call(&HelperRequest::List { after })?
            else {
                bail!("the helper does not list what it holds")
            };
            all.extend(holdings);
            let Some(next) = next else { return Ok(all) };
            after = Some(next);
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `Ok`, or the code: the helper's answers are all `Result`s.
pub(in crate::suite) fn word(response: &HelperResponse) -> Result<String> {
    let json = serde_json::to_value(response)?;
    let result = json.as_object().and_then(|object| object.values().next()).context("a reply without a result")?;
    Ok(match result.get("Err") {
        None => "Ok".to_owned(),
        Some(Json::String(code)) => code.clone(),
        Some(other) => other.to_string(),
    })
}

/// What a reply on the wire comes to.
pub(in crate::suite) fn reply_word(reply: &ToClient<HelperResponse>) -> Result<String> {
    reply.body.as_ref().map_or_else(|why| Ok(why.to_string()), word)
}
