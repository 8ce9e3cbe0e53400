//! When tokens that lie in Secrets were used last (KEP-2799): without that nobody knows which of them can go.
//!
//! A Secret's label tells the day; a ConfigMap tells since when days are noted, since a token without a day may also have
//! been used before that. A controller marks tokens invalid that were long unused, and later removes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use windlass_machinery::selector::FieldSelector;
use windlass_machinery::status::ApiError;
use windlass_machinery::time;

use crate::cacher::{Filter, From};
use crate::context::now;
use crate::follower;
use crate::server::ApiServer;

pub(super) const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
pub(super) const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const NAMESPACE: &str = "kube-system";
const SINCE: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Secrets whose token was used on a day that they do not tell of yet.
#[derive(Default)]
pub(super) struct Used {
    secrets: Mutex<BTreeSet<(String, String)>>,
    more: Notify,
}

impl Used {
    pub(super) fn note(&self, namespace: &str, secret: &str) {
        let secret = (namespace.to_owned(), secret.to_owned());
        if self.secrets.lock().insert(secret) {
            self.more.notify_one();
        }
    }
}

/// The day of a moment, as the labels have it.
pub(super) fn day(seconds: i64) -> String {
    time::format(seconds).chars().take(10).collect()
}

/// Keeps the ConfigMap and the labels until the server shuts down.
pub(crate) fn start(server: &Arc<ApiServer>) {
    let complain = |error: &ApiError| tracing::debug!(%error, "use of token Secrets not noted");
    follower::start(server, |server| Box::pin(follow(server)), complain);
}

async fn follow(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let (Some(maps), Some(secrets)) = (
        server.cacher("", "configmaps"),
        server.cacher("", "secrets"),
    ) else {
        return Ok(());
    };
    let by_name = FieldSelector::parse(&format!("metadata.name={SINCE}"))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let filter = Filter::new(&maps.resource, Some(NAMESPACE), None, Some(&by_name))?;
    let present = From::Now {
        with_initial: false,
    };
    let of_map = server.caches.watch(&maps, filter, present)?;
    let used = &server.authenticator.service_account_tokens().used;
    loop {
        let map = maps.get(NAMESPACE, SINCE);
        let map = map.map(|entry| entry.decode()).transpose()?;
        keep_since(server, map).await?;
        let noted = std::mem::take(&mut *used.secrets.lock());
        for (namespace, name) in noted {
            let Some(entry) = secrets.get(&namespace, &name) else {
                continue;
            };
            let mut secret = entry.decode()?;
            secret["metadata"]["labels"][LAST_USED] = day(now()).into();
            let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
            server.replace_seen(&path, &secret).await?;
        }
        tokio::select! {
            events = of_map.next() => drop(events?),
            () = used.more.notified() => {}
        }
    }
}

/// Makes the ConfigMap, or mends one that tells of no day or of one that has not come.
async fn keep_since(server: &Arc<ApiServer>, map: Option<Value>) -> Result<(), ApiError> {
    let today = day(now());
    let maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let Some(mut map) = map else {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": SINCE, "namespace": NAMESPACE},
            "data": {"since": today},
        });
        return server.create_missing(&maps, &map).await.map(drop);
    };
    let since = map["data"]["since"].as_str().unwrap_or_default();
    let is_day = time::parse(&format!("{since}T00:00:00Z")).is_some();
    if is_day && *since <= *today {
        return Ok(());
    }
    map["data"] = json!({"since": today});
    server.replace_seen(&format!("{maps}/{SINCE}"), &map).await
}
