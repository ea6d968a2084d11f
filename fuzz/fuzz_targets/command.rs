//! Any bytes on a command's connection, as either side hears them, and on the control channel: an
//! error, or frames that come back as they were.
#![no_main]

use banger_proto::command::{Answer, FromGuest, Opening, ToGuest};
use banger_proto::guest::{GuestCommand, GuestEvent, Hello};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Nothing here waits: the bytes are all there.
fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a slice is always ready"),
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    now(async {
        let mut from = bytes;
        while let Ok(Some(frame)) = ToGuest::read(&mut from).await {
            let mut again = Vec::new();
            frame.write(&mut again).await.expect("what was read can be written");
            assert_eq!(ToGuest::read(&mut again.as_slice()).await.expect("and read"), Some(frame));
        }
        let mut from = bytes;
        while let Ok(Some(frame)) = FromGuest::read(&mut from).await {
            let mut again = Vec::new();
            frame.write(&mut again).await.expect("what was read can be written");
            drop(FromGuest::read(&mut again.as_slice()).await.expect("and read"));
        }
        drop(Opening::read(&mut &*bytes).await);
        drop(Answer::read(&mut &*bytes).await);
    });
    drop(serde_json::from_slice::<Hello>(bytes));
    drop(serde_json::from_slice::<GuestEvent>(bytes));
    drop(serde_json::from_slice::<GuestCommand>(bytes));
});
