//! Controllers and scheduler together over a real API server, in this process: objects go in by the API, what
//! they become is read back by the API. Nodes are hollow: they report and obey, and run nothing.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "clippy does not know helpers of tests as tests"
)]

mod autoscaling;
mod certificates;
mod claims;
mod deletion;
mod identities;
mod leadership;
mod nodes;
mod scheduling;
mod services;

mod volumes;
mod workloads;
mod world;
