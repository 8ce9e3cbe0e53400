//! Finds where the last lines of a log begin, reading backwards: a large log costs what its tail costs.

use std::io::{self, SeekFrom};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};

use super::line::Line;

const BLOCK: u64 = 64 << 10;

/// The offset at which the last `count` lines begin. Parts of one line of the container count as one, and
/// so does one that has not ended yet.
pub(super) async fn tail_start(
    log: &mut (impl AsyncRead + AsyncSeek + Unpin),
    count: u64,
) -> io::Result<u64> {
    let mut begin = log.seek(SeekFrom::End(0)).await?;
    if count == 0 {
        return Ok(begin);
    }
    // What has been read of the file's end and not been counted: from `begin` to the line found last.
    let mut unread = Vec::new();
    // Lines of the container that lie wholly after the end of `unread`.
    let mut lines = 0;
    let mut is_last = true;
    while begin > 0 {
        let length = begin.min(BLOCK);
        begin -= length;
        log.seek(SeekFrom::Start(begin)).await?;
        let mut block = vec![0; length as usize];
        log.read_exact(&mut block).await?;
        block.append(&mut unread);
        unread = block;
        // Each newline but the last byte of the file precedes a line that is now read as a whole.
        loop {
            let searched = match unread.last() {
                Some(b'\n') => &unread[..unread.len() - 1],
                _ => &unread[..],
            };
            let Some(newline) = searched.iter().rposition(|byte| *byte == b'\n') else {
                break;
            };
            let raw = &searched[newline + 1..];
            let ends_a_line = Line::parse(raw).is_none_or(|line| !line.partial);
            if ends_a_line || is_last {
                if lines == count {
                    return Ok(begin + unread.len() as u64);
                }
                lines += 1;
            }
            is_last = false;
            unread.truncate(newline + 1);
        }
    }
    // Only the first line of the file is left.
    let first = unread.strip_suffix(b"\n").unwrap_or(&unread);
    let ends_a_line = Line::parse(first).is_none_or(|line| !line.partial);
    if ends_a_line && lines == count && !unread.is_empty() {
        return Ok(unread.len() as u64);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Lines of a log; those that end with `+` are partial.
    fn log(lines: &[&str]) -> String {
        let line = |text: &&str| match text.strip_suffix('+') {
            Some(text) => format!("2026-01-01T00:00:00Z stdout P {text}\n"),
            None => format!("2026-01-01T00:00:00Z stdout F {text}\n"),
        };
        lines.iter().map(line).collect()
    }

    async fn tail(log: &str, count: u64) -> String {
        let start = tail_start(&mut Cursor::new(log), count)
            .await
            .expect("reads");
        let tail = log[start as usize..].lines();
        tail.map(|line| line.rsplit(' ').next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[tokio::test]
    async fn the_last_lines_are_found() {
        let text = log(&["a", "b1+", "b2", "c", "d1+", "d2+", "d3"]);
        for (count, expected) in [
            (0, ""),
            (1, "d1 d2 d3"),
            (2, "c d1 d2 d3"),
            (3, "b1 b2 c d1 d2 d3"),
            (4, "a b1 b2 c d1 d2 d3"),
            (5, "a b1 b2 c d1 d2 d3"),
        ] {
            assert_eq!(tail(&text, count).await, expected, "{count}");
        }
        let unfinished = log(&["a", "b", "c1+", "c2+"]);
        assert_eq!(tail(&unfinished, 1).await, "c1 c2");
        assert_eq!(tail(&unfinished, 2).await, "b c1 c2");
        assert_eq!(tail("", 3).await, "");
    }

    #[tokio::test]
    async fn lines_across_blocks_are_found_too() {
        let names: Vec<String> = (0..5_000)
            .map(|n| format!("line-{n}-{}", "x".repeat(n % 97)))
            .collect();
        let text = log(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(text.len() as u64 > 4 * BLOCK);
        for count in [1, 999, 2_500, 4_999, 5_000, 6_000] {
            let shown = names.len().saturating_sub(count);
            assert_eq!(
                tail(&text, count as u64).await,
                names[shown..].join(" "),
                "{count}"
            );
        }
    }
}
