//! What takes the whole program: keys that rotate, clients that do not read, stores of earlier builds, snapshots.

mod rotation;
mod server;
mod snapshot;
mod stalled;
mod upgrade;
