//! gzip for large answers, for clients that take it (KEP-156: from 128 KiB on, at the fastest level).
//!
//! Watches are left alone: their lines must not wait in a compressor.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, VARY,
};
use http::{Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Frame;

use crate::{Body, BodyError};

const LEAST: u64 = 128 << 10;

/// Whether the client takes gzip.
pub(crate) fn accepted(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).any(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}

/// Compresses a large (or not yet made) body.
pub(crate) fn compress(response: Response<Body>) -> Response<Body> {
    let small = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|size| size < LEAST);
    let done = response.headers().contains_key(CONTENT_ENCODING);
    if small || done || response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts
        .headers
        .append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    Response::from_parts(
        parts,
        Compressed {
            body,
            encoder: Some(encoder),
        }
        .boxed_unsync(),
    )
}

struct Compressed {
    body: Body,
    /// `None` once it is finished.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl http_body::Body for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let Some(encoder) = &mut this.encoder else {
                return Poll::Ready(None);
            };
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let encoder = this.encoder.take();
                    let rest = encoder
                        .map(GzEncoder::finish)
                        .transpose()
                        .map_err(BodyError::new);
                    return Poll::Ready(
                        rest.transpose()
                            .map(|rest| rest.map(|b| Frame::data(b.into()))),
                    );
                }
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if let Err(error) = encoder.write_all(&data) {
                return Poll::Ready(Some(Err(BodyError::new(error))));
            }
            // Whatever has come out; a compressor keeps some back.
            let out = std::mem::take(encoder.get_mut());
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::response;

    #[test]
    fn only_clients_that_say_so_get_it() {
        let asks = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepted(&headers)
        };
        assert!(asks("gzip") && asks("deflate, gzip;q=0.5"));
        assert!(!asks("gzip;q=0") && !asks("identity") && !accepted(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_large_body_comes_out_as_it_went_in() {
        let text = "some text, ".repeat(50_000);
        let packed = compress(response::json_bytes(StatusCode::OK, text.clone()));
        assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
        let packed = packed.into_body().collect().await.unwrap().to_bytes();
        assert!(packed.len() < text.len() / 10);
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_string(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, text);
        let small = compress(response::json_bytes(StatusCode::OK, "{}"));
        assert!(!small.headers().contains_key(CONTENT_ENCODING));
    }
}
