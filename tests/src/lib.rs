//! What the tests of the whole system share: the cluster that runs, kubectl as a user calls it, and a client
//! that counts what it gets, from the node or from the namespace that plays the outside.
//!
//! Nothing here depends on the product's crates, but for the gRPC contracts: the tests know it only through its
//! programs, its files and its packets.

pub mod cluster;
pub mod csi_driver;
pub mod ethtool;
pub mod eventually;
pub mod foreign_client;
pub mod http;
pub mod kubectl;
pub mod namespace;
pub mod netns;
pub mod node_state;
pub mod plugin;
pub mod policy_model;
pub mod processor;
pub mod proxy;
pub mod stranger;
pub mod traffic;
pub mod unnamed_netns;
pub mod web;
