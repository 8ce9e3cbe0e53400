//! The server over real TLS, alone and with a real container runtime.

mod cluster;

mod runtime;
mod server;
