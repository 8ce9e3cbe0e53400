//! Tokens in Secrets that nobody has used for a year (KEP-2800): first marked as invalid, which whoever needs them after all can
//! take back, and removed when nobody has for another year.
//!
//! Only those that were made for an account by the cluster itself, which are the ones that the account refers to, and that no
//! pod mounts. The API server notes the day of each use.

use std::{sync::Arc, time::Duration};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::{ResourceExt, api::ListParams};
use tracing::info;
use windlass_informers::{Informer, Key};

use crate::runtime::{
    Context, Controller, Outcome, Queue, Result, ResultExt, delete, patch, run_workers,
};

const EVERY: Duration = Duration::from_secs(24 * 3600);
/// As upstream without `--legacy-service-account-token-clean-up-period`.
const UNUSED_DAYS: i64 = 365;
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

struct Cleaner {
    context: Context,
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
}

/// What becomes of a Secret.
#[derive(Debug, PartialEq)]
enum Fate {
    Stays,
    IsMarked,
    Goes,
}

pub(crate) async fn start(context: Context) {
    let (secrets, accounts) = context.synced::<(Secret, ServiceAccount)>().await;
    let queue = Queue::new();
    queue.add(Key::cluster("all".to_owned()));
    let controller = Arc::new(Cleaner {
        context: context.clone(),
        secrets,
        accounts,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn day(text: &str) -> Option<Date> {
    text.parse().ok()
}

/// `account` is the one that the Secret names. What was before `limit` is too long ago.
fn fate(secret: &Secret, account: Option<&ServiceAccount>, limit: Date) -> Fate {
    let meta = &secret.metadata;
    let is_token = secret.type_.as_deref() == Some(TYPE) && meta.deletion_timestamp.is_none();
    let created = meta.creation_timestamp.as_ref();
    let is_old = created.is_some_and(|at| at.0.to_zoned(TimeZone::UTC).date() < limit);
    let label = |name| secret.labels().get(name).map(String::as_str);
    // A day that cannot be read may have been yesterday.
    let is_unused = label(LAST_USED).is_none_or(|used| day(used).is_some_and(|used| used < limit));
    let uid = secret.annotations().get(ACCOUNT_UID);
    let is_own = account.is_some_and(|account| {
        let mut listed = account.secrets.iter().flatten();
        uid.is_none_or(|uid| uid.is_empty() || account.metadata.uid.as_ref() == Some(uid))
            && listed.any(|reference| reference.name == meta.name)
    });
    if !(is_token && is_old && is_unused && is_own) {
        return Fate::Stays;
    }
    match label(INVALID_SINCE).and_then(day) {
        None => Fate::IsMarked,
        Some(since) if since < limit => Fate::Goes,
        Some(_) => Fate::Stays,
    }
}

/// Whether a pod reads from a Secret.
fn reads(pod: &Pod, secret: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut volumes = spec.volumes.iter().flatten();
    let mounts = volumes.any(|volume| {
        let source = volume.secret.as_ref();
        source.and_then(|source| source.secret_name.as_deref()) == Some(secret)
    });
    let init = spec.init_containers.iter().flatten();
    let mut containers = spec.containers.iter().chain(init);
    mounts
        || containers.any(|container| {
            let mut single = container.env.iter().flatten().filter_map(|env| {
                let source = env.value_from.as_ref()?.secret_key_ref.as_ref()?;
                Some(source.name.as_str())
            });
            let mut all = container.env_from.iter().flatten();
            single.any(|name| name == secret)
                || all.any(|from| from.secret_ref.as_ref().is_some_and(|s| s.name == secret))
        })
}

impl Controller for Cleaner {
    type Key = Key;
    const NAME: &'static str = "legacy-service-account-token-cleaner";

    async fn reconcile(&self, _: &Key) -> Result<Outcome> {
        let api = self.context.api::<ConfigMap>("kube-system");
        let tracking = api.get_opt(TRACKING).await;
        let tracking = tracking.doing(|| format!("get config map {TRACKING}"))?;
        let since = tracking.and_then(|map| day(map.data?.get("since")?));
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let limit = today.saturating_sub(UNUSED_DAYS.days());
        // On its first day not every use was noted.
        if since.is_none_or(|since| since >= limit) {
            return Ok(Outcome::Again(EVERY));
        }
        for secret in self.secrets.list() {
            let namespace = secret.namespace().unwrap_or_default();
            let account = secret.annotations().get(ACCOUNT);
            let account = account.and_then(|name| self.accounts.get(&namespace, name));
            let fate = fate(&secret, account.as_deref(), limit);
            if fate == Fate::Stays || self.is_read(&secret).await? {
                continue;
            }
            let name = secret.name_any();
            let api = self.context.api::<Secret>(&namespace);
            if fate == Fate::Goes {
                info!(namespace, name, "unused token removed");
                delete(&api, secret.as_ref()).await?;
            } else {
                info!(namespace, name, "unused token marked as invalid");
                let mut marked = secret.as_ref().clone();
                let labels = marked.labels_mut();
                labels.insert(INVALID_SINCE.to_owned(), today.to_string());
                patch(&api, secret.as_ref(), &marked).await?;
            }
        }
        Ok(Outcome::Again(EVERY))
    }
}

impl Cleaner {
    /// Asked of the API server: the shared view of pods does not keep what only their nodes read.
    async fn is_read(&self, secret: &Secret) -> Result<bool> {
        let namespace = secret.namespace().unwrap_or_default();
        let pods = self.context.api::<Pod>(&namespace);
        let pods = pods.list(&ListParams::default()).await;
        let pods = pods.doing(|| format!("list pods in {namespace}"))?;
        Ok(pods.iter().any(|pod| reads(pod, &secret.name_any())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn secret(labels: Value, created: &str) -> Secret {
        serde_json::from_value(
            json!({"type": TYPE, "metadata": {"name": "t", "namespace": "ns",
            "creationTimestamp": created, "labels": labels,
            "annotations": {ACCOUNT: "a", ACCOUNT_UID: "u"}}}),
        )
        .unwrap()
    }

    fn account(uid: &str, secrets: &[&str]) -> ServiceAccount {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        serde_json::from_value(json!({"metadata": {"name": "a", "uid": uid}, "secrets": secrets}))
            .unwrap()
    }

    #[test]
    fn a_token_is_marked_and_then_removed_when_it_is_the_clusters_own_and_unused() {
        const OLD: &str = "2020-01-01T00:00:00Z";
        let limit = day("2025-06-01").unwrap();
        let own = account("u", &["t"]);
        let of = |labels, created, account: &ServiceAccount| {
            fate(&secret(labels, created), Some(account), limit)
        };
        assert_eq!(of(json!({}), OLD, &own), Fate::IsMarked);
        assert_eq!(
            of(json!({LAST_USED: "2025-05-31"}), OLD, &own),
            Fate::IsMarked
        );
        for used in ["2025-06-01", "yesterday"] {
            assert_eq!(of(json!({LAST_USED: used}), OLD, &own), Fate::Stays);
        }
        assert_eq!(of(json!({}), "2025-06-01T00:00:00Z", &own), Fate::Stays);
        for other in [account("u", &["other"]), account("v", &["t"])] {
            assert_eq!(of(json!({}), OLD, &other), Fate::Stays);
        }
        assert_eq!(fate(&secret(json!({}), OLD), None, limit), Fate::Stays);

        let marked = |since: &str| of(json!({INVALID_SINCE: since}), OLD, &own);
        assert_eq!(marked("2025-06-01"), Fate::Stays);
        assert_eq!(marked("2025-05-31"), Fate::Goes);
        assert_eq!(marked("soon"), Fate::IsMarked);
    }

    #[test]
    fn pods_read_by_volume_and_by_environment() {
        let pod = |spec: Value| serde_json::from_value::<Pod>(json!({"spec": spec})).unwrap();
        let by = |volumes: Value, container: Value| {
            reads(
                &pod(json!({"volumes": volumes, "containers": [container]})),
                "t",
            )
        };
        assert!(!by(json!([]), json!({"name": "c"})));
        assert!(by(
            json!([{"name": "v", "secret": {"secretName": "t"}}]),
            json!({"name": "c"})
        ));
        let single =
            json!([{"name": "E", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k"}}}]);
        assert!(by(json!([]), json!({"name": "c", "env": single})));
        let all = json!([{"secretRef": {"name": "t"}}]);
        assert!(by(json!([]), json!({"name": "c", "envFrom": all})));
    }
}
