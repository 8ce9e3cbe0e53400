//! Indented JSON, for those who read it: asked for by `pretty`, or by a program that people look through.
//!
//! Answers are made from stored bytes without parsing them, so the line breaks are put between the bytes as they are sent.

use std::mem;

use bytes::Bytes;
use http::Response;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, USER_AGENT};
use http_body_util::BodyExt;

use crate::Body;
use crate::query::Query;
use crate::request::RequestInfo;

/// Browsers and what is used on the command line, as upstream knows them.
const READERS: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

/// Whether the answer shall be indented.
pub(crate) fn wanted(info: &RequestInfo, query: &Query, headers: &HeaderMap) -> bool {
    if matches!(info.path.as_str(), "/" | "/version") {
        return true;
    }
    // Watches are lines, documents are not for reading, and what a proxy brings is not ours.
    if info.verb == "watch" || info.subresource == "proxy" || info.path.starts_with("/openapi") {
        return false;
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text(ACCEPT).is_some_and(|accept| accept.contains("pretty=1")) {
        return true;
    }
    match query.get("pretty").filter(|asked| !asked.is_empty()) {
        Some(asked) => matches!(asked, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => text(USER_AGENT)
            .is_some_and(|agent| READERS.iter().any(|reader| agent.starts_with(reader))),
    }
}

/// Indents a body of JSON, and leaves any other alone.
pub(crate) fn indent(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let json = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !json || headers.contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    let mut indenter = Indenter::default();
    let body = body.map_frame(move |frame| frame.map_data(|data| indenter.indent(&data)));
    Response::from_parts(parts, body.boxed_unsync())
}

/// Go's `json.Indent` with two blanks, on text that comes in pieces.
#[derive(Default)]
struct Indenter {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A bracket is open and nothing has come in it: it may stay `{}`.
    opened: bool,
}

impl Indenter {
    fn indent(&mut self, piece: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(piece.len() * 2);
        for &byte in piece {
            self.byte(byte, &mut out);
        }
        out.into()
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.in_string {
            out.push(byte);
            match byte {
                _ if mem::take(&mut self.escaped) => {}
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        if byte.is_ascii_whitespace() {
            return;
        }
        let closes = matches!(byte, b'}' | b']');
        let opened = mem::take(&mut self.opened);
        if opened && !closes {
            self.depth += 1;
            self.new_line(out);
        } else if closes && !opened {
            self.depth = self.depth.saturating_sub(1);
            self.new_line(out);
        }
        out.push(byte);
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.opened = true,
            b',' => self.new_line(out),
            b':' => out.push(b' '),
            _ => {}
        }
    }

    fn new_line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        out.resize(out.len() + 2 * self.depth, b' ');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_in_pieces_of_any_size_is_indented_as_a_whole() {
        let value =
            json!({"a": [1, {"b": "x, \"{y}\": \\"}, [], {}], "c": {"d": null}, "e": [[true]]});
        let text = format!("{value}\n");
        for size in 1..=text.len() {
            let mut indenter = Indenter::default();
            let out: Vec<u8> = text
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| indenter.indent(piece))
                .collect();
            assert_eq!(
                String::from_utf8(out).unwrap(),
                serde_json::to_string_pretty(&value).unwrap()
            );
        }
    }
}
