//! Cluster DNS, answered on every node from the agent's own watch: no CoreDNS pods and no extra hop, since
//! the datapath translates the kube-dns Service address at `connect` or `sendmsg`.
//!
//! [`zone`] is pure: Services and EndpointSlices in, records out (the "Kubernetes DNS-Based Service
//! Discovery" specification, version 1.1.0). [`server`] answers queries and forwards what is not of the
//! cluster; [`feed`] keeps the zone true. Knows the cluster only as a client of the API.

mod feed;
mod publish;
mod server;
pub mod zone;

pub use server::{DnsError, DnsOptions, run};
