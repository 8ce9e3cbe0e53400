//! The API server: the Kubernetes API over HTTP, and the only part that knows the store.
//!
//! One generic pipeline serves every resource from its descriptor ([`windlass_api::resource::Resource`]): there
//! are no handlers per kind. A request passes authentication, impersonation and authorization
//! ([`service`](ApiServer::service)), then a handler that decodes, defaults, admits, validates and writes;
//! reads come from the watch cache ([`cacher`]). What a kind adds lives in `windlass-api`, what all objects
//! share in `windlass-machinery`. Depends on those two and the store; only the control plane's binary depends
//! on this crate.

pub mod admission;
mod aggregator;
pub mod audit;
pub mod authn;
pub mod authz;
mod body;
pub mod cacher;
mod catalog;
mod cel;
mod compress;
mod connections;
mod context;
mod custom_resources;
mod discovery;
mod encode;
pub mod encryption;
mod flow_control;
mod follower;
mod handlers;
mod health;
mod identity;
mod json;
mod kubernetes_service;
mod listener;
mod local_client;
mod metrics;
mod negotiation;
mod openapi;
mod options;
mod outbound;
mod paths;
mod pretty;
mod query;
mod registry;
mod request;
mod response;
mod server;
mod service;
mod service_addresses;
mod stall;
mod storage;
mod system_namespaces;
mod table;
mod types;
mod usage;

pub use aggregator::FrontProxy;
pub use cacher::Caches;
pub use discovery::Build;
pub use health::Step;
pub use listener::ServingTls;
pub use metrics::Metered;
pub use server::{ApiServer, Config, Credentials};
pub use service::{ApiService, LocalIdentity, PeerCertificates};

/// The error of a body that breaks off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(Box<dyn std::error::Error + Send + Sync>);

impl BodyError {
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Bodies of requests and responses.
pub type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, BodyError>;
