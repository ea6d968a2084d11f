//! The hash by which folders are searched: `half_md4` over unsigned characters.
//!
//! Source: `fs/ext4/hash.c` in the kernel (`ext4fs_dirhash`, `str2hashbuf_unsigned`,
//! `half_md4_transform`).

/// The hash of a name; its lowest bit is always 0.
pub(super) fn half_md4(name: &[u8], seed: [u32; 4]) -> u32 {
    let mut state = seed;
    let mut left = name;
    while !left.is_empty() {
        transform(&mut state, &words(left));
        left = left.get(32..).unwrap_or_default();
    }
    let hash = state[1] & !1;
    // The largest value marks the end of a folder.
    if hash == 0xffff_fffe { 0xffff_fffc } else { hash }
}

/// The next 32 bytes as numbers. What is missing of them is filled with the length.
fn words(left: &[u8]) -> [u32; 8] {
    let length = u32::from(u8::try_from(left.len()).unwrap_or(u8::MAX));
    let pad = length | length << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; 8];
    for (word, bytes) in words.iter_mut().zip(left.chunks(4)) {
        *word = bytes.iter().fold(pad, |value, byte| (value << 8).wrapping_add(u32::from(*byte)));
    }
    words
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    const ROUND_2: u32 = 0x5a82_7999;
    const ROUND_3: u32 = 0x6ed9_eba1;
    let [mut a, mut b, mut c, mut d] = *state;
    let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let h = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let step = |mixed: u32, a: u32, word: u32, by: u32| a.wrapping_add(mixed).wrapping_add(word).rotate_left(by);
    let [i0, i1, i2, i3, i4, i5, i6, i7] = *input;
    for [w0, w1, w2, w3] in [[i0, i1, i2, i3], [i4, i5, i6, i7]] {
        a = step(f(b, c, d), a, w0, 3);
        d = step(f(a, b, c), d, w1, 7);
        c = step(f(d, a, b), c, w2, 11);
        b = step(f(c, d, a), b, w3, 19);
    }
    for [w0, w1, w2, w3] in [[i1, i3, i5, i7], [i0, i2, i4, i6]] {
        a = step(g(b, c, d), a, w0.wrapping_add(ROUND_2), 3);
        d = step(g(a, b, c), d, w1.wrapping_add(ROUND_2), 5);
        c = step(g(d, a, b), c, w2.wrapping_add(ROUND_2), 9);
        b = step(g(c, d, a), b, w3.wrapping_add(ROUND_2), 13);
    }
    for [w0, w1, w2, w3] in [[i3, i7, i2, i6], [i1, i5, i0, i4]] {
        a = step(h(b, c, d), a, w0.wrapping_add(ROUND_3), 3);
        d = step(h(a, b, c), d, w1.wrapping_add(ROUND_3), 9);
        c = step(h(d, a, b), c, w2.wrapping_add(ROUND_3), 11);
        b = step(h(c, d, a), b, w3.wrapping_add(ROUND_3), 15);
    }
    for (value, added) in state.iter_mut().zip([a, b, c, d]) {
        *value = value.wrapping_add(added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_the_end_is_no_hash_and_the_lowest_bit_is_free() {
        let seed = [1, 2, 3, 4];
        for number in 0..10_000_u32 {
            let hash = half_md4(format!("name-{number}").as_bytes(), seed);
            assert!(hash.is_multiple_of(2) && hash != 0xffff_fffe);
        }
    }
}
