//! Kubernetes' protobuf: typed objects to and from [`Value`], guided by the schema table.
//!
//! The wire format is proto2 as gogo writes it, with the API's special types (quantities, times, …) and an
//! envelope (`k8s\0` and a `runtime.Unknown`) around each body. `apiVersion` and `kind` of an object stand in its
//! envelope and nowhere else.

mod decode;
mod encode;
mod envelope;
mod wire;

pub use decode::decode;
pub use encode::encode;
pub use envelope::{
    Envelope, MAGIC, decode_envelope, put_item, put_list_metadata, watch_event, wrap,
};

/// A body that cannot be read, or an object that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoMagic,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    VarintTooLong,
    #[error("proto: illegal tag {0}")]
    IllegalTag(u64),
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WrongWireType { field: String, wire_type: u8 },
    #[error("proto: field {0} is not valid UTF-8")]
    NotUtf8(String),
    #[error("proto: nested too deeply")]
    TooDeep,
    #[error("field {field}: {why}")]
    BadValue { field: String, why: String },
}

#[cfg(test)]
mod kubectl;
#[cfg(test)]
mod tests;
