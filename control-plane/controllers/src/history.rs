//! ControllerRevisions: the past templates of a DaemonSet or StatefulSet, by number, so that
//! `kubectl rollout undo` can go back to one.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, StatefulSet},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{Api, ResourceExt, api::PostParams, core::Selector};
use serde_json::{Value, json};
use windlass_informers::Informer;

use crate::{
    runtime::{Context, Error, Owner, Result, ResultExt, claim, controller_ref, delete, patch},
    template_hash::template_hash,
};

pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// What a revision holds: a strategic merge patch that replaces the template, as kubectl applies it.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

fn holds(revision: &ControllerRevision, data: &Value) -> bool {
    revision.data.as_ref().is_some_and(|held| held.0 == *data)
}

/// The template that a revision holds.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision
        .data
        .as_ref()?
        .0
        .get("spec")?
        .get("template")?
        .clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// An object that keeps its past.
pub(crate) trait Historied: Owner {
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn collision_count(&self) -> i32;
    fn history_limit(&self) -> usize;
}

macro_rules! historied {
    ($($kind:ty),+) => {
        $(impl Historied for $kind {
            fn template(&self) -> Option<&PodTemplateSpec> {
                self.spec.as_ref().map(|spec| &spec.template)
            }

            fn collision_count(&self) -> i32 {
                let status = self.status.as_ref();
                status.and_then(|status| status.collision_count).unwrap_or(0)
            }

            fn history_limit(&self) -> usize {
                let spec = self.spec.as_ref();
                let limit = spec.and_then(|spec| spec.revision_history_limit);
                usize::try_from(limit.unwrap_or(10)).unwrap_or(0)
            }
        })+
    };
}

historied!(DaemonSet, StatefulSet);

/// All revisions of an object, oldest first, and which of them is its template of now.
pub(crate) struct History {
    pub(crate) all: Vec<Arc<ControllerRevision>>,
    pub(crate) current: Arc<ControllerRevision>,
    /// Had to be made: its name was taken by another template this many more times.
    pub(crate) collisions: i32,
}

/// Finds or makes the revision of the object's template and gives it the highest number.
pub(crate) async fn sync<O: Historied>(
    context: &Context,
    view: &Informer<ControllerRevision>,
    owner: &O,
    selector: &Selector,
) -> Result<History> {
    let namespace = owner.namespace().unwrap_or_default();
    let api = context.api::<ControllerRevision>(&namespace);
    let claimed = claim(
        owner,
        &context.api(&namespace),
        selector,
        view,
        &api,
        |_| true,
    )
    .await?;
    let mut all = claimed.owned;
    all.sort_by_key(|revision| (revision.revision, revision.name_any()));
    let template = owner
        .template()
        .ok_or_else(|| Error::Invalid(format!("{} has no template", owner.name_any())))?;
    let data = data(template);
    let next = all.last().map_or(1, |newest| newest.revision + 1);
    let matching = all.iter().rposition(|revision| holds(revision, &data));
    let (current, collisions) = match matching {
        Some(at) => (renew(&api, all.remove(at), next).await?, 0),
        None => find_or_create(&api, owner, template, &data, next).await?,
    };
    all.push(Arc::clone(&current));
    Ok(History {
        all,
        current,
        collisions,
    })
}

/// The revision as it has to be, now that its template is the one of now.
async fn renew(
    api: &Api<ControllerRevision>,
    revision: Arc<ControllerRevision>,
    next: i64,
) -> Result<Arc<ControllerRevision>> {
    let mut renewed = revision.as_ref().clone();
    if revision.revision + 1 < next {
        // A rollback: what was old is the newest again.
        renewed.revision = next;
    }
    if !revision.labels().contains_key(REVISION_LABEL) {
        // Written by hand: pods are told apart by this label, and its name is as good as a hash.
        let name = revision.name_any();
        renewed.labels_mut().insert(REVISION_LABEL.to_owned(), name);
    }
    let written = patch(api, revision.as_ref(), &renewed).await?;
    Ok(written.map_or(revision, Arc::new))
}

/// A new revision, or the one of the same name that holds the same, and how many names were others' before.
async fn find_or_create<O: Historied>(
    api: &Api<ControllerRevision>,
    owner: &O,
    template: &PodTemplateSpec,
    data: &Value,
    next: i64,
) -> Result<(Arc<ControllerRevision>, i32)> {
    let mut collisions = 0;
    loop {
        let count = owner.collision_count() + collisions;
        let hash = template_hash(template, (count > 0).then_some(count));
        let made = make(owner, template, data, next, &hash);
        let name = made.name_any();
        let created = api
            .create(&PostParams::default(), &made)
            .await
            .doing(|| format!("create controller revision {name}"));
        match created {
            Ok(created) => return Ok((Arc::new(created), collisions)),
            Err(error) if error.is_already_exists() => {
                let existing = api
                    .get(&name)
                    .await
                    .doing(|| format!("get revision {name}"))?;
                let ours = existing
                    .owner_references()
                    .iter()
                    .any(|reference| Some(&reference.uid) == owner.meta().uid.as_ref());
                if ours && holds(&existing, data) {
                    return Ok((Arc::new(existing), collisions));
                }
                collisions += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn make<O: Historied>(
    owner: &O,
    template: &PodTemplateSpec,
    data: &Value,
    revision: i64,
    hash: &str,
) -> ControllerRevision {
    let mut labels: BTreeMap<String, String> = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone())
        .unwrap_or_default();
    labels.insert(REVISION_LABEL.to_owned(), hash.to_owned());
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name_any())),
            namespace: owner.namespace(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![controller_ref(owner)]),
            ..Default::default()
        },
        data: Some(RawExtension(data.clone())),
        revision,
    }
}

/// Deletes the oldest revisions beyond the limit that no pod uses.
pub(crate) async fn truncate<O: Historied>(
    context: &Context,
    owner: &O,
    history: &History,
    used: impl Fn(&ControllerRevision) -> bool,
) -> Result<()> {
    let unused: Vec<_> = history
        .all
        .iter()
        .filter(|revision| revision.metadata.uid != history.current.metadata.uid)
        .filter(|revision| !used(revision))
        .collect();
    let surplus = unused.len().saturating_sub(owner.history_limit());
    let api = context.api::<ControllerRevision>(&owner.namespace().unwrap_or_default());
    for revision in unused.into_iter().take(surplus) {
        delete(&api, revision.as_ref()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_back_the_template_it_was_made_from() {
        let original: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }))
        .unwrap();
        let revision = ControllerRevision {
            data: Some(RawExtension(data(&original))),
            ..Default::default()
        };
        assert_eq!(template(&revision), Some(original.clone()));
        assert!(holds(&revision, &data(&original)));
        assert_eq!(
            revision.data.unwrap().0["spec"]["template"]["$patch"],
            "replace"
        );
    }
}
