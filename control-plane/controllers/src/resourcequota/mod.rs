//! ResourceQuota status: what a namespace uses of its quotas. Admission, in the API server, refuses what
//! would exceed them and counts up; this controller gives back what is gone and mends drift.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ahash::{AHashMap, AHashSet};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::ResourceExt;
use parking_lot::Mutex;
use windlass_api::quota::{
    Usage, add, counted_kind, covers, covers_claim, is_measured, is_scoped, of_claim, of_pod,
    of_service,
};
use windlass_informers::{Change, Informer, Key, MetadataFeed, Subscription};
use windlass_machinery::quantity::{Format, Quantity};

use crate::{
    pods,
    runtime::{Context, Controller, Outcome, Queue, Result, patch_status, run_workers},
};

/// Upstream's resync: mends what events could not tell.
const RESYNC: Duration = Duration::from_secs(300);
/// How long after an object's appearance its quotas are counted again: admission has charged them for it, and
/// by then those charged a moment later are seen as well.
const SETTLE: Duration = Duration::from_secs(5);

type Kind = (String, String);

/// The uids of one kind's objects by namespace.
type Counts = Arc<Mutex<AHashMap<String, AHashSet<String>>>>;

struct Counted {
    counts: Counts,
    _feed: MetadataFeed,
    _subscription: Subscription,
}

struct Quotas {
    context: Context,
    queue: Arc<Queue<Key>>,
    quotas: Arc<Informer<ResourceQuota>>,
    pods: Arc<Informer<Pod>>,
    services: Arc<Informer<Service>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    /// Kinds that some quota counts, watched from then on.
    counted: Mutex<AHashMap<Kind, Counted>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (quotas, pods, services, claims) = context
        .synced::<(ResourceQuota, Pod, Service, PersistentVolumeClaim)>()
        .await;
    context.resources.known().await;

    let own = Arc::clone(&queue);
    let _own = quotas.on_change(move |change| {
        // Admission charges a quota before the object exists: counting at once would take that back.
        let charged = matches!(change, Change::Updated { old, new } if old.spec == new.spec);
        let quota = change.object();
        if !charged {
            own.add(Key::of(quota.as_ref()));
        } else if limits_differ(quota) {
            own.add_after(Key::of(quota.as_ref()), SETTLE);
        }
    });
    let (of_pods, view) = (Arc::clone(&queue), Arc::clone(&quotas));
    let _of_pods = pods.on_change(move |change| {
        let ended = |pod: &Pod| pods::is_finished(pod);
        let same = matches!(change, Change::Updated { old, new } if ended(old) == ended(new));
        if !same {
            enqueue_namespace(
                &of_pods,
                &view,
                &change.object().namespace().unwrap_or_default(),
                patience(change),
            );
        }
    });
    let (of_services, view) = (Arc::clone(&queue), Arc::clone(&quotas));
    let _of_services = services.on_change(move |change| {
        enqueue_namespace(
            &of_services,
            &view,
            &change.object().namespace().unwrap_or_default(),
            patience(change),
        );
    });
    let (of_claims, view) = (Arc::clone(&queue), Arc::clone(&quotas));
    let _of_claims = claims.on_change(move |change| {
        enqueue_namespace(
            &of_claims,
            &view,
            &change.object().namespace().unwrap_or_default(),
            patience(change),
        );
    });

    let controller = Arc::new(Quotas {
        context: context.clone(),
        queue: Arc::clone(&queue),
        quotas,
        pods,
        services,
        claims,
        counted: Mutex::new(AHashMap::new()),
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

/// Somebody wrote limits into the status that are not those of the spec.
fn limits_differ(quota: &ResourceQuota) -> bool {
    let wanted = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let shown = quota
        .status
        .as_ref()
        .and_then(|status| status.hard.as_ref());
    wanted != shown
}

fn patience<K>(change: &Change<'_, K>) -> Duration {
    match change {
        Change::Added(_) => SETTLE,
        Change::Updated { .. } | Change::Deleted(_) => Duration::ZERO,
    }
}

fn enqueue_namespace(
    queue: &Queue<Key>,
    quotas: &Informer<ResourceQuota>,
    namespace: &str,
    patience: Duration,
) {
    for quota in quotas.in_namespace(namespace) {
        queue.add_after(Key::of(quota.as_ref()), patience);
    }
}

impl Controller for Quotas {
    type Key = Key;
    const NAME: &'static str = "resourcequota";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(quota) = self.quotas.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(spec) = &quota.spec else {
            return Ok(Outcome::Done);
        };
        let hard = spec.hard.clone().unwrap_or_default();
        for kind in hard.keys().filter_map(|name| counted_kind(name)) {
            self.watch(kind).await;
        }
        let used = self.measure(&key.namespace, spec);
        let used: BTreeMap<String, ApiQuantity> = hard
            .keys()
            .map(|name| {
                let amount = used.get(name).copied().unwrap_or(Quantity::ZERO);
                (name.clone(), ApiQuantity(amount.to_string()))
            })
            .collect();
        let some = |amounts: BTreeMap<_, _>| (!amounts.is_empty()).then_some(amounts);
        let status = ResourceQuotaStatus {
            hard: some(hard),
            used: some(used),
        };
        let updated = ResourceQuota {
            status: Some(status),
            ..quota.as_ref().clone()
        };
        patch_status(&self.context.api(&key.namespace), quota.as_ref(), &updated).await?;
        Ok(Outcome::Again(RESYNC))
    }
}

impl Quotas {
    fn measure(&self, namespace: &str, spec: &ResourceQuotaSpec) -> Usage {
        let mut total = Usage::new();
        let now = Timestamp::now();
        for pod in self.pods.in_namespace(namespace) {
            if covers(spec, &pod) {
                add(&mut total, &of_pod(&pod, now));
            }
        }
        for claim in self.claims.in_namespace(namespace) {
            if covers_claim(spec, &claim) {
                add(&mut total, &of_claim(&claim));
            }
        }
        if is_scoped(spec) {
            // Nothing else has scopes.
            return total;
        }
        for service in self.services.in_namespace(namespace) {
            add(&mut total, &of_service(&service));
        }
        let counted = self.counted.lock();
        for name in spec.hard.iter().flatten().map(|(name, _)| name) {
            let Some(found) = counted_kind(name).and_then(|kind| counted.get(&kind)) else {
                continue;
            };
            let count = found
                .counts
                .lock()
                .get(namespace)
                .map_or(0, |uids| uids.len());
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            total.insert(name.clone(), Quantity::new(count, Format::DecimalSi));
        }
        total
    }

    /// Counts a kind from now on, if there is such a kind.
    async fn watch(&self, kind: Kind) {
        let (group, resource) = &kind;
        if is_measured(group, resource) || self.counted.lock().contains_key(&kind) {
            return;
        }
        let catalog = self.context.resources.catalog();
        let found = catalog.iter().find(|served| {
            served.collectable()
                && served.resource.group == *group
                && served.resource.plural == *resource
        });
        let Some(served) = found else { return };
        let feed = self.context.informers.metadata(&served.resource);
        feed.synced().await;
        let counts: Counts = Arc::default();
        let (sink, queue, quotas) = (
            Arc::clone(&counts),
            Arc::clone(&self.queue),
            Arc::clone(&self.quotas),
        );
        let subscription = feed.on_change(move |change| {
            let namespace = change.metadata.namespace.clone().unwrap_or_default();
            let Some(uid) = change.metadata.uid.clone() else {
                return;
            };
            let changed = {
                let mut counts = sink.lock();
                let uids = counts.entry(namespace.clone()).or_default();
                if change.deleted {
                    uids.remove(&uid)
                } else {
                    uids.insert(uid)
                }
            };
            if changed {
                let patience = if change.deleted {
                    Duration::ZERO
                } else {
                    SETTLE
                };
                enqueue_namespace(&queue, &quotas, &namespace, patience);
            }
        });
        let counted = Counted {
            counts,
            _feed: feed,
            _subscription: subscription,
        };
        self.counted.lock().entry(kind).or_insert(counted);
    }
}
