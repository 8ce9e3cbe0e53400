//! The small machine under every controller: a work queue keyed by object, workers, retries with
//! back-off, freshness of the shared view, and writes with preconditions.

mod claim;
mod context;
mod error;
mod freshness;
mod making;
mod owned;
mod queue;
mod worker;
mod write;

pub(crate) use claim::{claim, controlled_by, controller_ref};
pub(crate) use context::Context;
pub(crate) use error::{Error, Result, ResultExt};
pub(crate) use freshness::Freshness;
pub(crate) use making::{Maker, slow_start};
pub(crate) use owned::{Owner, claim_pods, follow_owned, usable};
pub(crate) use queue::Queue;
pub(crate) use worker::{Controller, Outcome, run_workers};
pub(crate) use write::{delete, delete_with, patch, patch_status, version_of};
