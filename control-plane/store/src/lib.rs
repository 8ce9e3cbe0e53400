//! The revisioned store under the API server: one trait with etcd's semantics, and its implementations.
//!
//! The trait is what the API server needs and nothing more: a global revision that grows by one with every
//! write, compare-and-put on the revision at which a key was last written, range reads at a revision, and a
//! watch that delivers every event after a revision exactly once and in order. Keys are paths
//! (`/registry/pods/default/web-0`), values are opaque bytes.
//!
//! [`Embedded`] keeps everything in one file and needs no other process; it is the default. `Etcd` (a
//! feature of that name, on by default) is for several API servers that share one state. Nothing outside
//! the API server may depend on this crate: controllers, scheduler and node agent see cluster state only
//! through the API.

pub mod compactor;
mod embedded;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod prefixed;
mod store;
mod types;

pub use embedded::{Embedded, EmbeddedOptions};
pub use error::{Result, StoreError};
#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdOptions, EtcdTls};
pub use prefixed::{Prefixed, ROOT};
pub use store::{RangeRequest, Store, WatchStream};
pub use types::{Event, Expect, KeyValue, Range, Revision, WatchBatch};
