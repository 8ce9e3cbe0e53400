//! The API over the embedded store, driven by HTTP requests without sockets.

mod bad_input;
mod lists;
mod objects;
mod server;
mod services;
mod subresources;
mod views;
mod watches;
