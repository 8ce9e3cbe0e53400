//! Pods through a real containerd, from the object to the process and back to the status.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod changes;
mod csi;
mod debugging;
mod devices;
mod lifetime;
mod manifests;
mod node;
mod outages;
mod restarts;
mod sidecars;
mod storage;
mod support;
