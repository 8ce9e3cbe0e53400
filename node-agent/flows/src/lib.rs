//! The flow log: reads what the eBPF programs tell of single flows, names both ends, and serves
//! them on the agent's socket.
//!
//! Nobody listens, nothing is told: the kernel's side is switched on with the first listener
//! and off after the last, and only meanwhile does the agent watch the pods of the whole cluster
//! for their names. Depends on the datapath for the ring and on the contract; only the agent's
//! binary may depend on this crate.

mod describe;
mod log;
mod names;
mod selector;
mod server;

pub use log::{FlowLog, FlowLogConfig, PolicyName};
pub use names::Names;
pub use selector::{Selector, SelectorError};
pub use server::FlowService;
