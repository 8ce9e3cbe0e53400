//! Services: from Kubernetes objects to what the datapath's tables hold.
//!
//! ```text
//! Service, EndpointSlice --parse--> ServiceSpec, SliceSpec --compile--> DesiredPort
//!                                      --tables--> [ServiceWrite] --> windlass-datapath
//! ```
//!
//! Everything up to the list of writes is pure. [`ServiceController`] feeds it from two
//! watches and applies the writes. The true copy of the state is in the kernel: a
//! restarted agent reads it back ([`tables::Tables::recover`]) and goes on with the same
//! ids and slots, so that established connections and affinity notice nothing.

mod cleaning;
pub mod compile;
mod controller;
mod events;
mod health;
mod host_ports;
mod http;
#[cfg(test)]
mod kernel_model;
mod maglev;
mod maglev_tables;
mod metrics;
mod networks;
mod news;
mod observed;
mod parse;
mod references;
#[cfg(test)]
mod semantics_tests;
mod sync_loop;
pub mod tables;
mod topology;
mod watches;

use crate::source;

pub use controller::{ServiceController, ServiceControllerConfig};
pub use host_ports::{HostPort, HostPorts, of_interfaces};
pub use parse::{EndpointSpec, NodeHint, PortSpec, ServiceName, ServiceSpec, SliceSpec, ZoneHints};
