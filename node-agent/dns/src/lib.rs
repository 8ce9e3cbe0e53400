//! Cluster DNS, answered on every node from the agent's own watch: no CoreDNS pods and no extra hop, since
//! the datapath translates the kube-dns Service address at `connect` or `sendmsg`.
//!
//! [`zone`] is pure: Services and EndpointSlices in, records out (the "Kubernetes DNS-Based Service
//! Discovery" specification, version 1.1.0). [`server`] answers queries, [`upstream`] those that are not
//! of the cluster; [`feed`] keeps the zone true; [`publish`] puts a server behind the kube-dns Service. Knows the cluster only as a client of the API.

mod feed;
mod lessons;
mod metrics;
mod publish;
mod server;
mod sockets;
mod udp;
mod upstream;
pub mod zone;

pub use lessons::{Lesson, Lessons, Teach, Wanted};
pub use metrics::Metrics;
pub use publish::{MANAGED_BY, METRICS_PORT, OwnPod, Publication, Serving};
pub use server::{DnsError, DnsOptions, run};
pub use sockets::Sockets;
