//! Cluster DNS, answered on every node from the agent's own watch: no CoreDNS pods and no extra hop, since
//! the datapath translates the kube-dns Service address at `connect` or `sendmsg`.
//!
//! [`zone`] is pure: Services and EndpointSlices in, records out (the "Kubernetes DNS-Based Service
//! Discovery" specification, version 1.1.0). [`server`] answers queries and forwards what is not of the
//! cluster; [`feed`] keeps the zone true; [`publish`] puts a server behind the kube-dns Service. Knows the cluster only as a client of the API.

mod feed;
mod publish;
mod server;
mod sockets;
pub mod zone;

pub use publish::{MANAGED_BY, Publication};
pub use server::{DnsError, DnsOptions, run};
pub use sockets::Sockets;
