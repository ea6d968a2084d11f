//! Decompression of what users and registries send: gzip, zstd and xz, and the lz4 of kernels, by
//! magic.
//!
//! Called by `image` (archives, layers) and `boot::kernel` (the payload of a bzImage, modules). All
//! decoders are memory-safe code of bounded memory; none is asked how large the result will be: the
//! caller counts.

use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};

/// Memory that an xz stream may ask for, KiB. `xz -9` needs 65 MiB to decode, the kernel's own
/// build 32 MiB.
const XZ_MEMORY_KIB: u32 = 192 << 10;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    /// Frames, as `lz4` writes them.
    Lz4,
    /// The format of `lz4 -l`, which the kernel's build uses (Debian 12, some of Ubuntu).
    Lz4Legacy,
    /// Recognised, not supported: the format's name.
    Other(&'static str),
}

impl Codec {
    /// By the first bytes of the stream; six are enough. Unknown bytes are [`Codec::Plain`].
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A zstd frame, or a skippable frame in front of one (pzstd, zstd:chunked).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4Legacy,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            [0x5d, 0, 0, ..] => Self::Other("lzma"),
            [0x89, b'L', b'Z', b'O', ..] => Self::Other("lzo"),
            [b'P', b'K', 3, 4, ..] => Self::Other("zip"),
            _ => Self::Plain,
        }
    }

    /// The decompressed bytes of all members, frames or streams in `source`. Zeros behind them are
    /// passed over, as every reader of archives does it; anything else is an error.
    ///
    /// # Errors
    /// On first use, when the stream's header is not valid; `Unsupported` for [`Codec::Other`].
    pub(crate) fn decode<'a>(self, source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(source),
            Self::Gzip => {
                type Gzip<R> = flate2::bufread::GzDecoder<R>;
                Box::new(Members::new(source, Gzip::new, |decoder| Ok(decoder.into_inner())))
            }
            Self::Bzip2 => {
                type Bzip2<R> = bzip2::bufread::BzDecoder<R>;
                Box::new(Members::new(source, Bzip2::new, |decoder| Ok(decoder.into_inner())))
            }
            Self::Lz4 => {
                type Lz4<R> = lz4_flex::frame::FrameDecoder<Watched<R>>;
                let open = |source| Lz4::new(Watched { source, ended: false });
                Box::new(Members::new(source, open, |decoder| decoder.into_inner().before_its_end()))
            }
            Self::Zstd => Box::new(ZstdFrames { source, decoder: FrameDecoder::new(), open: false }),
            Self::Xz => {
                let open = |source| XzReader::new_mem_limit(source, false, XZ_MEMORY_KIB);
                let close = |decoder: XzReader<_>| Ok(decoder.into_inner());
                Box::new(Members { padded: true, ..Members::new(source, open, close) })
            }
            Self::Lz4Legacy => Box::new(Lz4Legacy { source, block: Vec::new(), at: 0 }),
            Self::Other(name) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{name} compression is not supported")));
            }
        })
    }
}

/// True when nothing is left of a source but zeros, which are taken. Something may follow the zeros
/// only in a format that is `padded`.
fn only_zeros(source: &mut impl BufRead, padded: bool) -> io::Result<bool> {
    let mut any = false;
    loop {
        let left = source.fill_buf()?;
        let zeros = left.iter().position(|byte| *byte != 0).unwrap_or(left.len());
        match left.len() {
            0 => return Ok(true),
            length if zeros < length && padded => {
                source.consume(zeros);
                return Ok(false);
            }
            length if zeros < length => {
                let why = "something follows the zeros behind the compressed data";
                return if any || zeros > 0 { Err(io::Error::new(io::ErrorKind::InvalidData, why)) } else { Ok(false) };
            }
            length => source.consume(length),
        }
        any = true;
    }
}

/// Compressed members one after the other, each with a decoder that ends with it.
struct Members<R, D> {
    /// Absent after an error.
    state: Option<State<R, D>>,
    /// Whether zeros may stand between members ("Stream Padding" of the .xz format).
    padded: bool,
    open: fn(R) -> D,
    close: fn(D) -> io::Result<R>,
}

impl<R, D> Members<R, D> {
    fn new(source: R, open: fn(R) -> D, close: fn(D) -> io::Result<R>) -> Self {
        Self { state: Some(State::Between(source)), padded: false, open, close }
    }
}

enum State<R, D> {
    Between(R),
    In(D),
}

impl<R: BufRead, D: Read> Read for Members<R, D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state.take().ok_or(io::ErrorKind::InvalidData)? {
                State::Between(mut source) => {
                    if only_zeros(&mut source, self.padded)? {
                        self.state = Some(State::Between(source));
                        return Ok(0);
                    }
                    self.state = Some(State::In((self.open)(source)));
                }
                State::In(mut decoder) => {
                    let n = decoder.read(buf).map_err(of_memory)?;
                    if n > 0 {
                        self.state = Some(State::In(decoder));
                        return Ok(n);
                    }
                    self.state = Some(State::Between((self.close)(decoder)?));
                }
            }
        }
    }
}

/// A source of which it is known whether a decoder has met its end: lz4_flex takes that for the end
/// of a frame.
struct Watched<R> {
    source: R,
    ended: bool,
}

impl<R> Watched<R> {
    fn before_its_end(self) -> io::Result<R> {
        if self.ended { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(self.source) }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buf)?;
        self.ended |= n == 0 && !buf.is_empty();
        Ok(n)
    }
}

/// `lz4 -l`: blocks of at most 8 MiB of plain data, each behind its compressed length, to the end
/// of the input. Source: `lib/decompress_unlz4.c` in the kernel, and "Legacy frame" of LZ4's
/// `lz4_Frame_format.md`.
struct Lz4Legacy<R> {
    source: R,
    block: Vec<u8>,
    at: usize,
}

impl<R: BufRead> Lz4Legacy<R> {
    const MAGIC: u32 = 0x184c_2102;
    const BLOCK: usize = 8 << 20;

    /// False at the end of the input.
    fn next_block(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            let mut word = [0; 4];
            self.source.read_exact(&mut word)?;
            let length = u32::from_le_bytes(word);
            if length == Self::MAGIC {
                continue;
            }
            let length = u64::from(length);
            // The worst case of the compressor: data that it cannot compress.
            let most = lz4_flex::block::get_maximum_output_size(Self::BLOCK) as u64;
            if length > most {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an lz4 block of impossible length"));
            }
            let mut packed = Vec::new();
            if (&mut self.source).take(length).read_to_end(&mut packed)? as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.block.resize(Self::BLOCK, 0);
            let n = lz4_flex::block::decompress_into(&packed, &mut self.block)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            self.block.truncate(n);
            self.at = 0;
            return Ok(true);
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let n = self.block.get(self.at..).unwrap_or_default().read(buf)?;
        self.at += n;
        Ok(n)
    }
}

/// zstd frames one after the other (RFC 8878 section 3: "one or more frames, and skippable
/// frames"), each with its checksum compared. ruzstd itself decodes one frame and leaves the
/// checksum to its caller.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    open: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    /// True when there is a frame to decode.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !only_zeros(&mut self.source, false)? {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(zstd_error(e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.open {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.open = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(zstd_error)?;
            }
            let n = self.decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            let stored = self.decoder.get_checksum_from_data();
            if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "zstd frame with a wrong checksum"));
            }
            self.open = false;
        }
    }
}

/// What a dictionary is called for which [`XZ_MEMORY_KIB`] are not enough: that is no damage
/// either.
fn of_memory(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::OutOfMemory {
        return error;
    }
    let most = XZ_MEMORY_KIB >> 10;
    let why = format!("its xz dictionary needs more than the {most} MiB that are supported; compress it with xz -9");
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// What a long window is called for users: the kind `Unsupported` is no damage.
fn too_wide(window: u64) -> io::Error {
    let why = format!(
        "its zstd window has {} MiB, and 128 are supported; compress it without --long or --ultra",
        window >> 20
    );
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// ruzstd hides "the source ended early" inside its own errors; a truncated file should say so.
fn zstd_error(e: FrameDecoderError) -> io::Error {
    match e {
        FrameDecoderError::WindowSizeTooBig { requested, .. } => return too_wide(requested),
        FrameDecoderError::DictNotProvided { .. } => {
            let why =
                "it was compressed with a dictionary of its own (zstd -D), which is not in it; compress it without";
            return io::Error::new(io::ErrorKind::Unsupported, why);
        }
        _ => {}
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
            return io::ErrorKind::UnexpectedEof.into();
        }
        source = error.source();
    }
    let text = e.to_string();
    if text.contains("failed to fill whole buffer") {
        return io::ErrorKind::UnexpectedEof.into();
    }
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
