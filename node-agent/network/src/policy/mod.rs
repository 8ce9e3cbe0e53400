//! NetworkPolicy: from Kubernetes objects to what the datapath's policy tables hold.
//!
//! ```text
//! Pod, Namespace, Node, NetworkPolicy, ClusterNetworkPolicy --spec, cluster--> Cluster
//!     --compile--> Desired --tables--> [PolicyWrite] --> windlass-datapath
//! ```
//!
//! Only pods of this node are subject to policies here, and everybody is a peer. Pods with the same
//! rules share a class, addresses that match the same selectors and blocks an identity, and the
//! datapath holds a verdict for the pairs: a packet costs the same at any number of policies.
//!
//! Everything up to the list of writes is pure. [`PolicyController`] feeds it from its watches and
//! from the interfaces of local pods, and applies the writes.

pub mod class;
pub mod cluster;
mod cluster_spec;
pub mod compile;
mod controller;

mod identities;
pub mod labels;
mod networks;
mod observed;

pub mod spec;
pub mod tables;

#[cfg(test)]
mod model;

pub use compile::Decider;
pub use controller::{PolicyController, PolicyControllerConfig, PolicyGate};
