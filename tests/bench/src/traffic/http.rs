//! Requests and answers, no more of them than the measurement needs.

use std::io::{Error, ErrorKind, Read, Result, Write};

pub const ONCE: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
pub const KEPT: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
pub const BULK: &[u8] = b"GET /bulk HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

const LONGEST_HEAD: usize = 8 << 10;

/// Reads a head into `buffer`; returns its length and how much was read in all.
pub fn read_head(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Result<(usize, usize)> {
    buffer.resize(LONGEST_HEAD, 0);
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        // The end may lie across two reads.
        let from = filled.saturating_sub(3);
        filled += read;
        if let Some(at) = buffer[from..filled]
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
        {
            return Ok((from + at + 4, filled));
        }
        if filled == buffer.len() {
            return Err(Error::new(ErrorKind::InvalidData, "an endless head"));
        }
    }
}

/// One request on a connection that stays open.
pub fn converse(stream: &mut (impl Read + Write), buffer: &mut Vec<u8>) -> Result<()> {
    stream.write_all(KEPT)?;
    let (head, filled) = read_head(stream, buffer)?;
    let length: usize = header(&buffer[..head], "content-length")
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::InvalidData, "an answer without a length"))?;
    let mut missing = (head + length).saturating_sub(filled);
    while missing > 0 {
        let room = missing.min(buffer.len());
        let read = stream.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        missing -= read;
    }
    Ok(())
}

/// A header's value.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let head = std::str::from_utf8(head).ok()?;
    head.split("\r\n").find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most a few bytes at a time, as a network may.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(length);
            buffer[..length].copy_from_slice(now);
            self.0 = later;
            Ok(length)
        }
    }

    impl Write for Slow<'_> {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_ends_where_its_length_says_however_it_arrives() {
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Served-By: b\r\n\r\nhello";
        for step in 1..=two.len() {
            let mut stream = Slow(two, step);
            converse(&mut stream, &mut Vec::new()).unwrap();
            assert!(stream.0.is_empty());
        }
    }

    #[test]
    fn a_connection_that_ends_early_is_an_error() {
        let mut stream = Slow(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", 7);
        assert!(converse(&mut stream, &mut Vec::new()).is_err());
    }
}
