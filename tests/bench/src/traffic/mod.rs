//! The load: a client and a server that speak as little HTTP/1.1 as web servers understand.
//!
//! Blocking sockets and no runtime, so that what is measured is the kernel's work and not a scheduler's.

pub mod client;
pub mod http;
pub mod server;
