//! The API over the embedded store (or etcd, see `store`), driven by HTTP requests without sockets.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "clippy does not know helpers of tests as tests"
)]

mod accounts;
mod aggregation;
mod bad_input;
mod consistency;
mod definitions;
mod deletions;
mod discovery;
mod encryption;
mod fairness;
mod grants;
mod hooks;
mod lists;
mod mutations;
mod objects;
mod oidc;
mod protobuf;
mod replays;
mod rules;
mod server;
mod services;
mod store;
mod subresources;
mod tokens;
mod tunnels;
mod versions;
mod views;
mod watches;
