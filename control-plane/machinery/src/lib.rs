//! What all Kubernetes kinds share, as pure code: no I/O, no clock, no async.
//!
//! An object is a [`serde_json::Value`] guided by one schema table; everything generic (codecs, field
//! validation, patches, selectors, server-side apply) is written once against that table, for built-in
//! kinds and custom resources alike. Depends on no other crate of the workspace; everyone may depend on it.

pub mod apply;
pub mod defaults;
pub mod fields;
#[doc(hidden)]
pub mod fuzz;
pub mod json;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod time;
mod trail;
pub mod validation;
pub mod yaml;
