//! The whole system, in the way a user works: the real kubectl, the real containerd, real packets, against
//! the cluster that `cargo xtask up` has started.
//!
//! Each test has a Namespace of its own. Those that kill something, or take the cluster down, ask for the
//! cluster for themselves (`Cluster::exclusive`). Those that need several nodes are in `nodes`, for which
//! `cargo xtask test e2e` brings up a cluster of three.

mod bad_input;
mod chaos;
mod commands;
mod csi;
mod daemonset;
mod deletion;
mod dns;
mod failing_image;
mod kube_proxy;
mod lifecycle;
mod netpol;
mod nodes;
mod other_clients;
mod policy;
mod policy_host_network;
mod policy_names;
mod policy_unknown;
mod restarts;
mod rollout;
mod services;
mod takeover;
mod usage;
mod volumes;
