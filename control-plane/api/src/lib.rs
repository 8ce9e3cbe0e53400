//! The Kubernetes kinds: one file per kind (descriptor, defaults, validation, update rules, conversion, table
//! columns), in folders named after the API groups. Pure; depends on `windlass-machinery` only.
//!
//! [`registry::builtin`] lists them all. A plain kind is one line in its group's `mod.rs`; a kind with rules of
//! its own has a file with a [`resource::Strategy`].

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod builder;
pub mod certificates;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod events;
pub mod flowcontrol;
pub mod metrics;
pub mod networking;
pub mod node;
pub mod policy;
pub mod quota;
pub mod rbac;
pub mod registry;
pub mod resource;
pub mod resource_k8s_io;
pub mod scheduling;
pub mod storage;
pub mod table;
pub mod tree;
pub mod validate;
