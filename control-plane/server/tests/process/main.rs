//! What takes the whole program: keys that rotate, clients that do not read, stores of earlier builds, snapshots,
//! starts on a full disk.

mod full_disk;
mod rotation;
mod server;
mod snapshot;
mod stalled;
mod upgrade;
