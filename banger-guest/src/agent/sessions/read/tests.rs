#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use super::*;
use crate::agent::sessions::log::{CAP, HEADER, Log};
use std::fs::{self, OpenOptions};

fn log(cap: u64) -> (tempfile::TempDir, Log) {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::begin(folder.path(), cap).unwrap();
    (folder, log)
}

fn all(reader: &mut Reader) -> Vec<Next> {
    let mut found = Vec::new();
    loop {
        match reader.next().unwrap() {
            Next::Nothing => return found,
            next => found.push(next),
        }
    }
}

fn text(selection: &mut Selection) -> String {
    let mut text = String::new();
    while let Some(answer) = selection.next().unwrap() {
        match answer {
            Answer::Record(record) => text += &String::from_utf8(record.bytes).unwrap(),
            Answer::Gap(bytes) => text += &format!("<{bytes}>"),
            other => panic!("{other:?}"),
        }
    }
    text
}

fn select(folder: &Path, outputs: Outputs, begin: Begin) -> String {
    text(&mut Selection::following(folder, outputs, begin).unwrap())
}

#[test]
fn what_was_written_comes_back_in_order_with_its_time() {
    let (folder, mut log) = log(CAP);
    log.append(Kind::Output, 5, b"one\n".to_vec());
    let mut reader = Reader::oldest(folder.path());
    let entry = |kind, at, bytes: &[u8]| Next::Entry(Entry { kind, at, bytes: bytes.to_vec() });
    assert_eq!(all(&mut reader), [entry(Kind::Output, 5, b"one\n")]);
    log.append(Kind::Error, 6, b"two\n".to_vec());
    log.append(Kind::Output, 7, Vec::new());
    assert_eq!(all(&mut reader), [entry(Kind::Error, 6, b"two\n"), entry(Kind::Output, 7, b"")]);
    let mut behind = Reader::from(folder.path(), log.end());
    assert_eq!(all(&mut behind), []);
}

#[test]
fn a_record_that_is_cut_anywhere_is_left_out() {
    let (folder, mut log) = log(CAP);
    log.append(Kind::Output, 1, b"whole".to_vec());
    let before = fs::metadata(folder.path().join("log")).unwrap().len();
    log.append(Kind::Output, 2, b"cut off".to_vec());
    let path = folder.path().join("log");
    let bytes = fs::read(&path).unwrap();
    for length in before..bytes.len() as u64 {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "whole", "{length}");
        // As a file system may leave it: the length, without the data.
        file.set_len(bytes.len() as u64 + 64).unwrap();
        assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "whole", "{length}");
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "wholecut off");
    for junk in [&b""[..], b"x", &[0xff; 4096]] {
        fs::write(&path, junk).unwrap();
        assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "");
    }
}

#[test]
fn the_log_keeps_the_newest_and_who_follows_loses_nothing_that_is_kept() {
    let (folder, mut log) = log(2000);
    let mut follows = Reader::oldest(folder.path());
    let mut slow = Reader::oldest(folder.path());
    let (mut seen, mut written) = (Vec::new(), Vec::<u8>::new());
    assert_eq!(slow.next().unwrap(), Next::Nothing);
    for number in 0..500_u32 {
        let line = format!("line {number}\n").into_bytes();
        written.extend(&line);
        log.append(Kind::Output, number.into(), line);
        for next in all(&mut follows) {
            match next {
                Next::Entry(entry) => seen.extend(entry.bytes),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(seen == written);
    let size: u64 = FILES.iter().map(|name| fs::metadata(folder.path().join(name)).unwrap().len()).sum();
    assert!(size <= 2000, "{size}");
    // One that slept: the file that it had open, what is gone, then what is left.
    let found = all(&mut slow);
    let gaps = found.iter().filter(|next| matches!(next, Next::Gap(_))).count();
    assert_eq!(gaps, 1);
    let Some(Next::Entry(last)) = found.last() else { panic!("{found:?}") };
    assert_eq!(last.bytes, b"line 499\n");
    // A new reader begins with the oldest that is left, and misses nothing of it.
    let fresh = all(&mut Reader::oldest(folder.path()));
    assert!(fresh.len() > 20 && fresh.iter().all(|next| matches!(next, Next::Entry(_))));
    assert_eq!(all(&mut Reader::from(folder.path(), 1)).len(), fresh.len() + 1, "the gap before it is said");
}

#[test]
fn damage_in_the_earlier_file_is_a_gap() {
    let (folder, mut log) = log(400);
    for number in 0..20 {
        log.append(Kind::Output, 0, format!("line {number:03}\n").into_bytes());
    }
    let path = folder.path().join("log.1");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let shown = select(folder.path(), Outputs::Both, Begin::Oldest);
    assert!(shown.contains('<') && shown.ends_with("line 019\n"), "{shown}");
}

#[test]
fn the_last_lines_of_either_output() {
    let (folder, mut log) = log(CAP);
    log.append(Kind::Output, 1, b"a\nb\nc".to_vec());
    log.append(Kind::Error, 2, b"x\ny\n".to_vec());
    log.append(Kind::Output, 3, b"d\ne\n".to_vec());
    let shown = |outputs, lines| select(folder.path(), outputs, Begin::Lines(lines));
    assert_eq!(shown(Outputs::Out, 2), "cd\ne\n");
    assert_eq!(shown(Outputs::Out, 3), "b\ncd\ne\n");
    assert_eq!(shown(Outputs::Out, u64::MAX), "a\nb\ncd\ne\n");
    assert_eq!(shown(Outputs::Err, 1), "y\n");
    assert_eq!(shown(Outputs::Both, 3), "y\nd\ne\n");
    assert_eq!(shown(Outputs::Both, 0), "");
    log.append(Kind::Output, 4, b"half".to_vec());
    assert_eq!(shown(Outputs::Both, 1), "half");
    assert_eq!(shown(Outputs::Out, 2), "e\nhalf");
    assert_eq!(select(folder.path(), Outputs::Out, Begin::End(log.end())), "");
    let bytes = select(folder.path(), Outputs::Both, Begin::Bytes(20));
    assert_eq!(bytes, "half");
    assert_eq!(select(folder.path(), Outputs::Both, Begin::Bytes(1 << 20)), "a\nb\ncx\ny\nd\ne\nhalf");
}

#[test]
fn what_is_written_while_the_last_lines_are_looked_for_is_shown() {
    let (folder, mut log) = log(4000);
    (0..400).for_each(|number| log.append(Kind::Output, 0, format!("line {number:03}\n").into_bytes()));
    for lines in 1..70 {
        let shown = select(folder.path(), Outputs::Both, Begin::Lines(lines));
        let first = format!("line {:03}\n", 400 - lines);
        assert!(shown.starts_with(&first) && shown.ends_with("line 399\n"), "{lines}: {shown}");
    }
    // Fewer and longer lines take the place of all that was there.
    let mut selection = Selection::following(folder.path(), Outputs::Both, Begin::Lines(3)).unwrap();
    let mut nothing = Selection::following(folder.path(), Outputs::Both, Begin::Lines(0)).unwrap();
    (0..20).for_each(|number| log.append(Kind::Output, 0, format!("{number}{}\n", "x".repeat(400)).into_bytes()));
    for selection in [&mut selection, &mut nothing] {
        let shown = text(selection);
        assert!(shown.starts_with('<') && shown.lines().count() > 3, "{shown}");
        assert!(shown.ends_with(&format!("19{}\n", "x".repeat(400))), "{shown}");
    }
}

#[test]
fn one_who_does_not_follow_sees_what_is_written_by_now() {
    let (folder, mut log) = log(4000);
    let line = |number: u32| format!("line {number:03}\n").into_bytes();
    (0..100).for_each(|number| log.append(Kind::Output, 0, line(number)));
    let select = |begin| Selection::until_now(folder.path(), Outputs::Both, begin).unwrap();
    let (mut all, mut last, mut lost) = (select(Begin::Oldest), select(Begin::Lines(2)), select(Begin::Lines(90)));
    (100..140).for_each(|number| log.append(Kind::Output, 0, line(number)));
    assert_eq!(text(&mut last), "line 098\nline 099\n");
    let shown = text(&mut all);
    assert!(shown.starts_with("line 000\n") && shown.ends_with("line 099\n"), "{shown}");
    // It is written without an end, and what was asked for is gone.
    let mut answers = Vec::new();
    while let Some(answer) = lost.next().unwrap() {
        answers.push(answer);
        (0..200).for_each(|number| log.append(Kind::Output, 0, line(number)));
        assert!(answers.len() < 200, "there is no end of it");
    }
    assert!(matches!(answers.last(), Some(Answer::Gap(_))), "{answers:?}");
    let bytes = answers.iter().map(|answer| match answer {
        Answer::Gap(bytes) => *bytes,
        Answer::Record(record) => (HEADER + record.bytes.len()) as u64,
        other => panic!("{other:?}"),
    });
    assert_eq!(bytes.sum::<u64>(), 90 * (HEADER + line(0).len()) as u64, "and nothing is said of what came since");
}

#[test]
fn a_full_disk_is_a_gap_that_is_said() {
    let (folder, mut log) = log(CAP);
    log.append(Kind::Output, 1, b"before\n".to_vec());
    // A file that may not grow, as on a full disk.
    log.refuse(true);
    log.append(Kind::Output, 2, vec![b'x'; 1000]);
    log.append(Kind::Error, 3, vec![b'x'; 500]);
    assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "before\n");
    log.refuse(false);
    log.append(Kind::Output, 4, b"after\n".to_vec());
    assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "before\n<1500>after\n");
    log.refuse(true);
    log.append(Kind::Output, 5, vec![b'x'; 7]);
    log.refuse(false);
    log.finish(6).unwrap();
    assert_eq!(select(folder.path(), Outputs::Both, Begin::Oldest), "before\n<1500>after\n<7>");
}
