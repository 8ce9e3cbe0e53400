//! Namespace deletion: everything in the namespace goes, through discovery, pods first; then the
//! finalizer `kubernetes` is taken off and the namespace is gone.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod},
    apimachinery::pkg::apis::meta::v1::{ListMeta, Time},
};
use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, ObjectList, PartialObjectMeta,
        PostParams, Request, TypeMeta,
    },
    discovery::verbs,
};
use tracing::{debug, info};
use windlass_informers::{Change, Informer, Key};

use crate::{
    resources::Served,
    runtime::{
        Context, Controller, Error, Outcome, Queue, Result, ResultExt, patch_status, run_workers,
    },
};

const FINALIZER: &str = "kubernetes";
/// For what other controllers must finish first; their doing so tells us nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How many of what is left are looked at at once.
const PAGE: u32 = 500;

struct Namespaces {
    context: Context,
    namespaces: Arc<Informer<Namespace>>,
}

/// What there is of a kind; nothing when its definition went since the kinds were read, and its instances with it.
async fn list(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    params: &ListParams,
) -> Result<ObjectList<PartialObjectMeta<DynamicObject>>> {
    match api.list_metadata(params).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(ObjectList {
            types: TypeMeta::default(),
            metadata: ListMeta::default(),
            items: Vec::new(),
        }),
        listed => listed.doing(|| format!("list {} of a namespace being deleted", resource.plural)),
    }
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let namespaces = context.informer::<Namespace>();
    let pods = context.informer::<Pod>();
    namespaces.synced().await;
    context.resources.known().await;

    let _own = queue.follow_to(&namespaces, |it| is_deleting(it).then(|| Key::of(it)));
    // The last pod's end is what a namespace usually waits for.
    let (of_pods, view) = (Arc::clone(&queue), Arc::clone(&namespaces));
    let _of_pods = pods.on_change(move |change| {
        if matches!(change, Change::Deleted(_)) {
            let name = change.object().namespace().unwrap_or_default();
            if view
                .get("", &name)
                .is_some_and(|namespace| is_deleting(&namespace))
            {
                of_pods.add(Key::cluster(name));
            }
        }
    });
    let controller = Arc::new(Namespaces {
        context: context.clone(),
        namespaces,
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

fn is_deleting(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

/// What is left of a namespace's content.
#[derive(Debug, Default, PartialEq)]
struct Remains {
    /// Objects by `resource.group`.
    objects: BTreeMap<String, usize>,
    /// Objects by the finalizer that holds them.
    finalizers: BTreeMap<String, usize>,
    /// What could not be listed or deleted.
    failures: Vec<String>,
    /// The longest grace period of a pod that is on its way.
    grace: Duration,
}

impl Remains {
    fn nothing(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }
}

impl Controller for Namespaces {
    type Key = Key;
    const NAME: &'static str = "namespace";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(namespace) = self.namespaces.by_key(key) else {
            return Ok(Outcome::Done);
        };
        if !is_deleting(&namespace) || !has_finalizer(&namespace) {
            return Ok(Outcome::Done);
        }
        let mut remains = Remains::default();
        let catalog = self.context.resources.catalog();
        let (pods, others): (Vec<_>, Vec<_>) = catalog
            .iter()
            .filter(|served| served.namespaced() && served.supports(verbs::DELETE))
            .filter(|served| served.supports(verbs::LIST))
            .partition(|served| {
                served.resource.group.is_empty() && served.resource.plural == "pods"
            });
        self.empty(&key.name, &pods, &mut remains).await;
        // Pods first: they must not outlive the policies and secrets that bound them (KEP-5080).
        if remains.nothing() {
            self.empty(&key.name, &others, &mut remains).await;
        }
        let namespace = self.report(&namespace, &remains).await?;
        if remains.nothing() {
            self.finalize(&namespace).await?;
            info!(namespace = key.name, "namespace emptied");
            return Ok(Outcome::Done);
        }
        debug!(namespace = key.name, ?remains, "namespace not empty yet");
        if let Some(failure) = remains.failures.first() {
            return Err(Error::Invalid(failure.clone()));
        }
        Ok(Outcome::Again(LOOK_AGAIN.max(remains.grace / 2)))
    }
}

fn has_finalizer(namespace: &Namespace) -> bool {
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.as_ref());
    finalizers
        .into_iter()
        .flatten()
        .any(|finalizer| finalizer == FINALIZER)
}

impl Namespaces {
    async fn empty(&self, namespace: &str, kinds: &[&Served], remains: &mut Remains) {
        for served in kinds {
            if let Err(error) = self.empty_kind(namespace, served, remains).await {
                remains.failures.push(error.to_string());
            }
        }
    }

    async fn empty_kind(
        &self,
        namespace: &str,
        served: &Served,
        remains: &mut Remains,
    ) -> Result<()> {
        let resource = &served.resource;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, resource);
        if served.supports(verbs::DELETE_COLLECTION) {
            // Asked for one only, since most namespaces hold nothing of most kinds.
            let any = list(&api, resource, &ListParams::default().limit(1)).await?;
            if any.items.is_empty() {
                return Ok(());
            }
            self.delete_collection(&api, resource).await?;
        } else {
            self.delete_each(&api, resource).await?;
        }

        let mut left = 0;
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = list(&api, resource, &page).await?;
            left += listed.items.len();
            for object in &listed.items {
                let grace = object.metadata.deletion_grace_period_seconds.unwrap_or(0);
                let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
                remains.grace = remains.grace.max(grace);
                for finalizer in object.finalizers() {
                    *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
                }
            }
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        if left == 0 {
            return Ok(());
        }
        let name = if resource.group.is_empty() {
            format!("{}.", resource.plural)
        } else {
            format!("{}.{}", resource.plural, resource.group)
        };
        remains.objects.insert(name, left);
        Ok(())
    }

    async fn delete_collection(
        &self,
        api: &Api<DynamicObject>,
        resource: &ApiResource,
    ) -> Result<()> {
        let action = || format!("delete all {}", resource.plural);
        let request = Request::new(api.resource_url())
            .delete_collection(&DeleteParams::background(), &ListParams::default())
            .map_err(kube::Error::BuildRequest)
            .doing(action)?;
        // The answer holds all that was deleted, whole: it is read to its end and kept nowhere.
        let answer = self.context.client.request_stream(request).await;
        futures::io::copy_buf(pin!(answer.doing(action)?), &mut futures::io::sink())
            .await
            .map_err(kube::Error::ReadEvents)
            .doing(action)?;
        Ok(())
    }

    async fn delete_each(&self, api: &Api<DynamicObject>, resource: &ApiResource) -> Result<()> {
        for object in list(api, resource, &ListParams::default()).await?.items {
            match api
                .delete(&object.name_any(), &DeleteParams::background())
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other.doing(|| format!("delete {}", resource.plural))?),
            }
        }
        Ok(())
    }

    /// Says in the namespace's conditions what holds it.
    async fn report(&self, namespace: &Arc<Namespace>, remains: &Remains) -> Result<Namespace> {
        let mut updated = namespace.as_ref().clone();
        updated.status = Some(NamespaceStatus {
            phase: Some("Terminating".to_owned()),
            conditions: Some(conditions(namespace, remains, Timestamp::now())),
        });
        let written =
            patch_status(&self.context.cluster_api(), namespace.as_ref(), &updated).await?;
        Ok(written.unwrap_or_else(|| namespace.as_ref().clone()))
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<()> {
        let mut updated = namespace.clone();
        if let Some(spec) = updated.spec.as_mut() {
            spec.finalizers
                .get_or_insert_default()
                .retain(|finalizer| finalizer != FINALIZER);
        }
        let name = namespace.name_any();
        let api = self.context.cluster_api::<Namespace>();
        match api
            .replace_subresource("finalize", &name, &PostParams::default(), &updated)
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).doing(|| format!("finalize namespace {name}")),
        }
    }
}

fn listed(counts: &BTreeMap<String, usize>, form: impl Fn(&str, usize) -> String) -> String {
    counts
        .iter()
        .map(|(name, count)| form(name, *count))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Type, whether it holds, reason and message, in the words of Kubernetes.
type Finding = (&'static str, bool, &'static str, String);

fn findings(remains: &Remains) -> [Finding; 5] {
    let finding =
        |kind, found: Option<(&'static str, String)>, (reason, message): (_, &str)| match found {
            Some((reason, message)) => (kind, true, reason, message),
            None => (kind, false, reason, message.to_owned()),
        };
    let failures = &remains.failures;
    let failed = (!failures.is_empty()).then(|| {
        let (count, all) = (failures.len(), failures.join(", "));
        let message = format!("Failed to delete all resource types, {count} remaining: {all}");
        ("ContentDeletionFailed", message)
    });
    let content = (!remains.objects.is_empty()).then(|| {
        let objects = listed(&remains.objects, |name, count| {
            format!("{name} has {count} resource instances")
        });
        let message = format!("Some resources are remaining: {objects}");
        ("SomeResourcesRemain", message)
    });
    let held = (!remains.finalizers.is_empty()).then(|| {
        let finalizers = listed(&remains.finalizers, |name, count| {
            format!("{name} in {count} resource instances")
        });
        let message =
            format!("Some content in the namespace has finalizers remaining: {finalizers}");
        ("SomeFinalizersRemain", message)
    });
    [
        finding(
            "NamespaceDeletionDiscoveryFailure",
            None,
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        finding(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        finding(
            "NamespaceDeletionContentFailure",
            failed,
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        finding(
            "NamespaceContentRemaining",
            content,
            ("ContentRemoved", "All content successfully removed"),
        ),
        finding(
            "NamespaceFinalizersRemaining",
            held,
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ]
}

fn conditions(namespace: &Namespace, remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let current = namespace
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let current = current.unwrap_or_default();
    findings(remains)
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" }.to_owned();
            let since = current
                .iter()
                .find(|condition| condition.type_ == kind && condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            NamespaceCondition {
                type_: kind.to_owned(),
                status,
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: since.or(Some(Time(now))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_holds_the_namespace() {
        let remains = Remains {
            objects: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Default::default()
        };
        let conditions = conditions(&Namespace::default(), &remains, Timestamp::UNIX_EPOCH);
        let message = |kind: &str| {
            let found = conditions
                .iter()
                .find(|condition| condition.type_ == kind)
                .unwrap();
            (found.status.as_str(), found.message.clone().unwrap())
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            (
                "True",
                "Some resources are remaining: pods. has 2 resource instances".to_owned()
            )
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            (
                "True",
                "Some content in the namespace has finalizers remaining: \
                 example.com/hold in 1 resource instances"
                    .to_owned()
            )
        );
        assert_eq!(message("NamespaceDeletionContentFailure").0, "False");
    }
}
