//! Pods' volumes: one file per source, each of which turns a volume of a pod's
//! spec into a path on this node.
//!
//! Everything is idempotent: setting up a volume that is up brings its content up
//! to date, which is also how changed ConfigMaps, Secrets and tokens reach running
//! pods. What comes from the cluster is asked of [`Objects`], so this crate needs no
//! client. It must never depend on `windlass-pods`.

mod claim;
mod config_map;
pub mod csi;
pub mod downward;
mod downward_api;
mod empty_dir;
mod error;
mod host_path;
mod mounts;
mod objects;
mod ownership;
mod payload;
mod projected;
mod secret;
mod service_account_token;
mod sub_path;
mod usage;
mod volume;

pub use claim::claim_name;
pub use csi::Csi;
pub use downward::NodeFacts;
pub use error::Error;
pub use mounts::{share, tear_down};
pub use objects::{Objects, Token, TokenSpec};
pub use sub_path::{prepare as prepare_sub_path, read as read_beneath};
pub use usage::{Room, Usage, usage};
pub use volume::{Context, Mounted, set_up, take_down};

/// What most functions here give.
pub type Result<T, E = Error> = std::result::Result<T, E>;
