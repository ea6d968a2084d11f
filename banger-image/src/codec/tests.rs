#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use crate::tests::maker::gzip;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Write as _;

fn read(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Codec::of(data).decode(data)?.read_to_end(&mut out)?;
    Ok(out)
}

/// What `lz4 -l` writes, with blocks that hold literals only: token 0xf0, then lengths in steps
/// of 255.
fn lz4(data: &[u8]) -> Vec<u8> {
    let mut out = 0x184c_2102_u32.to_le_bytes().to_vec();
    for chunk in data.chunks(8 << 20) {
        let rest = chunk.len() - 15;
        let mut block = vec![0xf0];
        block.extend(std::iter::repeat_n(255, rest / 255));
        block.push(u8::try_from(rest % 255).unwrap());
        block.extend_from_slice(chunk);
        out.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        out.extend(block);
    }
    out
}

#[test]
fn several_members_and_frames_are_one_stream() {
    let gz = [gzip(b"one "), gzip(b"two")].concat();
    assert_eq!(read(&gz).unwrap(), b"one two");
    let frame = |data: &[u8]| compress_to_vec(data, CompressionLevel::Fastest);
    let skippable = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    let zst = [&frame(b"one ")[..], &skippable, &frame(b"two")].concat();
    assert_eq!(read(&zst).unwrap(), b"one two");
}

#[test]
fn every_truncation_is_an_error() {
    let data: Vec<u8> = (0..20_000_u32).flat_map(|i| (i * i).to_le_bytes()).collect();
    for whole in [gzip(&data), lz4(&data), compress_to_vec(&data[..], CompressionLevel::Fastest)] {
        assert!(read(&whole).unwrap() == data);
        for cut in [7, 20, whole.len() / 2, whole.len() - 1] {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
        }
    }
}

#[test]
fn a_flipped_bit_in_zstd_is_an_error() {
    let mut zst = compress_to_vec(&[7_u8; 4096][..], CompressionLevel::Uncompressed);
    let middle = zst.len() / 2;
    zst[middle] ^= 1;
    assert!(read(&zst).is_err());
}

/// `xz --x86 --lzma2 --check=crc32`: the filter chain of a kernel's build.
const XZ: [u8; 84] = [
    253, 55, 122, 88, 90, 0, 0, 1, 105, 34, 222, 54, 2, 1, 4, 0, 33, 1, 22, 0, 13, 134, 53, 31, 224, 0, 127, 0, 24, 93,
    0, 60, 30, 128, 6, 113, 180, 53, 187, 181, 91, 24, 47, 76, 120, 61, 170, 82, 134, 2, 245, 121, 180, 0, 0, 0, 236,
    39, 90, 54, 0, 1, 48, 128, 1, 0, 0, 0, 135, 4, 117, 206, 62, 48, 13, 139, 2, 0, 0, 0, 0, 1, 89, 90,
];

#[test]
fn xz_as_kernels_use_it() {
    assert_eq!(read(&XZ).unwrap(), b"xz with a CRC64\n".repeat(8));
    assert_eq!(read(&[XZ, XZ].concat()).unwrap().len(), 256);
    assert_eq!(read(&[&XZ[..], &[0; 8], &XZ].concat()).unwrap().len(), 256);
    for cut in [10, 40, XZ.len() - 1] {
        assert!(read(&XZ[..cut]).is_err(), "cut at {cut}");
    }
}

fn all(data: &[u8]) -> Vec<Vec<u8>> {
    let mut bz2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz2.write_all(data).unwrap();
    let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
    frame.write_all(data).unwrap();
    vec![gzip(data), bz2.finish().unwrap(), frame.finish().unwrap(), compress_to_vec(data, CompressionLevel::Fastest)]
}

#[test]
fn members_follow_each_other_and_zeros_end_them() {
    let mut streams = all(b"some data");
    streams.push(XZ.to_vec());
    for one in streams {
        let once = read(&one).unwrap();
        let twice = [&one[..], &one].concat();
        assert_eq!(read(&twice).unwrap(), [&once[..], &once].concat());
        for zeros in [1, 4, 511, 70_000] {
            assert_eq!(read(&[&one[..], &vec![0; zeros]].concat()).unwrap(), once, "{zeros} zeros");
        }
        assert!(read(&[&one[..], &[0, 0, 1]].concat()).is_err(), "not everything may follow");
        assert!(read(&[&one[..], b"garbage"].concat()).is_err());
        for cut in [one.len() / 2, one.len() - 1] {
            assert!(read(&one[..cut]).is_err(), "cut at {cut} of {}", one.len());
        }
    }
}

#[test]
fn a_window_that_is_too_wide_is_no_damage() {
    // A frame header with a window of 2 GiB: exponent 21, so 2^(10+21) bytes.
    let error = read(&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("2048 MiB"), "{error}");
    // A frame of one byte that names dictionary 5.
    let error = read(&[0x28, 0xb5, 0x2f, 0xfd, 0x21, 5, 1, 9, 0, 0, b'x']).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("zstd -D"), "{error}");
}

/// `xz --lzma2=dict=256MiB` and 1.5 GiB: the beginning of a stream, to the end of its first
/// block's header.
#[test]
fn a_dictionary_that_is_too_large_is_no_damage() {
    for (property, sum) in [(0x20, [9, 136, 165, 118]), (0x25, [59, 120, 123, 65])] {
        let stream = [0xfd, b'7', b'z', b'X', b'Z', 0, 0, 1, 0x69, 0x22, 0xde, 0x36];
        let block = [2, 0, 0x21, 1, property, 0, 0, 0];
        let error = read(&[&stream[..], &block, &sum].concat()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("192 MiB"), "{error}");
    }
}

#[test]
fn unsupported_formats_are_named() {
    let error = read(b"\x89LZO\0\r\n\x1a\n").unwrap_err();
    assert!(error.to_string().contains("lzo"), "{error}");
}
