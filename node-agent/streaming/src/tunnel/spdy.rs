//! As much of SPDY/3.1 as a client of a container runtime's streaming server needs.
//!
//! Runtimes use SPDY for what no other protocol of theirs gives: independent streams, each of which can be
//! closed for writing by itself. Their implementation sends no flow control and ignores what it gets of it,
//! so there is none here.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt};

const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// The length field's own limit.
const LONGEST: usize = (1 << 24) - 1;

/// What the runtime may say. Everything else (settings, replies to new streams, windows) changes nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Other,
}

/// Makes frames. All header blocks of a connection are one zlib stream.
pub(super) struct Encoder {
    compress: Compress,
    last_stream: u32,
}

impl Encoder {
    pub(super) fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress
            .set_dictionary(&dictionary())
            .map_err(io::Error::other)?;
        Ok(Self {
            compress,
            last_stream: 0,
        })
    }

    /// Opens a stream; returns its id.
    pub(super) fn open(&mut self, headers: &[(&str, &str)], out: &mut BytesMut) -> io::Result<u32> {
        // A client's streams have odd numbers.
        let stream = self.last_stream + if self.last_stream == 0 { 1 } else { 2 };
        self.last_stream = stream;
        let mut block = BytesMut::new();
        block.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                block.put_u32(text.len() as u32);
                block.put_slice(text.as_bytes());
            }
        }
        let block = self.compress(&block)?;
        control(SYN_STREAM, 0, 10 + block.len(), out);
        out.put_u32(stream);
        // No parent, highest priority, no credential.
        out.put_u32(0);
        out.put_u16(0);
        out.put_slice(&block);
        Ok(stream)
    }

    fn compress(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut compressed = Vec::with_capacity(block.len() + 64);
        let before = self.compress.total_in();
        loop {
            let taken = usize::try_from(self.compress.total_in() - before).unwrap_or(block.len());
            let full_before = compressed.len() == compressed.capacity();
            let status = self
                .compress
                .compress_vec(&block[taken..], &mut compressed, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            // With room left everything has been written out.
            if status == Status::StreamEnd || compressed.len() < compressed.capacity() {
                return Ok(compressed);
            }
            compressed.reserve(if full_before { 256 } else { 64 });
        }
    }
}

/// Data for a stream; `fin` closes it in this direction.
pub(super) fn data(stream: u32, fin: bool, bytes: &[u8], out: &mut BytesMut) {
    let (chunk, rest) = bytes.split_at(bytes.len().min(LONGEST));
    let ends_here = fin && rest.is_empty();
    out.put_u32(stream);
    out.put_u32(u32::from(if ends_here { FIN } else { 0 }) << 24 | chunk.len() as u32);
    out.put_slice(chunk);
    if !rest.is_empty() {
        data(stream, fin, rest, out);
    }
}

/// A ping, or the answer to one.
pub(super) fn ping(id: u32, out: &mut BytesMut) {
    control(PING, 0, 4, out);
    out.put_u32(id);
}

fn control(kind: u16, flags: u8, length: usize, out: &mut BytesMut) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | length as u32);
}

/// The next frame; `None` at an orderly end.
pub(super) async fn read_frame(
    connection: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Frame>> {
    let mut head = [0; 8];
    if connection.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    connection.read_exact(&mut head[1..]).await?;
    let [a, b, c, d, flags, length @ ..] = head;
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
    let mut body = BytesMut::zeroed(length);
    connection.read_exact(&mut body).await?;
    let first = u32::from_be_bytes([a, b, c, d]);
    if first >> 31 == 0 {
        let (stream, fin) = (first, flags & FIN != 0);
        return Ok(Some(Frame::Data {
            stream,
            fin,
            bytes: body.freeze(),
        }));
    }
    let word = body
        .first_chunk::<4>()
        .map(|word| u32::from_be_bytes(*word));
    Ok(Some(match (first as u16, word) {
        (RST_STREAM, Some(stream)) => Frame::Reset { stream },
        (PING, Some(id)) => Frame::Ping { id },
        (GOAWAY, _) => Frame::GoAway,
        _ => Frame::Other,
    }))
}

/// What both ends' compressors know before the first header (draft-mbelshe-httpbis-spdy-00, 2.6.10.1).
fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1_423);
    for word in WORDS {
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
}

#[rustfmt::skip]
const WORDS: [&str; 64] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset", "accept-encoding",
    "accept-language", "accept-ranges", "age", "allow", "authorization", "cache-control", "connection",
    "content-base", "content-encoding", "content-language", "content-length", "content-location",
    "content-md5", "content-range", "content-type", "date", "etag", "expect", "expires", "from", "host",
    "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified",
    "location", "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "referer",
    "retry-after", "server", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via",
    "warning", "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url",
    "public", "set-cookie", "keep-alive",
];

const TAIL: &str = "\
    \0\0\0\x06origin\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
    401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
    503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};

    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        // Every SPDY/3 connection carries this checksum in the first bytes of its compressed headers.
        let mut compress = Compress::new(Compression::fast(), true);
        assert_eq!(
            compress.set_dictionary(&dictionary()).expect("is taken"),
            0xe3c6_a7c2
        );
    }

    /// Decompresses header blocks as a server does: one after the other, with one state.
    fn inflate(decompress: &mut Decompress, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(4_096);
        if decompress
            .decompress_vec(block, &mut out, FlushDecompress::Sync)
            .is_err()
        {
            decompress.set_dictionary(&dictionary()).expect("is wanted");
            // What has been consumed by then is the two bytes of header and the checksum.
            let rest = &block[decompress.total_in() as usize..];
            decompress
                .decompress_vec(rest, &mut out, FlushDecompress::Sync)
                .expect("decompresses");
        }
        out
    }

    #[tokio::test]
    async fn streams_are_opened_with_headers_that_a_server_can_read() {
        let mut encoder = Encoder::new().expect("an encoder");
        let mut decompress = Decompress::new(true);
        for (expected, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            let mut out = BytesMut::new();
            assert_eq!(
                encoder
                    .open(&[("streamtype", kind)], &mut out)
                    .expect("opens"),
                expected
            );
            assert_eq!(out[..4], [0x80, 3, 0, 1]);
            let length = u32::from_be_bytes([0, out[5], out[6], out[7]]) as usize;
            assert_eq!(length, out.len() - 8);
            assert_eq!(out[8..12], (expected).to_be_bytes());
            let block = inflate(&mut decompress, &out[18..]);
            let mut wanted = vec![0, 0, 0, 1, 0, 0, 0, 10];
            wanted.extend_from_slice(b"streamtype");
            wanted.extend_from_slice(&(kind.len() as u32).to_be_bytes());
            wanted.extend_from_slice(kind.as_bytes());
            assert_eq!(block, wanted);
        }
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let mut out = BytesMut::new();
        data(5, false, b"hello", &mut out);
        data(5, true, b"", &mut out);
        ping(7, &mut out);
        control(RST_STREAM, 0, 8, &mut out);
        out.put_u32(3);
        out.put_u32(5);
        control(4, 0, 4, &mut out);
        out.put_u32(0);
        let mut input = &out[..];
        let mut frames = Vec::new();
        while let Some(frame) = read_frame(&mut input).await.expect("reads") {
            frames.push(frame);
        }
        let hello = Bytes::from_static(b"hello");
        assert_eq!(
            frames,
            [
                Frame::Data {
                    stream: 5,
                    fin: false,
                    bytes: hello
                },
                Frame::Data {
                    stream: 5,
                    fin: true,
                    bytes: Bytes::new()
                },
                Frame::Ping { id: 7 },
                Frame::Reset { stream: 3 },
                Frame::Other,
            ]
        );
        let cut = &out[..out.len() - 1];
        let mut input = cut;
        let last = loop {
            match read_frame(&mut input).await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert_eq!(
            last.expect_err("is cut off").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
