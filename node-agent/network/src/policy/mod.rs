//! NetworkPolicy: from Kubernetes objects to what the datapath's policy tables hold.
//!
//! ```text
//! Pod, Namespace, Node, NetworkPolicy, ClusterNetworkPolicy --spec, cluster--> Cluster
//!     --classes, peers, verdicts--> Edits --tables--> [PolicyWrite] --> windlass-datapath
//! ```
//!
//! Only pods of this node are subject to policies here, and everybody is a peer. Pods with the same
//! rules share a class, addresses that match the same selectors and blocks an identity, and the
//! datapath holds a verdict for the pairs: a packet costs the same at any number of policies.
//!
//! Everything up to the list of writes is pure. [`PolicyController`] feeds it from its watches and
//! from the interfaces of local pods, and applies the writes.

mod addresses;
mod admin_spec;
pub mod changes;
mod class;
mod classes;
pub mod closing;
pub mod cluster;
mod cluster_spec;
mod controller;
pub mod edits;
mod identities;
mod index;
mod kinds;
pub mod labels;
mod metrics;
mod name_service;
pub mod names;
mod networks;
mod observed;
mod peers;
mod profiles;
pub mod spec;
pub mod tables;
mod trouble;
mod verdicts;

#[cfg(test)]
mod model;

pub use classes::Decider;
pub use controller::{PolicyController, PolicyControllerConfig, PolicyGate};
pub use name_service::NameService;
