//! The kubelet's role: pods of this node, run through the container runtime.
//!
//! One worker per pod owns its state machine. What it decides is pure: [`plan`] says what
//! to do next and [`status`] what to tell, both from the object, the runtime's state, the
//! worker's memory and the time; `launch` turns specs into the runtime's configurations.
//! Around that: probes, hooks, orderly termination, cgroups, logs, events.
//!
//! Depends on `windlass-cri` and `windlass-volumes`; knows the cluster only as a client of
//! its API, and the datapath only as [`EndpointDrain`]. The streaming server and the agent
//! depend on it, never the other way.

mod admission;
mod allocation;
mod cgroups;
mod config;
mod devices;
mod drain;
mod eviction;
mod hooks;
mod huge_pages;
mod images;
pub mod labels;
mod launch;
mod logs;
mod manager;
pub mod memory;
pub mod model;
mod node;
mod objects;
pub mod plan;
mod plugins;
mod probe;
mod recorder;
pub mod snapshot;
mod static_pods;
pub mod status;
mod stop;
mod terminate;
mod worker;

pub use cgroups::Cgroups;
pub use config::Config;
pub use drain::{EndpointDrain, NoDrain};
pub use eviction::{Shortage, Thresholds, shortage};
pub use huge_pages::HugePages;
pub use manager::{Parts, PodView, Pods, VolumeUsage};
pub use recorder::{Recorder, Severity};
pub use windlass_patience::Patience;
pub use windlass_volumes::Room;
