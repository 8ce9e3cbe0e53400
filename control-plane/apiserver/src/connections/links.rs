//! Links of what is seen through a proxy: a page and a redirect name paths of their own server, which a browser
//! would look for at the API server. They are led below the proxy's path again.
//!
//! Only values of attributes change; every other byte of a page stays as it is.

use std::io::Read;

use flate2::read::{DeflateDecoder, GzDecoder};
use http::Response;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION,
};
use http_body_util::BodyExt;
use windlass_machinery::status::ApiError;

use crate::Body;
use crate::response;

/// A page larger than this is passed on as it is.
const LARGEST_PAGE: u64 = 16 << 20;

/// Which attributes of which elements are addresses: HTML's own list.
const ADDRESSES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const RAW_TEXT: [&str; 4] = ["script", "style", "textarea", "title"];

/// Where the other end lies for whoever looks through the proxy.
pub(super) struct Links<'a> {
    /// The path up to `/proxy`, without a slash at its end.
    pub(super) below: &'a str,
    /// What the other end may call itself: its address, and what the client asked for.
    pub(super) hosts: [&'a str; 2],
}

impl Links<'_> {
    /// What the other end is told of the way that a request took.
    pub(super) fn forwarded(&self, rest: &str) -> HeaderMap {
        let uri = format!("{}/{rest}", self.below).parse();
        let name = HeaderName::from_static("x-forwarded-uri");
        uri.into_iter().map(|uri| (name.clone(), uri)).collect()
    }

    pub(super) async fn rewrite(&self, answer: Response<Body>) -> Result<Response<Body>, ApiError> {
        let (mut parts, body) = answer.into_parts();
        if let Some(location) = text(&parts.headers, &LOCATION) {
            if let Some(Ok(moved)) = self.moved(location).map(|moved| moved.parse()) {
                parts.headers.insert(LOCATION, moved);
            }
            return Ok(Response::from_parts(parts, body));
        }
        let kind = text(&parts.headers, &CONTENT_TYPE).unwrap_or_default();
        let is_page = kind
            .split(';')
            .next()
            .is_some_and(|k| k.trim() == "text/html");
        let length = text(&parts.headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let encoding = text(&parts.headers, &CONTENT_ENCODING).unwrap_or_default();
        let known = ["", "gzip", "deflate"].contains(&encoding);
        if !is_page || !known || length.is_some_and(|length: u64| length > LARGEST_PAGE) {
            return Ok(Response::from_parts(parts, body));
        }
        let broken = |error: &dyn std::fmt::Display| {
            ApiError::service_unavailable(format!("error trying to reach service: {error}"))
        };
        let sent = body.collect().await.map_err(|e| broken(&e))?.to_bytes();
        let page = match encoding {
            "" => sent.to_vec(),
            "gzip" => decoded(GzDecoder::new(&*sent)).map_err(|e| broken(&e))?,
            _ => decoded(DeflateDecoder::new(&*sent)).map_err(|e| broken(&e))?,
        };
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(CONTENT_ENCODING);
        Ok(Response::from_parts(
            parts,
            response::full(self.page(&page)),
        ))
    }

    /// The same place seen through the proxy; `None` for what needs no other name.
    fn moved(&self, link: &str) -> Option<String> {
        let path = self.own_path(link)?;
        let seen_already = path
            .strip_prefix(self.below)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if seen_already {
            return (path != link).then(|| path.to_owned());
        }
        Some(format!("{}{path}", self.below))
    }

    /// The path of a link that names its own server, or none.
    fn own_path<'l>(&self, link: &'l str) -> Option<&'l str> {
        let after_scheme = ["http:", "https:"]
            .iter()
            .find_map(|scheme| link.strip_prefix(scheme))
            .unwrap_or(link);
        if let Some(named) = after_scheme.strip_prefix("//") {
            let end = named.find(['/', '?', '#']).unwrap_or(named.len());
            let own = self.hosts.contains(&&named[..end]);
            return own.then(|| &named[end..]).filter(|p| p.starts_with('/'));
        }
        link.starts_with('/').then_some(link)
    }

    fn page(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len() + 1024);
        let mut rest = page;
        while let Some(start) = rest.iter().position(|byte| *byte == b'<') {
            out.extend_from_slice(&rest[..start]);
            rest = &rest[start..];
            let taken = if rest.starts_with(b"<!--") {
                find(rest, b"-->").map_or(rest.len(), |end| end + 3)
            } else if rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
                let tag = Tag::read(rest);
                self.tag(&tag, rest, &mut out);
                rest = &rest[tag.length..];
                raw_text(&tag, rest)
            } else {
                1
            };
            out.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
        }
        out.extend_from_slice(rest);
        out
    }

    fn tag(&self, tag: &Tag, source: &[u8], out: &mut Vec<u8>) {
        let known = ADDRESSES.iter().find(|(name, _)| *name == tag.name);
        let mut written = 0;
        for (name, value) in &tag.attributes {
            let address = known.is_some_and(|(_, names)| names.contains(&name.as_str()));
            let link = std::str::from_utf8(&source[value.clone()]).unwrap_or_default();
            if let Some(moved) = Some(link.trim())
                .filter(|_| address)
                .and_then(|l| self.moved(l))
            {
                out.extend_from_slice(&source[written..value.start]);
                out.extend_from_slice(moved.as_bytes());
                written = value.end;
            }
        }
        out.extend_from_slice(&source[written..tag.length]);
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A start tag: where its attributes' values stand in its source.
struct Tag {
    name: String,
    attributes: Vec<(String, std::ops::Range<usize>)>,
    length: usize,
}

impl Tag {
    /// `source` begins with `<` and a letter.
    fn read(source: &[u8]) -> Self {
        let until = |from: usize, ends: &[u8]| {
            let found = source[from..]
                .iter()
                .position(|byte| byte.is_ascii_whitespace() || ends.contains(byte));
            found.map_or(source.len(), |found| from + found)
        };
        let space = |from: usize| {
            let found = source[from..]
                .iter()
                .position(|byte| !byte.is_ascii_whitespace());
            found.map_or(source.len(), |found| from + found)
        };
        let lower = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&source[range]).to_ascii_lowercase()
        };
        let mut at = until(1, b"/>");
        let name = lower(1..at);
        let mut attributes = Vec::new();
        loop {
            at = space(at);
            match source.get(at) {
                None => break,
                Some(b'>') => {
                    at += 1;
                    break;
                }
                Some(b'/') => at += 1,
                Some(_) => {
                    // An equals sign at the beginning belongs to the name.
                    let end = until(at + 1, b"/>=");
                    let attribute = lower(at..end);
                    at = space(end);
                    if source.get(at) != Some(&b'=') {
                        continue;
                    }
                    at = space(at + 1);
                    let value = match source.get(at) {
                        Some(quote @ (b'"' | b'\'')) => {
                            let start = at + 1;
                            let close = source[start..].iter().position(|byte| byte == quote);
                            let end = close.map_or(source.len(), |close| start + close);
                            at = (end + 1).min(source.len());
                            start..end
                        }
                        _ => {
                            let start = at;
                            at = until(start, b">");
                            start..at
                        }
                    };
                    attributes.push((attribute, value));
                }
            }
        }
        Self {
            name,
            attributes,
            length: at,
        }
    }
}

/// How much of what follows a start tag is its raw text.
fn raw_text(tag: &Tag, rest: &[u8]) -> usize {
    if !RAW_TEXT.contains(&tag.name.as_str()) {
        return 0;
    }
    let end = format!("</{}", tag.name);
    let found = rest
        .windows(end.len())
        .position(|window| window.eq_ignore_ascii_case(end.as_bytes()));
    found.unwrap_or(rest.len())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn decoded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let read = reader.take(LARGEST_PAGE + 1).read_to_end(&mut page)?;
    if read as u64 > LARGEST_PAGE {
        return Err(std::io::Error::other("the page is too large"));
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links<'_> = Links {
        below: "/api/v1/namespaces/proxy-1/pods/p:80/proxy",
        hosts: ["10.0.0.1:80", "kubernetes:6443"],
    };

    #[test]
    fn links_to_the_own_server_are_led_through_the_proxy() {
        let below = LINKS.below;
        for (link, wanted) in [
            ("/rewriteme", Some(format!("{below}/rewriteme"))),
            ("/a/?b=/c#d", Some(format!("{below}/a/?b=/c#d"))),
            ("http://10.0.0.1:80/x", Some(format!("{below}/x"))),
            ("//10.0.0.1:80/x", Some(format!("{below}/x"))),
            ("https://kubernetes:6443/", Some(format!("{below}/"))),
            (
                &format!("https://kubernetes:6443{below}/x"),
                Some(format!("{below}/x")),
            ),
            (&format!("{below}/x"), None),
            ("relative/x", None),
            ("#top", None),
            ("", None),
            ("mailto:a@b", None),
            ("http://elsewhere/x", None),
            ("//elsewhere/x", None),
        ] {
            assert_eq!(LINKS.moved(link), wanted, "{link}");
        }
    }

    #[test]
    fn a_page_changes_only_in_its_links() {
        let below = LINKS.below;
        for (page, wanted) in [
            (
                "<a href=\"/rewriteme\">test</a>",
                format!("<a href=\"{below}/rewriteme\">test</a>"),
            ),
            (
                "<A class=x HREF = '/y' id=z/><img src=/i.png alt=\"/no\">",
                format!("<A class=x HREF = '{below}/y' id=z/><img src={below}/i.png alt=\"/no\">"),
            ),
            (
                "<p href=\"/no\">1 < 2</p><!-- <a href=\"/no\"> --><a href=\"x\" title='>'>",
                "<p href=\"/no\">1 < 2</p><!-- <a href=\"/no\"> --><a href=\"x\" title='>'>".into(),
            ),
            (
                "<script src=\"/s.js\">\"<a href='/no'>\"</SCRIPT><link href=/c.css>",
                format!(
                    "<script src=\"{below}/s.js\">\"<a href='/no'>\"</SCRIPT><link href={below}/c.css>"
                ),
            ),
            ("<a href=\"/cut", format!("<a href=\"{below}/cut")),
            ("text <", "text <".into()),
            ("<a href=", "<a href=".into()),
        ] {
            let got = LINKS.page(page.as_bytes());
            assert_eq!(String::from_utf8_lossy(&got), wanted);
        }
    }
}
