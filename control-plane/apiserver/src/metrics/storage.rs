//! How long the store takes, by what is asked of it. The names say etcd, as dashboards know them, whatever the store is.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use windlass_store::{
    Expect, KeyValue, Range, RangeRequest, Result, Revision, Store, StoreError, WatchStream,
};

use super::histogram;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
    r#type: String,
}

type Durations = Family<OperationLabels, Histogram, fn() -> Histogram>;

/// Of the process: the store is opened before there is a server with a registry.
static DURATIONS: LazyLock<Durations> = LazyLock::new(|| Family::new_with_constructor(histogram));
static ERRORS: LazyLock<Family<OperationLabels, Counter>> = LazyLock::new(Family::default);

pub(super) fn register(registry: &mut Registry) {
    registry.register_with_unit(
        "etcd_request_duration",
        "Time that the store takes, by operation and type of object",
        Unit::Seconds,
        DURATIONS.clone(),
    );
    registry.register(
        "etcd_request_errors",
        "Requests that the store failed, by operation and type of object",
        ERRORS.clone(),
    );
}

/// A store whose requests are measured.
pub struct Metered(pub Arc<dyn Store>);

/// The folder that a key lies in: the first part after `/registry`, or two where that is a group.
fn folder(key: &str) -> String {
    let rest = key.strip_prefix("/registry/").unwrap_or(key);
    let mut parts = rest.split('/');
    let first = parts.next().unwrap_or_default();
    match parts.next() {
        Some(second) if first.contains('.') || first == "services" => format!("{first}/{second}"),
        _ => first.to_owned(),
    }
}

async fn measured<T>(
    operation: &'static str,
    key: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let started = Instant::now();
    let outcome = work.await;
    let labels = OperationLabels {
        operation,
        r#type: folder(key),
    };
    // What the caller got wrong is an answer.
    let is_answer = matches!(
        outcome,
        Ok(_)
            | Err(StoreError::Conflict { .. }
                | StoreError::Compacted { .. }
                | StoreError::Future { .. })
    );
    if !is_answer {
        ERRORS.get_or_create(&labels).inc();
    }
    let taken = started.elapsed().as_secs_f64();
    DURATIONS.get_or_create(&labels).observe(taken);
    outcome
}

#[async_trait]
impl Store for Metered {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>> {
        measured("get", key, self.0.get(key, at)).await
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<Range> {
        measured("list", request.prefix, self.0.range(request)).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision> {
        let operation = match expect {
            Expect::Absent => "create",
            _ => "update",
        };
        measured(operation, key, self.0.put(key, value, expect, ttl)).await
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        measured("delete", key, self.0.delete(key, expect)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        self.0.watch(prefix, from).await
    }

    async fn current_revision(&self) -> Result<Revision> {
        measured("getCurrentResourceVersion", "", self.0.current_revision()).await
    }

    async fn oldest_revision(&self) -> Result<Revision> {
        self.0.oldest_revision().await
    }

    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    fn is_stale(&self, key: &str, at: Revision) -> bool {
        self.0.is_stale(key, at)
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        measured("compact", "", self.0.compact(at)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_counts_for_its_folder() {
        for (key, wanted) in [
            ("/registry/pods/default/a", "pods"),
            ("/registry/minions/a", "minions"),
            ("/registry/services/specs/default/a", "services/specs"),
            (
                "/registry/example.com/things/default/a",
                "example.com/things",
            ),
            ("/registry/", ""),
        ] {
            assert_eq!(folder(key), wanted);
        }
    }
}
