//! The container runtime as a typed client.
//!
//! A thin, honest layer over CRI v1: one unix socket that reconnects by itself,
//! a deadline for every call, retries only where repeating cannot do harm, one
//! error type that tells "not there" from "not reachable" from "refused".
//! It holds no state about pods: that is `windlass-pods`' business, and this
//! crate must never depend on it.

mod client;
mod error;
mod events;
mod images;
mod runtime;

pub use client::{Endpoint, Runtime};
pub use error::Error;
pub use events::{RuntimeEvent, watch as watch_events};
pub use runtime::{ExecOutput, StreamTarget};
pub use windlass_proto::cri::v1;

/// What every call gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
