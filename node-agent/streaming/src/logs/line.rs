//! A line of a container's log as the runtime writes it: `<time> <stream> <tags> <text>`. Pure.

/// Which of a container's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// One line of the file. A long line of the container is several of these, all but the last partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// RFC 3339, as it stands in the file.
    pub(super) time: &'a str,
    pub(super) stream: Stream,
    pub(super) partial: bool,
    pub(super) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses a line without its newline; `None` for what is none, such as one that was half overwritten.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (time, rest) = split(bytes)?;
        let (stream, rest) = split(rest)?;
        // A line of nothing may end after its tag.
        let (tags, text) = split(rest).unwrap_or((rest, &[]));
        let stream = match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // Further tags may follow after colons.
        let partial = match tags.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self {
            time: std::str::from_utf8(time).ok()?,
            stream,
            partial,
            text,
        })
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// The time with exactly nine digits of fraction, as `kubectl logs --timestamps` shows it.
pub(super) fn fixed_width(time: &str) -> String {
    let zone = time
        .find(['Z', '+'])
        .or_else(|| time.rfind('-').filter(|at| *at > 10));
    let (stamp, zone) = time.split_at(zone.unwrap_or(time.len()));
    let (seconds, fraction) = stamp.split_once('.').unwrap_or((stamp, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let line = Line::parse(b"2026-01-02T03:04:05.67Z stderr P a b  c").expect("a line");
        assert_eq!(line.time, "2026-01-02T03:04:05.67Z");
        assert_eq!(
            (line.stream, line.partial, line.text),
            (Stream::Stderr, true, &b"a b  c"[..])
        );
        let line = Line::parse(b"2026-01-02T03:04:05Z stdout F:x ").expect("a line");
        assert_eq!(
            (line.stream, line.partial, line.text),
            (Stream::Stdout, false, &b""[..])
        );
        assert!(
            Line::parse(b"2026-01-02T03:04:05Z stdout F")
                .expect("a line")
                .text
                .is_empty()
        );
        for broken in [
            &b""[..],
            b"x",
            b"t stdin F x",
            b"t stdout Q x",
            b"\xff stdout F x",
        ] {
            assert_eq!(Line::parse(broken), None);
        }
    }

    #[test]
    fn times_get_nine_digits() {
        for (time, shown) in [
            ("2026-01-02T03:04:05.67Z", "2026-01-02T03:04:05.670000000Z"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000000Z"),
            (
                "2026-01-02T03:04:05.123456789+02:00",
                "2026-01-02T03:04:05.123456789+02:00",
            ),
            (
                "2026-01-02T03:04:05.5-02:00",
                "2026-01-02T03:04:05.500000000-02:00",
            ),
        ] {
            assert_eq!(fixed_width(time), shown);
        }
    }
}
