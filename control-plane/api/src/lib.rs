//! The Kubernetes kinds: one file per kind (descriptor, defaults, validation, update rules, conversion, table
//! columns), in folders named after the API groups. Pure; depends on `windlass-machinery` only.

pub mod resource;
