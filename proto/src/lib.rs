//! The gRPC contracts, as generated Rust.
//!
//! `cri` is what a container runtime serves (wire-compatible with the public
//! CRI v1), `csi`, `dra` and `pluginregistration` what drivers of volumes and devices serve, `agent`
//! what the node agent serves on its own socket. The `.proto` files beside this
//! crate are the truth; nothing here is written by hand, and this crate depends on
//! no other of ours.

#[allow(
    clippy::all,
    rustdoc::all,
    missing_docs,
    unreachable_pub,
    reason = "generated code"
)]
mod contracts {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
}

/// The container runtime interface.
pub mod cri {
    pub use crate::contracts::runtime::v1;
}

/// The container storage interface: what drivers of volumes serve.
pub mod csi {
    pub use crate::contracts::csi::v1;
}

/// What drivers of devices serve.
pub mod dra {
    pub use crate::contracts::k8s::io::kubelet::pkg::apis::dra::v1::*;
}

/// How plugins make themselves known to the node agent.
pub use crate::contracts::pluginregistration;

/// containerd's own event stream, for releases without CRI events.
pub mod containerd {
    pub use crate::contracts::containerd::services::events;
}

/// What gRPC probes ask.
pub mod health {
    pub use crate::contracts::grpc::health::v1;
}

/// The node agent's socket: CNI, inspection, flows.
pub mod agent {
    pub use crate::contracts::windlass::agent::v1;
}
