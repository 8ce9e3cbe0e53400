//! Turns the runtime's lines into what the client asked for: chosen by time and stream, with or without
//! timestamps, partial lines joined, cut off at the limit. Pure.

use bytes::{BufMut, BytesMut};

use super::line::{Line, Stream, fixed_width};
use super::options::{LogOptions, Streams, parse_time};

pub(super) struct Select {
    options: LogOptions,
    /// Bytes that may still be written.
    left: u64,
    /// A line of each stream has begun and not ended: its next part gets no timestamp of its own.
    in_line: [bool; 2],
}

impl Select {
    pub(super) fn new(options: LogOptions) -> Self {
        Self {
            options,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            in_line: [false; 2],
        }
    }

    /// Nothing more can come.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Appends what of a raw line is wanted.
    pub(super) fn push(&mut self, raw: &[u8], out: &mut BytesMut) {
        let Some(line) = Line::parse(raw) else {
            tracing::debug!("passed over a line of a container log that is none");
            return;
        };
        let unwanted = match self.options.streams {
            Streams::All => false,
            Streams::Stdout => line.stream == Stream::Stderr,
            Streams::Stderr => line.stream == Stream::Stdout,
        };
        let too_old = || {
            let since = self.options.since?;
            Some(parse_time(line.time)? < since)
        };
        if unwanted || too_old() == Some(true) {
            return;
        }
        let in_line = &mut self.in_line[usize::from(line.stream == Stream::Stderr)];
        let begins = !std::mem::replace(in_line, line.partial);
        if begins && self.options.timestamps {
            self.write(fixed_width(line.time).as_bytes(), out);
            self.write(b" ", out);
        }
        self.write(line.text, out);
        if !line.partial {
            self.write(b"\n", out);
        }
    }

    fn write(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let length = bytes
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        out.put_slice(&bytes[..length]);
        self.left -= length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;

    const LOG: &str = "\
        2026-01-01T00:00:01.5Z stdout F one\n\
        2026-01-01T00:00:02Z stderr P tw\n\
        2026-01-01T00:00:02.1Z stderr F o\n\
        this is no line\n\
        2026-01-01T00:00:03Z stdout F three";

    fn select(query: &str) -> String {
        let now = std::time::SystemTime::now();
        let options = LogOptions::parse(&Query::parse(query), now).expect("valid");
        let mut select = Select::new(options);
        let mut out = BytesMut::new();
        for line in LOG.split('\n') {
            select.push(line.as_bytes(), &mut out);
        }
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn each_option_does_its_part() {
        assert_eq!(select(""), "one\ntwo\nthree\n");
        assert_eq!(select("stream=Stderr"), "two\n");
        assert_eq!(select("stream=Stdout"), "one\nthree\n");
        assert_eq!(select("sinceTime=2026-01-01T00:00:03Z"), "three\n");
        assert_eq!(select("limitBytes=6"), "one\ntw");
        assert_eq!(
            select("timestamps=true&sinceTime=2026-01-01T00:00:02Z"),
            "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:03.000000000Z three\n"
        );
    }
}
