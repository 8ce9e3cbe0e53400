//! Tells nodes for how many seconds they may use what they have read of ConfigMaps and Secrets, the longer the more
//! nodes there are. Nodes of ours watch and need no telling; a kubelet reads it from its Node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use windlass_informers::{Change, Informer, Key};

use crate::runtime::{Context, Controller, Outcome, Queue, Result, patch, run_workers};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// A number of nodes: fewer than `least` leave the step downwards, more than `most` upwards, so that a node that comes
/// and goes does not rewrite all others.
struct Step {
    least: usize,
    most: usize,
    seconds: u32,
}

const STEPS: [Step; 5] = [
    step(0, 100, 0),
    step(90, 500, 15),
    step(450, 1_000, 30),
    step(900, 2_000, 60),
    step(1_800, usize::MAX, 300),
];

const fn step(least: usize, most: usize, seconds: u32) -> Step {
    Step {
        least,
        most,
        seconds,
    }
}

/// The step for so many nodes, coming from `current`.
fn settle(mut current: usize, nodes: usize) -> usize {
    while nodes > STEPS[current].most {
        current += 1;
    }
    while nodes < STEPS[current].least {
        current -= 1;
    }
    current
}

struct Ttl {
    context: Context,
    nodes: Arc<Informer<Node>>,
    step: Mutex<usize>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (nodes,) = context.synced::<(Node,)>().await;
    let controller = Arc::new(Ttl {
        context: context.clone(),
        nodes: Arc::clone(&nodes),
        step: Mutex::new(settle(0, nodes.len())),
    });
    let (all, of) = (Arc::clone(&queue), Arc::clone(&controller));
    let _changes = nodes.on_change(move |change| {
        match change {
            Change::Updated { .. } => {}
            _ => of.count(&all),
        }
        if !has(change.object(), of.seconds()) {
            all.add(Key::of(change.object().as_ref()));
        }
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn has(node: &Node, seconds: u32) -> bool {
    let told = node.metadata.annotations.as_ref();
    told.and_then(|told| told.get(ANNOTATION)) == Some(&seconds.to_string())
}

impl Ttl {
    fn seconds(&self) -> u32 {
        STEPS[*self.step.lock()].seconds
    }

    /// A node came or went: with the step, what everybody is told changes.
    fn count(&self, queue: &Queue<Key>) {
        let mut step = self.step.lock();
        let now = settle(*step, self.nodes.len());
        if now != *step {
            *step = now;
            for node in self.nodes.list() {
                queue.add(Key::of(node.as_ref()));
            }
        }
    }
}

impl Controller for Ttl {
    type Key = Key;
    const NAME: &'static str = "ttl";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let seconds = self.seconds();
        let Some(node) = self.nodes.by_key(key).filter(|node| !has(node, seconds)) else {
            return Ok(Outcome::Done);
        };
        let mut told = node.as_ref().clone();
        let annotations = told.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION.to_owned(), seconds.to_string());
        patch(&self.context.cluster_api(), node.as_ref(), &told).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_kept_until_the_cluster_has_clearly_left_it() {
        let seconds = |current: usize, nodes: usize| STEPS[settle(current, nodes)].seconds;
        assert_eq!(seconds(0, 0), 0);
        assert_eq!(seconds(0, 100), 0);
        assert_eq!(seconds(0, 101), 15);
        assert_eq!((seconds(1, 95), seconds(1, 89)), (15, 0));
        assert_eq!((seconds(0, 5_000), seconds(4, 3)), (300, 0));
    }
}
