//! Forgets history that is older than an interval, on a store that several API servers share.
//!
//! Each round whoever first writes a certain key compacts, to the revision that it noted a round before; the
//! others see that the key was written and only note the present revision. So history is kept for one to two
//! intervals however many servers there are. The embedded store needs none of this: it does so by itself.

use std::sync::Arc;
use std::time::Duration;

use crate::{Expect, Result, Revision, Store, StoreError};

/// As upstream's API server has it.
pub const INTERVAL: Duration = Duration::from_secs(300);

const KEY: &str = "/registry/compact_rev_key";

/// What a server knows from its last round.
#[derive(Clone, Copy, Debug)]
struct Noted {
    /// The store's revision then: what may be forgotten an interval later.
    revision: Revision,
    /// The key's last write then; `None` where it did not exist.
    key: Option<Revision>,
}

/// Compacts until it is dropped.
pub async fn run(store: Arc<dyn Store>, interval: Duration) {
    let mut noted = None;
    loop {
        match round(&*store, noted).await {
            Ok(next) => noted = Some(next),
            Err(error) => tracing::warn!(%error, "the store's history cannot be compacted now"),
        }
        tokio::time::sleep(interval).await;
    }
}

async fn round(store: &dyn Store, noted: Option<Noted>) -> Result<Noted> {
    let revision = store.current_revision().await?;
    let key = store.get(KEY, None).await?.map(|kv| kv.mod_revision);
    let Some(before) = noted.filter(|before| before.key == key) else {
        return Ok(Noted { revision, key });
    };
    let expect = key.map_or(Expect::Absent, Expect::ModRevision);
    let value = before.revision.to_string().into();
    match store.put(KEY, value, expect, None).await {
        Ok(key) => {
            store.compact(before.revision).await?;
            tracing::debug!(revision = %before.revision, "history compacted");
            let key = Some(key);
            Ok(Noted { revision, key })
        }
        // Another server was first.
        Err(StoreError::Conflict { current }) => Ok(Noted {
            revision,
            key: current.map(|kv| kv.mod_revision),
        }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedded, EmbeddedOptions};

    async fn compacted(store: &dyn Store, at: Revision) -> bool {
        matches!(
            store.get("/k", Some(at)).await,
            Err(StoreError::Compacted { .. })
        )
    }

    #[tokio::test]
    async fn one_of_two_servers_compacts_what_is_an_interval_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Embedded::open(&path, EmbeddedOptions::default())
            .await
            .unwrap();
        let put = |value: &'static str| store.put("/k", value.into(), Expect::Any, None);
        let old = put("1").await.unwrap();
        put("2").await.unwrap();
        let [first, second] = [
            round(&store, None).await.unwrap(),
            round(&store, None).await.unwrap(),
        ];
        assert!(!compacted(&store, old).await);
        let young = put("3").await.unwrap();
        let first = round(&store, Some(first)).await.unwrap();
        assert!(compacted(&store, old).await);
        assert!(!compacted(&store, young).await);
        // The other one comes a moment later and leaves it at that.
        let second = round(&store, Some(second)).await.unwrap();
        assert!(!compacted(&store, young).await);
        // A round later it may be the first.
        put("4").await.unwrap();
        round(&store, Some(second)).await.unwrap();
        let first = round(&store, Some(first)).await.unwrap();
        assert!(compacted(&store, young).await);
        assert!(first.key.is_some());
    }
}
