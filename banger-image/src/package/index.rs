//! The form of `modules.dep.bin` and its like: a tree of prefixes that kmod's `modprobe` searches.
//! Source: "Disk format" in kmod's `libkmod/libkmod-index.c`.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xb007_f457;
/// 2.1.
const VERSION: u32 = 0x0002_0001;
/// What a node has, in the highest bits of the offset that leads to it.
const PREFIX: u32 = 0x8000_0000;
const VALUES: u32 = 0x4000_0000;
const CHILDREN: u32 = 0x2000_0000;
/// Offsets have the other bits.
const MOST: usize = 0x0fff_ffff;
/// The longest key, bytes: it bounds the depth.
const MAX_KEY: usize = 512;

/// Values by their keys.
#[derive(Debug, Default)]
pub(super) struct Index(BTreeMap<Vec<u8>, Vec<String>>);

impl Index {
    /// What no index of kmod's can hold is left out.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        let plain = |text: &str| text.bytes().all(|c| c.is_ascii() && c != 0);
        if key.len() <= MAX_KEY && plain(key) && plain(value) {
            self.0.entry(key.into()).or_default().push(value.to_owned());
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = [MAGIC, VERSION, 0].map(u32::to_be_bytes).concat();
        let keys: Vec<(&[u8], &[String])> = self.0.iter().map(|(key, values)| (&key[..], &values[..])).collect();
        let root = node(&keys, 0, &mut out);
        out.splice(8..12, root.to_be_bytes());
        out
    }
}

/// Writes what is below the first `depth` bytes, which all `keys` have in common, and then the node
/// itself; returns what leads to it.
fn node(keys: &[(&[u8], &[String])], depth: usize, out: &mut Vec<u8>) -> u32 {
    // Keys are sorted: what the first and the last have in common, all have.
    let (first, last) = (keys.first().map_or(&[][..], |key| key.0), keys.last().map_or(&[][..], |key| key.0));
    let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let prefix = first.get(depth..common).unwrap_or_default();
    let (values, mut rest) = match keys.split_first() {
        Some(((key, values), rest)) if key.len() == common => (*values, rest),
        _ => (&[][..], keys),
    };
    let mut children: Vec<(u8, u32)> = Vec::new();
    while let Some(byte) = rest.first().and_then(|(key, _)| key.get(common)).copied() {
        let count = rest.iter().take_while(|(key, _)| key.get(common) == Some(&byte)).count();
        let (these, others) = rest.split_at(count);
        children.push((byte, node(these, common + 1, out)));
        rest = others;
    }
    let mut offset = u32::try_from(out.len().min(MOST)).unwrap_or_default();
    if !prefix.is_empty() {
        offset |= PREFIX;
        out.extend(prefix);
        out.push(0);
    }
    if let (Some((lowest, _)), Some((highest, _))) = (children.first(), children.last()) {
        offset |= CHILDREN;
        out.extend([*lowest, *highest]);
        for byte in *lowest..=*highest {
            let child = children.iter().find(|(of, _)| *of == byte).map_or(0, |(_, child)| *child);
            out.extend(child.to_be_bytes());
        }
    }
    if !values.is_empty() {
        offset |= VALUES;
        out.extend(u32::try_from(values.len()).unwrap_or_default().to_be_bytes());
        for value in values {
            // Of no priority.
            out.extend([0; 4]);
            out.extend(value.as_bytes());
            out.push(0);
        }
    }
    offset
}
