//! The order of what is written. Each commit waits for the disk, so what nobody waits for is
//! committed together: however many jobs begin and end, who waits for a row waits behind one commit
//! for all of them.

use super::Work;
use rusqlite::{Connection, TransactionBehavior};
use std::sync::mpsc::Receiver;

/// Pieces of work that are taken at a time.
const AT_ONCE: usize = 1024;

/// One piece of it.
pub(super) enum Write {
    /// Commits by itself, and answers whoever waits.
    Whole(Work),
    Record(Record),
}

/// What it writes.
type Change = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

/// A courtesy that nobody waits for.
pub(super) struct Record {
    pub(super) what: &'static str,
    pub(super) work: Change,
}

/// Works until the last handle on the database is gone.
pub(super) fn work_off(connection: &mut Connection, todo: &Receiver<Write>) {
    while let Ok(first) = todo.recv() {
        let (mut records, mut others) = (Vec::new(), Vec::new());
        for write in std::iter::once(first).chain(todo.try_iter().take(AT_ONCE)) {
            match write {
                Write::Record(record) => records.push(record),
                Write::Whole(work) => others.push(work),
            }
        }
        // First what came first or later: a record is never missing for who asked after it.
        if !records.is_empty() {
            record_all(connection, records);
        }
        for work in others {
            work(connection);
        }
    }
}

fn record_all(connection: &mut Connection, records: Vec<Record>) {
    let done: Vec<&str> = records.iter().map(|record| record.what).collect();
    let all = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for Record { what, work } in records {
            // The others are recorded nevertheless.
            if let Err(error) = work(&transaction) {
                tracing::warn!("cannot record {what}: {error}");
            }
        }
        transaction.commit()
    };
    if let Err(error) = all() {
        tracing::warn!("cannot record {}: {error}", done.join(", "));
    }
    for what in done {
        crate::fail::point("row", what);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::Db;
    use banger_policy::access::Owner;
    use std::path::Path;
    use std::sync::{Arc, Mutex, mpsc};

    fn alice() -> Owner {
        Owner { uid: 1001, name: "alice".into() }
    }

    /// Holds the writer up until the sender is dropped.
    fn hold(db: &Db) -> mpsc::Sender<()> {
        let (go, wait) = mpsc::channel::<()>();
        db.post("a pause", move |_| {
            let _ = wait.recv();
            Ok(())
        });
        go
    }

    /// What the log has grown to: each commit adds the pages that it changed.
    fn log(path: &Path) -> u64 {
        path.with_extension("db-wal").metadata().unwrap().len()
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_committed_together_and_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let db = Db::open(&path).await.unwrap();
        db.past_jobs().await.unwrap();
        let before = log(&path);
        let go = hold(&db);
        for id in 1..=200 {
            db.record_job(id, alice(), "stop demo".into());
            db.record_job_end(id, "done", String::new());
        }
        drop(go);
        assert_eq!(db.past_jobs().await.unwrap().len(), 64, "as many as are kept, with those of just now");
        let grown = log(&path) - before;
        assert!(grown < 100 << 10, "{grown} bytes for 400 records");
    }

    #[tokio::test]
    async fn one_users_rows_do_not_fill_the_queue_in_front_of_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("banger.db")).await.unwrap();
        let (go, done) = (hold(&db), Arc::new(Mutex::new(Vec::new())));
        let write = |uid: u32| {
            let (db, done) = (db.of(uid), Arc::clone(&done));
            tokio::spawn(async move {
                let work = db.transaction(move |_| {
                    done.lock().unwrap().push(uid);
                    Ok(())
                });
                work.await.unwrap();
            })
        };
        let his: Vec<_> = (0..20).map(|_| write(1)).collect();
        tokio::task::yield_now().await;
        // Who goes away makes no room for more before the work is done.
        his.iter().take(10).for_each(tokio::task::JoinHandle::abort);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let hers = write(2);
        tokio::task::yield_now().await;
        drop(go);
        hers.await.unwrap();
        for one in his {
            drop(one.await);
        }
        let order = done.lock().unwrap().clone();
        let at = order.iter().position(|uid| *uid == 2).unwrap();
        assert!(at <= 2, "{order:?}");
    }

    /// Ends of VMs are written while a user's calls stand in the queue, and do not fill it either.
    #[tokio::test]
    async fn what_becomes_of_vms_waits_for_no_call_of_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("banger.db")).await.unwrap();
        let (go, done) = (hold(&db), Arc::new(Mutex::new(Vec::new())));
        let write = |db: Db, what: &'static str| {
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let work = db.transaction(move |_| {
                    done.lock().unwrap().push(what);
                    Ok(())
                });
                work.await.unwrap();
            })
        };
        let calls: Vec<_> = (0..20).map(|_| write(db.of(1), "call")).collect();
        let vms: Vec<_> = (0..20).map(|_| write(db.of_vms(1), "vm")).collect();
        let others = write(db.of(2), "other");
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        drop(go);
        for one in calls.into_iter().chain(vms).chain([others]) {
            one.await.unwrap();
        }
        let order = done.lock().unwrap().clone();
        let at = |what: &str| order.iter().position(|one| *one == what).unwrap();
        assert!(at("vm") <= 2 && at("other") <= 4, "{order:?}");
    }

    #[tokio::test]
    async fn one_users_questions_do_not_fill_the_queue_in_front_of_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("banger.db")).await.unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let done = Arc::new(Mutex::new(Vec::new()));
        let ask = |db: Db, uid: u32, look: Box<dyn FnOnce() + Send>| {
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let read = db.read(move |_| {
                    look();
                    done.lock().unwrap().push(uid);
                    Ok(())
                });
                read.await.unwrap();
            })
        };
        let first = ask(db.clone(), 0, Box::new(move || wait.recv().unwrap_or_default()));
        tokio::task::yield_now().await;
        let his: Vec<_> = (0..20).map(|_| ask(db.of(1), 1, Box::new(|| {}))).collect();
        tokio::task::yield_now().await;
        let hers = ask(db.of(2), 2, Box::new(|| {}));
        tokio::task::yield_now().await;
        drop(go);
        for one in his.into_iter().chain([first, hers]) {
            one.await.unwrap();
        }
        let order = done.lock().unwrap().clone();
        assert!(order.iter().position(|uid| *uid == 2).unwrap() <= 3, "{order:?}");
    }

    #[tokio::test]
    async fn what_is_there_already_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let db = Db::open(&path).await.unwrap();
        let add = async |key: &str| db.add_key(alice(), key.to_owned()).await.unwrap();
        add("ssh-ed25519 AAAA one").await;
        let before = log(&path);
        for _ in 0..10 {
            add("ssh-ed25519 AAAA one").await;
        }
        assert_eq!(log(&path), before);
        add("ssh-ed25519 AAAA two").await;
        assert_eq!(db.keys(alice()).await.unwrap().len(), 2);
        assert!(log(&path) > before);
    }
}
