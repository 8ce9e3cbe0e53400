//! What the node's network holds: pods' interfaces and addresses, and (in `services`) the desired state
//! of the datapath.
//!
//! This crate decides, `windlass-datapath` does: nothing here touches BPF. Interfaces are made by netlink
//! and addresses leased from the Node's pod CIDRs, on behalf of the CNI plugin, which is a thin client of
//! the agent's socket. Only the agent's binary may depend on this crate.

pub mod announce;
pub mod attachments;
pub mod cni_conf;
pub mod cni_server;
pub mod datapath_interfaces;
mod histogram;
pub mod interface;
pub mod ipam;
mod node_addresses;
mod node_reports;
pub mod policy;
pub mod routes;
pub mod services;
mod settings;
pub mod socket;
mod source;
pub mod uplink;

pub use announce::Announcer;
pub use attachments::{
    Adoption, AttachError, Attachments, AttachmentsConfig, PodInterface, PodInterfaces, RunningPod,
};
pub use cni_server::CniService;
pub use datapath_interfaces::{DatapathInterfaces, GuardedInterfaces};
pub use ipam::{AttachmentKey, PodName};
pub use node_addresses::NodeAddresses;
pub use routes::{Peer, Router, RouterConfig, Routing};
pub use settings::Settings;
pub use uplink::UplinkSettings;
