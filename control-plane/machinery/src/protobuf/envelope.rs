//! What stands around a body: four magic bytes and a `runtime.Unknown` that says what is inside.

use super::ProtobufError;
use super::wire::{Raw, Reader, put_bytes, put_message};

/// The first bytes of each protobuf body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// A body's type and content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    /// The message; or JSON, if `content_type` says so.
    pub raw: &'a [u8],
    pub content_type: &'a str,
}

/// Opens a request's body.
pub fn decode_envelope(bytes: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(unknown);
    while let Some((tag, raw)) = reader.field()? {
        let Raw::Bytes(bytes) = raw else { continue };
        match tag {
            1 => {
                let mut reader = Reader::new(bytes);
                while let Some((tag, raw)) = reader.field()? {
                    match (tag, raw) {
                        (1, Raw::Bytes(bytes)) => envelope.api_version = text(bytes, "apiVersion")?,
                        (2, Raw::Bytes(bytes)) => envelope.kind = text(bytes, "kind")?,
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = bytes,
            4 => envelope.content_type = text(bytes, "contentType")?,
            _ => {}
        }
    }
    Ok(envelope)
}

fn text<'a>(bytes: &'a [u8], field: &str) -> Result<&'a str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError::NotUtf8(field.to_owned()))
}

/// Puts a message into an envelope: a response's body.
pub fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + api_version.len() + kind.len() + 24);
    out.extend_from_slice(MAGIC);
    let mut type_meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, raw);
    // Upstream writes the two empty texts as well.
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// A `metav1.WatchEvent` without its envelope; `object` is a wrapped object.
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + kind.len() + 16);
    put_bytes(&mut out, 1, kind.as_bytes());
    let infallible: Result<(), std::convert::Infallible> = put_message(&mut out, 2, |out| {
        put_bytes(out, 1, object);
        Ok(())
    });
    let Ok(()) = infallible;
    out
}

/// Begins a list's message: its metadata, a `ListMeta` that is encoded already.
pub fn put_list_metadata(out: &mut Vec<u8>, metadata: &[u8]) {
    put_bytes(out, 1, metadata);
}

/// Adds an encoded object to a list's message, so that a long list never exists as a [`serde_json::Value`].
pub fn put_item(out: &mut Vec<u8>, item: &[u8]) {
    put_bytes(out, 2, item);
}
