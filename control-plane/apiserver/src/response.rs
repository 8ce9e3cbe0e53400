//! Responses: every answer of the server is built here, errors always as `Status` objects.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use windlass_machinery::protobuf;
use windlass_machinery::status::ApiError;

use crate::encode;
use crate::negotiation::Encoding;
use crate::{Body, BodyError};

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that is made as it is sent.
pub(crate) fn streamed(stream: impl futures::Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt;
    StreamBody::new(stream.map(|bytes| Ok::<_, BodyError>(Frame::data(bytes)))).boxed_unsync()
}

pub(crate) fn with_type(
    code: StatusCode,
    content_type: &'static str,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// JSON that has been encoded already.
pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "application/json", full(bytes))
}

/// An object in JSON, ended with a line feed as Go's encoder ends every one: `kubectl get --raw` and `curl` show it.
pub(crate) fn json_line(code: StatusCode, mut bytes: Vec<u8>) -> Response<Body> {
    bytes.push(b'\n');
    json_bytes(code, bytes)
}

/// An object, in the encoding that the client asked for.
pub(crate) fn object(code: StatusCode, encoding: Encoding, value: &Value) -> Response<Body> {
    match encoding {
        Encoding::Json => json_line(code, encode::object(value)),
        Encoding::Yaml => with_type(code, encoding.content_type(), full(yaml_text(value))),
        Encoding::Protobuf => match protobuf(value) {
            Some(bytes) => with_type(code, encoding.content_type(), full(bytes)),
            // What no protobuf type describes (`/version`) has one form only.
            None => json_line(code, encode::object(value)),
        },
    }
}

/// A built-in object in its envelope.
pub(crate) fn protobuf(value: &Value) -> Option<Vec<u8>> {
    let (api_version, kind) = (value["apiVersion"].as_str()?, value["kind"].as_str()?);
    let (schema, type_id) = crate::types::builtin(api_version, kind)?;
    match protobuf::encode(&schema, type_id, value) {
        Ok(raw) => Some(protobuf::wrap(api_version, kind, &raw)),
        Err(error) => {
            tracing::warn!(api_version, kind, %error, "an object has no protobuf form");
            None
        }
    }
}

/// Falls back to JSON, which is YAML as well, should the serializer refuse.
fn yaml_text(value: &Value) -> Vec<u8> {
    serde_saphyr::to_string(value).map_or_else(|_| encode::object(value), String::into_bytes)
}

pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "text/plain; charset=utf-8", full(text))
}

/// The `Status` object of a failure.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    error_as(error, Encoding::Json)
}

/// The `Status` object of a failure, in the encoding that the client asked for.
pub(crate) fn error_as(error: &ApiError, encoding: Encoding) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = object(code, encoding, &error.to_status());
    let retry = error.details.as_ref().and_then(|d| d.retry_after_seconds);
    if let Some(seconds) = retry {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The `Status` of a success that has no object to show; `details` names what it was about.
pub(crate) fn success(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource});
    if !group.is_empty() {
        details["group"] = group.into();
    }
    if !uid.is_empty() {
        details["uid"] = uid.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

const WARNING: HeaderName = HeaderName::from_static("warning");

/// Upstream's bounds on what warnings may add to a response.
const WARNINGS_BYTES: usize = 4096;
const WARNING_CHARS: usize = 256;

/// Adds `Warning: 299 - "…"` headers.
pub(crate) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    let mut total = 0;
    let mut seen = std::collections::HashSet::new();
    for text in warnings.iter().filter(|text| seen.insert(text.as_str())) {
        let quoted: String = text
            .chars()
            .filter(|c| !c.is_control())
            .take(WARNING_CHARS)
            .flat_map(|c| {
                (c == '"' || c == '\\')
                    .then_some('\\')
                    .into_iter()
                    .chain([c])
            })
            .collect();
        total += quoted.len();
        if total > WARNINGS_BYTES {
            return;
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted_and_said_once() {
        let mut response = text(StatusCode::OK, "");
        add_warnings(
            &mut response,
            &["unknown field \"a\"".into(), "unknown field \"a\"".into()],
        );
        let all: Vec<_> = response.headers().get_all("warning").iter().collect();
        assert_eq!(all, [r#"299 - "unknown field \"a\"""#]);
    }
}
