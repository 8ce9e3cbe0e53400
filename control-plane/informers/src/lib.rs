//! What the client-side parts of the control plane share: one set of informers, the event recorder,
//! leader election, and the rules of placement that several of them must read alike.
//!
//! One process has ONE [`Informers`]. Controllers and scheduler look at the same kinds (pods, nodes,
//! services), and a watch per controller, which is what `kube::runtime::Controller` would start, costs
//! the API server one encoded stream and this process one copy of every object each time. Here a kind is
//! watched and kept once; whoever cares registers a callback that pushes keys into its own work queue, and
//! reads the shared store when it works. The true state is the API server's; a store here is a
//! view that may lag, which is why every write carries a uid or resourceVersion precondition and why
//! [`Informer::has_reached`] lets a writer wait until the view includes its own writes.
//!
//! Knows cluster state only as a client. Must never depend on the API server, the store or a controller.

mod informer;
mod key;
mod kinds;
pub mod leader;
mod metadata;
pub mod placement;
pub mod recorder;
mod shared;
mod store;
pub mod volumes;

pub use informer::{Change, Informer, Position, Subscription};
pub use key::Key;
pub use kinds::Cached;
pub use metadata::{MetadataChange, MetadataFeed};
pub use shared::Informers;
