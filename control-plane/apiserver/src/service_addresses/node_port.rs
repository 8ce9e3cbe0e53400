//! Node ports among servers that share a store: a record for each, written before the Service that has it.
//!
//! The store creates a key only once, so of two servers that choose the same port at the same moment one is told. A server that
//! dies in between leaves a record behind; whoever wants the port looks whether its holder has it, so nothing has to go
//! through the records. A server that is alone with its store remembers what it gave out and needs none.

use std::sync::Arc;

use serde_json::{Value, json};
use windlass_machinery::status::ApiError;
use windlass_store::{Expect, KeyValue, StoreError};

use super::Item;
use crate::context::now;
use crate::server::ApiServer;
use crate::storage::store_error;

/// Seconds after which a port without its Service is no write that is still on its way.
const GRACE: i64 = 60;

fn key(port: u16) -> String {
    format!("/registry/ranges/servicenodeports/{port}")
}

fn record(kv: &KeyValue) -> Value {
    kv.value
        .read(|bytes| serde_json::from_slice(bytes).unwrap_or_default())
}

impl ApiServer {
    /// Whether the port is the owner's, from now on or from before.
    pub(super) async fn claim_port(
        self: &Arc<Self>,
        port: u16,
        owner: &str,
    ) -> Result<bool, ApiError> {
        let store = self.caches.store();
        if !store.is_shared() {
            return Ok(true);
        }
        let key = key(port);
        let value = json!({"holder": owner, "since": now()}).to_string();
        let mut expect = Expect::Absent;
        loop {
            let put = store.put(&key, value.clone().into(), expect, None);
            let present = match put.await {
                Ok(_) => return Ok(true),
                Err(StoreError::Conflict { current: Some(kv) }) => kv,
                Err(StoreError::Conflict { current: None }) => {
                    expect = Expect::Absent;
                    continue;
                }
                Err(error) => return Err(store_error(error)),
            };
            let record = record(&present);
            let holder = record["holder"].as_str().unwrap_or_default();
            if holder == owner {
                return Ok(true);
            }
            let age = now() - record["since"].as_i64().unwrap_or(0);
            if age <= GRACE || self.holds(holder, Item::Port(port)).await? {
                return Ok(false);
            }
            tracing::warn!(
                port,
                holder,
                "taking a node port over whose Service does not have it"
            );
            expect = Expect::ModRevision(present.mod_revision);
        }
    }

    /// The owner has the port no more.
    pub(super) async fn free_port(&self, port: u16, owner: &str) {
        let store = self.caches.store();
        if !store.is_shared() {
            return;
        }
        let key = key(port);
        let freed = async {
            let Some(present) = store.get(&key, None).await? else {
                return Ok(());
            };
            if record(&present)["holder"] != owner {
                return Ok(());
            }
            let expect = Expect::ModRevision(present.mod_revision);
            match store.delete(&key, expect).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        if let Err(error) = freed.await {
            // Whoever wants it will see that it is not held.
            tracing::warn!(%error, port, owner, "a node port's record was left behind");
        }
    }
}
