//! Against a server that is not our agent, but has its host key: a guest whose root is hostile.
use super::*;
use crate::fakes::words;
use russh::server::{self, Auth, ChannelOpenHandle, Session as Serving, VerifiedPublicKey};
use russh::{ChannelId, Preferred, kex};
use std::borrow::Cow;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::timeout;

/// What the server does when it is to run a command, before it says that this has ended well.
type Trick = fn(&mut Serving, ChannelId) -> Result<(), russh::Error>;

struct Hostile(Trick);

impl server::Handler for Hostile {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<server::Msg>,
        reply: ChannelOpenHandle,
        _: &mut Serving,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, _: &[u8], session: &mut Serving) -> Result<(), Self::Error> {
        session.channel_success(id)?;
        (self.0)(session, id)?;
        session.exit_status_request(id, 0)?;
        session.close(id)
    }
}

/// How a command ends in a guest that does this.
async fn tricked(trick: Trick, preferred: Preferred) -> Result<u8, SshError> {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("v");
    let (host, client) = (KeyPair::generate("host").unwrap(), KeyPair::generate("bangerd").unwrap());
    let config = Arc::new(server::Config {
        keys: vec![(*host.private()).clone()],
        preferred,
        auth_rejection_time: Duration::ZERO,
        ..server::Config::default()
    });
    let listener = UnixListener::bind(&vsock).unwrap();
    let serving = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let mut line = [0; 11];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(b"OK 1\n").await.unwrap();
        if let Ok(session) = server::run_stream(config, stream, Hostile(trick)).await {
            drop(session.await);
        }
    });
    let session = Session::new(vsock, host.public_line(), &client).unwrap();
    let words = words(&["true"]);
    let command = Command { words: &words, env: &[], terminal: None };
    let ended = timeout(Duration::from_secs(60), async {
        let mut running = session.start(&command).await?;
        loop {
            match running.output.next().await? {
                Said::Exit(status) => return Ok(status),
                Said::Output(_) | Said::ErrorOutput(_) => {}
            }
        }
    });
    let ended = ended.await.unwrap();
    serving.abort();
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_opens_channels_loses_the_connection_whatever_their_kind() {
    // The control: a server that does nothing of the kind is served.
    assert!(matches!(tricked(|_, _| Ok(()), Preferred::default()).await, Ok(0)));
    let few: Trick = |session, _| session.channel_open_session().map(drop);
    assert!(matches!(tricked(few, Preferred::default()).await, Ok(0)), "one is refused and costs nothing");
    for (kind, open) in KINDS_OF_CHANNELS {
        let ended = tricked(open, Preferred::default()).await;
        assert!(ended.is_err(), "{kind}: {ended:?}");
    }
}

/// Twenty channels of each kind.
const KINDS_OF_CHANNELS: [(&str, Trick); 7] = [
    ("session", |on, _| twenty(|| on.channel_open_session())),
    ("agent", |on, _| twenty(|| on.channel_open_agent())),
    ("x11", |on, _| twenty(|| on.channel_open_x11("127.0.0.1", 1))),
    ("direct tcpip", |on, _| twenty(|| on.channel_open_direct_tcpip("127.0.0.1", 1, "127.0.0.1", 1))),
    ("direct streamlocal", |on, _| twenty(|| on.channel_open_direct_streamlocal("/x"))),
    ("forwarded tcpip", |on, _| twenty(|| on.channel_open_forwarded_tcpip("127.0.0.1", 1, "127.0.0.1", 1))),
    ("forwarded streamlocal", |on, _| twenty(|| on.channel_open_forwarded_streamlocal("/x"))),
];

fn twenty(mut open: impl FnMut() -> Result<ChannelId, russh::Error>) -> Result<(), russh::Error> {
    (0..20).try_for_each(|_| open().map(drop))
}

/// Messages that cost who gets them: beside output, a guest has a mebibyte of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_talks_beside_its_output_loses_the_connection() {
    let flood: Trick = |on, _| {
        for _ in 0..4000 {
            on.debug(false, &"x".repeat(1000), "")?;
        }
        Ok(())
    };
    let ended = tricked(flood, Preferred::default()).await;
    assert!(ended.is_err(), "{ended:?}");
    let output: Trick = |on, id| (0..4000).try_for_each(|_| on.data(id, vec![b'x'; 400]));
    assert!(matches!(tricked(output, Preferred::default()).await, Ok(0)), "output is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expensive_key_exchange_is_not_agreed_on() {
    for costly in [kex::DH_G18_SHA512, kex::DH_GEX_SHA256, kex::DH_G14_SHA256] {
        let preferred = Preferred { kex: Cow::Owned(vec![costly]), ..Preferred::default() };
        let ended = tricked(|_, _| Ok(()), preferred).await;
        assert!(matches!(ended, Err(SshError::Protocol(_))), "{costly:?}: {ended:?}");
    }
}
