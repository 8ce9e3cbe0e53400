//! Tokens in Secrets that nobody has used for a year (KEP-2800): first marked as invalid, which whoever needs them after all can
//! take back, and removed when nobody has for another year.
//!
//! Only those that were made for an account by the cluster itself, which are the ones that the account refers to, and that no
//! pod mounts. The API server notes the day of each use.

use std::collections::BTreeSet;
use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::ResourceExt;
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
    pods: Arc<Informer<Pod>>,
}

/// What becomes of a Secret.
#[derive(Debug, PartialEq)]
enum Fate {
    Stays,
    IsMarked,
    Goes,
}

pub(crate) fn start(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(run(context))
}

async fn run(context: Context) {
    let secrets = context.informer::<Secret>();
    let accounts = context.informer::<ServiceAccount>();
    let pods = context.informer::<Pod>();
    secrets.synced().await;
    accounts.synced().await;
    pods.synced().await;
    let queue = Queue::new();
    queue.add(Key::cluster("all".to_owned()));
    let controller = Arc::new(Cleaner {
        context: context.clone(),
        secrets,
        accounts,
        pods,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn day(text: &str) -> Option<Date> {
    text.parse().ok()
}

/// `account` is the one that the Secret names, `mounted` says whether a pod mounts it. Used or marked before `limit` is too
/// long ago.
fn fate(secret: &Secret, account: Option<&ServiceAccount>, mounted: bool, limit: Date) -> Fate {
    let is_token = secret.type_.as_deref() == Some(TYPE) && secret.metadata.deletion_timestamp.is_none();
    let created = secret.metadata.creation_timestamp.as_ref();
    let is_old = created.is_some_and(|at| at.0.to_zoned(TimeZone::UTC).date() < limit);
    let is_unused = secret
        .labels()
        .get(LAST_USED)
        .is_none_or(|used| day(used).is_some_and(|used| used < limit));
    let known = secret.annotations().get(ACCOUNT_UID).filter(|uid| !uid.is_empty());
    let is_own = account.is_some_and(|account| {
        let listed = account.secrets.iter().flatten();
        let mut names = listed.filter_map(|reference| reference.name.as_ref());
        known.is_none_or(|uid| account.metadata.uid.as_ref() == Some(uid))
            && names.any(|name| secret.metadata.name.as_ref() == Some(name))
    });
    if !is_token || !is_old || !is_unused || !is_own || mounted {
        return Fate::Stays;
    }
    match secret.labels().get(INVALID_SINCE).and_then(|since| day(since)) {
        None => Fate::IsMarked,
        Some(since) if since < limit => Fate::Goes,
        Some(_) => Fate::Stays,
    }
}

/// The Secrets that a pod reads from.
fn mounted(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let volumes = volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref());
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let of_env = containers.clone().flat_map(|container| {
        let single = container.env.iter().flatten();
        single.filter_map(|env| env.value_from.as_ref()?.secret_key_ref.as_ref()?.name.as_str().into())
    });
    let from_env = containers.flat_map(|container| {
        let all = container.env_from.iter().flatten();
        all.filter_map(|from| from.secret_ref.as_ref()?.name.as_str().into())
    });
    volumes.chain(of_env).chain(from_env)
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
        for secret in self.secrets.all() {
            let namespace = secret.namespace().unwrap_or_default();
            let name = secret.annotations().get(ACCOUNT);
            let account = name.and_then(|name| self.accounts.get(&namespace, name));
            let mounted = || -> BTreeSet<String> {
                let pods = self.pods.in_namespace(&namespace);
                pods.iter().flat_map(|pod| mounted(pod).map(str::to_owned).collect::<Vec<_>>()).collect()
            };
            let verdict = match fate(&secret, account.as_deref(), false, limit) {
                Fate::Stays => Fate::Stays,
                other if !mounted().contains(&secret.name_any()) => other,
                _ => Fate::Stays,
            };
            let api = self.context.api::<Secret>(&namespace);
            match verdict {
                Fate::Stays => {}
                Fate::IsMarked => {
                    info!(namespace, name = secret.name_any(), "unused token marked as invalid");
                    let mut marked = secret.as_ref().clone();
                    marked.labels_mut().insert(INVALID_SINCE.to_owned(), today.to_string());
                    patch(&api, secret.as_ref(), &marked).await?;
                }
                Fate::Goes => {
                    info!(namespace, name = secret.name_any(), "unused token removed");
                    delete(&api, secret.as_ref()).await?;
                }
            }
        }
        Ok(Outcome::Again(EVERY))
    }
}
