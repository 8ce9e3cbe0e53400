//! The HTTPS server that the API server calls on every node: logs, exec, attach, port-forward, stats.
//!
//! It knows nothing of how pods are run: it asks [`PodLookup`] which container is meant, reads logs from the
//! files that the runtime writes, and passes bytes between the client and the runtime's own streaming
//! server. Only the agent's binary may depend on this crate.

mod access;
mod certificate;
mod identity;
mod logs;
mod lookup;
mod node_logs;
mod query;
mod respond;
mod routes;
mod server;
mod stats;
mod tunnel;

pub use access::Access;
pub use identity::Identity;
pub use lookup::{
    ContainerInstance, ContainerInstances, LookupError, PodLookup, Sandbox, VolumeRoom, VolumeUsage,
};
pub use server::{Server, ServerError, StreamingConfig};
