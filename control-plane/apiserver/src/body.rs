//! Request bodies: read with a limit, unpacked with the same limit, decoded by their media type.

use std::io::Read;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use windlass_machinery::status::ApiError;
use windlass_machinery::{json, protobuf, yaml};

use crate::Body;
use crate::negotiation::MediaType;

/// Upstream's `MaxRequestBodyBytes`.
pub(crate) const LIMIT: usize = 3 * 1024 * 1024;

fn too_large() -> ApiError {
    ApiError::too_large(format!("Request entity too large: limit is {LIMIT}"))
}

/// Reads the whole body, unpacking gzip.
///
/// # Errors
/// 413 when it is larger than [`LIMIT`], packed or unpacked; 400 when it breaks off or is no gzip; 415 for
/// other encodings.
pub(crate) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|length| length > LIMIT as u64) {
        return Err(too_large());
    }
    let raw = match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Err(error) => {
            return Err(ApiError::bad_request(format!(
                "the body could not be read: {error}"
            )));
        }
    };
    match headers.get(CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None | Some(b"" | b"identity") => Ok(raw),
        Some(b"gzip") => unpack(&raw),
        Some(_) => Err(ApiError::unsupported_media_type(
            "the body's Content-Encoding is not supported - accepted are: gzip, identity",
        )),
    }
}

fn unpack(packed: &[u8]) -> Result<Bytes, ApiError> {
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .take(LIMIT as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(|e| ApiError::bad_request(format!("the body is not valid gzip: {e}")))?;
    if unpacked.len() > LIMIT {
        Err(too_large())
    } else {
        Ok(unpacked.into())
    }
}

/// A decoded object, and what is to be said of keys that appeared twice.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Decodes an object.
///
/// # Errors
/// 400 for broken input, or a protobuf type that is not known.
pub(crate) fn decode(media: MediaType, bytes: &[u8]) -> Result<Decoded, ApiError> {
    match media {
        MediaType::Yaml | MediaType::ApplyPatch => {
            let decoded = yaml::decode(bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
            let told = |line: String| match line.starts_with("line ") {
                true => format!("yaml: unmarshal errors:\n  {line}"),
                // It was JSON after all.
                false => format!("duplicate field {line:?}"),
            };
            Ok(Decoded {
                value: decoded.value,
                duplicates: decoded.duplicates.into_iter().map(told).collect(),
            })
        }
        MediaType::Protobuf => decode_protobuf(bytes),
        _ => {
            let decoded = json::decode(bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
            let told = |path: String| format!("duplicate field {path:?}");
            Ok(Decoded {
                value: decoded.value,
                duplicates: decoded.duplicates.into_iter().map(told).collect(),
            })
        }
    }
}

fn decode_protobuf(bytes: &[u8]) -> Result<Decoded, ApiError> {
    let bad = |e: &dyn std::fmt::Display| ApiError::bad_request(e.to_string());
    let envelope = protobuf::decode_envelope(bytes).map_err(|e| bad(&e))?;
    let (api_version, kind) = (envelope.api_version, envelope.kind);
    let Some((schema, type_id)) = crate::types::builtin(api_version, kind) else {
        return Err(ApiError::bad_request(format!(
            "no kind {kind:?} is registered for version {api_version:?}"
        )));
    };
    let mut value = protobuf::decode(&schema, type_id, envelope.raw).map_err(|e| bad(&e))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), api_version.into());
        object.insert("kind".to_owned(), kind.into());
    }
    Ok(Decoded {
        value,
        duplicates: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn body(bytes: Vec<u8>) -> Body {
        crate::response::full(bytes)
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_however_it_is_packed() {
        let headers = HeaderMap::new();
        assert_eq!(
            read(&headers, body(vec![b' '; LIMIT + 1]))
                .await
                .unwrap_err()
                .code,
            413
        );
        assert_eq!(
            read(&headers, body(vec![b' '; LIMIT])).await.unwrap().len(),
            LIMIT
        );

        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&vec![0; 64 << 20]).unwrap();
        let bomb = packer.finish().unwrap();
        assert!(bomb.len() < LIMIT);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(read(&headers, body(bomb)).await.unwrap_err().code, 413);
        assert_eq!(
            read(&headers, body(b"no gzip".to_vec()))
                .await
                .unwrap_err()
                .code,
            400
        );
    }
}
