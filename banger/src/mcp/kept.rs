//! What a tool shows of what it cannot bound itself: the beginning and the end of an output.

use std::collections::VecDeque;

/// Bytes kept of each end.
const HALF: usize = 32 * 1024;

/// An output, its middle left out when it is long.
#[derive(Debug, Default)]
pub(super) struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl Kept {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room = HALF.saturating_sub(self.head.len());
        let (head, tail) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(tail);
        let over = self.tail.len().saturating_sub(HALF);
        self.tail.drain(..over);
        self.left_out = self.left_out.saturating_add(over as u64);
    }

    /// As text; what is none of it is replaced.
    pub(super) fn text(&self) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.left_out == 0 {
            return String::from_utf8_lossy(&[self.head.as_slice(), &tail].concat()).into_owned();
        }
        let (head, tail) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&tail));
        format!("{head}\n[... {} bytes are left out here ...]\n{tail}", self.left_out)
    }

    /// Bytes that are not in the text.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_long_output_are_kept() {
        let mut kept = Kept::default();
        for number in 0..100_000 {
            kept.push(format!("{number}\n").as_bytes());
        }
        let text = kept.text();
        assert!(text.starts_with("0\n1\n") && text.ends_with("99999\n"), "{} bytes", text.len());
        assert!(text.len() < 2 * HALF + 100 && kept.left_out() > 500_000);
        let whole = (0..100_000).map(|number| format!("{number}\n")).collect::<String>();
        assert_eq!(kept.left_out(), (whole.len() - 2 * HALF) as u64);
    }

    #[test]
    fn a_short_one_is_whole_and_a_character_at_the_seam_too() {
        let mut kept = Kept::default();
        kept.push(&vec![b'x'; HALF - 1]);
        kept.push("ä".as_bytes());
        kept.push(b"\xff");
        assert!(kept.text().ends_with("xä\u{fffd}") && kept.left_out() == 0);
    }
}
