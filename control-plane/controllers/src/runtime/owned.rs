//! What the controllers of pod owners have in common: which owner a pod's change concerns, and taking
//! possession of the pods that a selector finds.

use std::sync::Arc;

use k8s_openapi::{
    NamespaceResourceScope, api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Resource, ResourceExt,
    core::{Selector, SelectorExt},
};
use windlass_informers::{Cached, Change, Informer, Key, Subscription};

use super::{Context, Freshness, Queue, Result, claim, controlled_by};

/// A kind whose objects own others by a selector.
pub(crate) trait Owner: Cached + Resource<Scope = NamespaceResourceScope> {
    /// `None` when the object's selector cannot be used.
    fn selector(&self) -> Option<Selector>;

    /// What it puts on the pods that it makes and adopts, and takes off those that it lets go, which could not end with it.
    const FINALIZER: Option<&'static str> = None;
}

/// An empty selector would adopt every pod of the namespace.
pub(crate) fn usable(selector: Option<&LabelSelector>) -> Option<Selector> {
    let selector = Selector::try_from(selector?.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// Enqueues owners when something that they own, or an orphan that they may want, changes.
pub(crate) fn follow_owned<O: Owner, W: Cached>(
    queue: &Arc<Queue<Key>>,
    owners: &Arc<Informer<O>>,
    owned: &Informer<W>,
    adoptable: fn(&W) -> bool,
) -> Subscription {
    let (queue, owners) = (Arc::clone(queue), Arc::clone(owners));
    owned.on_change(move |change| {
        for key in concerned(change, &owners, adoptable) {
            queue.add(key);
        }
    })
}

/// The objects that a change concerns: the owner before and after, or, of an orphan, whoever may want to
/// adopt it.
fn concerned<O: Owner, W: Cached>(
    change: &Change<'_, W>,
    owners: &Informer<O>,
    adoptable: fn(&W) -> bool,
) -> Vec<Key> {
    let object = change.object();
    let namespace = object.namespace().unwrap_or_default();
    let mut keys: Vec<Key> = [Some(object), change.previous()]
        .into_iter()
        .flatten()
        .filter_map(|object| controlled_by::<O>(object.as_ref()))
        .map(|owner| Key::new(&namespace, &owner.name))
        .collect();
    keys.dedup();
    let orphan = object
        .owner_references()
        .iter()
        .all(|owner| owner.controller != Some(true));
    if orphan && !matches!(change, Change::Deleted(_)) && adoptable(object) {
        let wanting = owners.in_namespace(&namespace).into_iter().filter(|owner| {
            owner
                .selector()
                .is_some_and(|selector| selector.matches(object.labels()))
        });
        keys.extend(wanting.map(|owner| Key::of(owner.as_ref())));
    }
    keys
}

/// The owner's pods, adopted ones included; what was adopted counts as written by the key.
pub(crate) async fn claim_pods<O: Owner>(
    context: &Context,
    key: &Key,
    owner: &O,
    view: &Informer<Pod>,
    freshness: &Freshness<Pod>,
    adoptable: fn(&Pod) -> bool,
) -> Result<Vec<Arc<Pod>>> {
    let Some(selector) = owner.selector() else {
        return Ok(Vec::new());
    };
    let observer = freshness.observer(key);
    let claimed = claim(
        owner,
        &context.api(&key.namespace),
        &selector,
        view,
        &context.api(&key.namespace),
        adoptable,
    )
    .await?;
    for adopted in &claimed.adopted {
        observer.wrote(adopted);
    }
    Ok(claimed.owned)
}
