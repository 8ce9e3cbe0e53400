//! DaemonSet: one pod on every node that the template allows.

mod nodes;
mod update;

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Node, Pod, PodTemplateSpec},
};
use kube::{ResourceExt, core::Selector};
use parking_lot::Mutex;
use tokio::time::Instant;
use windlass_informers::{
    Change, Informer, Key,
    recorder::{EventType, Recorder},
};

use self::nodes::{Want, add_tolerations, by_node, deed, pin, target_node, want};
use crate::{
    history::{self, Historied, History, REVISION_LABEL},
    pods,
    runtime::{
        Context, Controller, Freshness, Maker, Outcome, Owner, Queue, Result, claim_pods,
        controller_ref, delete, follow_owned, patch_status, run_workers, slow_start, usable,
    },
};

/// At most this many creations or deletions for one set at once.
const BURST: usize = 250;
const GENERATION_LABEL: &str = "pod-template-generation";

struct DaemonSets {
    context: Context,
    sets: Arc<Informer<DaemonSet>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    revisions: Arc<Informer<ControllerRevision>>,
    freshness: Freshness<Pod>,
    recorder: Recorder,
    /// Failed pods by set and node: a daemon that fails at once must not be replaced in a tight loop.
    failures: Mutex<AHashMap<(String, String), (u32, Instant)>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (sets, pods, nodes, revisions) = context
        .synced::<(DaemonSet, Pod, Node, ControllerRevision)>()
        .await;

    let _own = queue.follow(&sets);
    let _of_pods = follow_owned(&queue, &sets, &pods, |_| true);
    let _of_revisions = follow_owned(&queue, &sets, &revisions, |_| true);
    let (of_nodes, view) = (Arc::clone(&queue), Arc::clone(&sets));
    let _of_nodes = nodes.on_change(move |change| {
        let placed = |node: &Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
            (node.metadata.labels.clone(), taints)
        };
        let same = matches!(change, Change::Updated { old, new } if placed(old) == placed(new));
        if !same {
            for set in view.list() {
                of_nodes.add(Key::of(set.as_ref()));
            }
        }
    });

    let controller = Arc::new(DaemonSets {
        freshness: Freshness::new(Arc::clone(&pods)),
        recorder: context.recorder.named("daemonset-controller"),
        context: context.clone(),
        sets,
        pods,
        nodes,
        revisions,
        failures: Mutex::new(AHashMap::new()),
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

impl Owner for DaemonSet {
    fn selector(&self) -> Option<Selector> {
        usable(Some(&self.spec.as_ref()?.selector))
    }
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.labels().get(REVISION_LABEL).map(String::as_str)
}

/// What one reconciliation works with.
struct Round<'a> {
    key: &'a Key,
    set: Arc<DaemonSet>,
    template: PodTemplateSpec,
    hash: String,
    min_ready_seconds: i32,
    now: Timestamp,
    /// All nodes with what is wanted of them and their pods.
    nodes: Vec<(String, Want, Vec<Arc<Pod>>)>,
}

impl Round<'_> {
    fn is_new(&self, pod: &Pod) -> bool {
        revision_of(pod) == Some(&self.hash)
    }
}

impl Controller for DaemonSets {
    type Key = Key;
    const NAME: &'static str = "daemonset";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(set) = self.sets.by_key(key) else {
            self.freshness.forget(key);
            return Ok(Outcome::Done);
        };
        let (Some(selector), Some(template)) = (set.selector(), Historied::template(set.as_ref()))
        else {
            return Ok(Outcome::Done);
        };
        if set.metadata.deletion_timestamp.is_some() || !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let history =
            history::sync(&self.context, &self.revisions, set.as_ref(), &selector).await?;
        let hash = history
            .current
            .labels()
            .get(REVISION_LABEL)
            .cloned()
            .unwrap_or_default();
        let owned = claim_pods(
            &self.context,
            key,
            set.as_ref(),
            &self.pods,
            &self.freshness,
            |_| true,
        )
        .await?;
        let owned = self.freshness.with_deleted(key, owned);
        let mut of_nodes = by_node(&owned);
        let nodes: Vec<_> = self
            .nodes
            .list()
            .iter()
            .map(|node| {
                let name = node.name_any();
                let pods = of_nodes.remove(&name).unwrap_or_default();
                (name, want(template, node), pods)
            })
            .collect();
        let round = Round {
            key,
            template: template.clone(),
            hash,
            min_ready_seconds: set
                .spec
                .as_ref()
                .and_then(|spec| spec.min_ready_seconds)
                .unwrap_or(0),
            now: Timestamp::now(),
            set,
            nodes,
        };
        let worked = self.work(&round, of_nodes).await;
        self.report(&round, &history).await?;
        let again = worked?;
        history::truncate(&self.context, round.set.as_ref(), &history, |revision| {
            let hash = revision.labels().get(REVISION_LABEL).map(String::as_str);
            owned.iter().any(|pod| revision_of(pod) == hash)
        })
        .await?;
        let maturing = owned
            .iter()
            .filter_map(|pod| pods::available_in(pod, round.min_ready_seconds, round.now))
            .filter(|left| !left.is_zero());
        let next = maturing.chain(again).min();
        Ok(next.map_or(Outcome::Done, Outcome::Again))
    }
}

impl DaemonSets {
    /// Creates and deletes; returns when to look again. `strays` are pods of nodes that are gone.
    async fn work(
        &self,
        round: &Round<'_>,
        strays: AHashMap<String, Vec<Arc<Pod>>>,
    ) -> Result<Option<Duration>> {
        let desired = round
            .nodes
            .iter()
            .filter(|(_, want, _)| *want == Want::Run)
            .count();
        let limits = update::limits(&round.set, i32::try_from(desired).unwrap_or(i32::MAX));
        let surging = limits.is_some_and(|limits| limits.max_surge > 0);
        let mut again: Option<Duration> = None;
        let mut create: Vec<String> = Vec::new();
        // Bound pods of a node that is gone are the pod garbage collector's.
        let mut doomed: Vec<Arc<Pod>> = strays
            .into_values()
            .flatten()
            .filter(|pod| pods::node_name(pod).is_none() && !pods::is_terminating(pod))
            .collect();
        for (node, want, pods) in &round.nodes {
            let is_new = |pod: &Pod| round.is_new(pod);
            let deed = deed(
                *want,
                pods,
                surging,
                is_new,
                round.min_ready_seconds,
                round.now,
            );
            if deed.create {
                create.push(node.clone());
            }
            doomed.extend(deed.delete);
            for failed in deed.failed {
                match self.may_replace(round, node) {
                    Ok(()) => {
                        let message = format!(
                            "Found failed daemon pod {}/{} on node {node}, will try to kill it",
                            round.key.namespace,
                            failed.name_any()
                        );
                        let set = round.set.as_ref();
                        self.recorder
                            .record(set, EventType::Warning, "FailedDaemonPod", message);
                        doomed.push(failed);
                    }
                    Err(left) => again = Some(again.map_or(left, |again| again.min(left))),
                }
            }
        }
        if create.is_empty()
            && doomed.is_empty()
            && let Some(limits) = limits
        {
            let wanting: AHashMap<String, Vec<Arc<Pod>>> = round
                .nodes
                .iter()
                .filter(|(_, want, _)| *want == Want::Run)
                .map(|(node, _, pods)| (node.clone(), pods.clone()))
                .collect();
            let is_new = |pod: &Pod| round.is_new(pod);
            let step = update::step(limits, &wanting, is_new, round.min_ready_seconds, round.now);
            create.extend(step.surge);
            doomed.extend(step.delete);
        }
        self.create(round, create).await?;
        let deletions = doomed.iter().take(BURST).map(|pod| self.remove(round, pod));
        join_all(deletions)
            .await
            .into_iter()
            .collect::<Result<()>>()?;
        Ok(again)
    }

    /// A failed pod is replaced after 1 s, doubling to 15 minutes.
    fn may_replace(&self, round: &Round<'_>, node: &str) -> Result<(), Duration> {
        let key = (round.set.uid().unwrap_or_default(), node.to_owned());
        let mut failures = self.failures.lock();
        let now = Instant::now();
        let (count, last) = failures.get(&key).copied().unwrap_or((0, now));
        let pause = Duration::from_secs(1 << count.min(10)).min(Duration::from_secs(900));
        let waited = now.duration_since(last);
        if count > 0 && waited < pause {
            return Err(pause - waited);
        }
        failures.insert(key, (if waited > pause * 2 { 1 } else { count + 1 }, now));
        Ok(())
    }

    async fn create(&self, round: &Round<'_>, nodes: Vec<String>) -> Result<()> {
        let maker = Maker {
            context: &self.context,
            freshness: &self.freshness,
            recorder: &self.recorder,
            key: round.key,
            owner: round.set.as_ref(),
        };
        let due = &nodes[..nodes.len().min(BURST)];
        let pods: Vec<Pod> = due.iter().map(|node| pod_for(round, node)).collect();
        slow_start(&pods, |pod| maker.make(pod)).await
    }

    async fn remove(&self, round: &Round<'_>, pod: &Arc<Pod>) -> Result<()> {
        let observer = self.freshness.observer(round.key);
        delete(&self.context.api::<Pod>(&round.key.namespace), pod.as_ref()).await?;
        observer.deleted(pod.as_ref());
        let message = format!("Deleted pod: {}", pod.name_any());
        let set = round.set.as_ref();
        self.recorder
            .record(set, EventType::Normal, "SuccessfulDelete", message);
        Ok(())
    }

    async fn report(&self, round: &Round<'_>, history: &History) -> Result<()> {
        let mut status = status(round);
        let previous = round.set.status.clone().unwrap_or_default();
        let collisions = round.set.collision_count() + history.collisions;
        status.collision_count = (collisions > 0).then_some(collisions);
        status.conditions = previous.conditions;
        let updated = DaemonSet {
            status: Some(status),
            ..round.set.as_ref().clone()
        };
        let api = self.context.api(&round.key.namespace);
        patch_status(&api, round.set.as_ref(), &updated).await?;
        Ok(())
    }
}

fn pod_for(round: &Round<'_>, node: &str) -> Pod {
    let prefix = format!("{}-", round.key.name);
    let owner = controller_ref(round.set.as_ref());
    let mut pod = pods::from_template(&round.template, &round.key.namespace, prefix, owner);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.to_owned(), round.hash.clone());
    let generation = round.set.metadata.generation.unwrap_or(0);
    labels.insert(GENERATION_LABEL.to_owned(), generation.to_string());
    let spec = pod.spec.get_or_insert_default();
    pin(spec, node);
    add_tolerations(spec);
    pod
}

fn status(round: &Round<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: round.set.metadata.generation,
        ..Default::default()
    };
    let (mut updated, mut available) = (0, 0);
    for (node, want, pods) in &round.nodes {
        let scheduled = pods.iter().any(|pod| target_node(pod) == Some(node));
        if *want != Want::Run {
            status.number_misscheduled += i32::from(scheduled);
            continue;
        }
        status.desired_number_scheduled += 1;
        status.current_number_scheduled += i32::from(scheduled);
        let live = || pods.iter().filter(|pod| !pods::is_terminating(pod));
        status.number_ready += i32::from(live().any(|pod| pods::is_ready(pod)));
        available += i32::from(
            live().any(|pod| pods::is_available(pod, round.min_ready_seconds, round.now)),
        );
        updated += i32::from(live().any(|pod| round.is_new(pod)));
    }
    let some = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status
}
