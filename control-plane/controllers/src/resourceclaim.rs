//! ResourceClaims (KEP-4381): makes those that pods describe by a template, tells the pod their names, and
//! frees what no pod uses any more. Which devices a claim gets is the scheduler's to decide.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus},
        resource::v1::{ResourceClaim, ResourceClaimTemplate},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use crate::{
    pods,
    runtime::{
        Context, Controller, Freshness, Outcome, Queue, Result, ResultExt, controlled_by,
        controller_ref, delete, patch, patch_status, run_workers,
    },
};

/// On a claim that was made from a template: which entry of its pod it is for.
const ENTRY: &str = "resource.kubernetes.io/pod-claim-name";
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// What there is to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Pod(Key),
    Claim(Key),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Claim(key) => write!(f, "claim {key}"),
        }
    }
}

struct Claims {
    context: Context,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    templates: Arc<Informer<ResourceClaimTemplate>>,
    freshness: Freshness<ResourceClaim>,
    recorder: Recorder,
}

fn entries(pod: &Pod) -> &[PodResourceClaim] {
    let claims = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.resource_claims.as_ref());
    claims.map_or(&[], Vec::as_slice)
}

fn noted(pod: &Pod) -> &[PodResourceClaimStatus] {
    let status = pod.status.as_ref();
    let noted = status.and_then(|status| status.resource_claim_statuses.as_ref());
    noted.map_or(&[], Vec::as_slice)
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (pods, claims, templates) = context
        .synced::<(Pod, ResourceClaim, ResourceClaimTemplate)>()
        .await;

    let of_pods = Arc::clone(&queue);
    let _of_pods = pods.on_change(move |change| {
        let pod = change.object();
        if entries(pod).is_empty() {
            return;
        }
        of_pods.add(Subject::Pod(Key::of(pod.as_ref())));
        let namespace = pod.namespace().unwrap_or_default();
        for name in noted(pod)
            .iter()
            .filter_map(|entry| entry.resource_claim_name.as_ref())
        {
            of_pods.add(Subject::Claim(Key::new(&namespace, name)));
        }
        for name in entries(pod)
            .iter()
            .filter_map(|entry| entry.resource_claim_name.as_ref())
        {
            of_pods.add(Subject::Claim(Key::new(&namespace, name)));
        }
    });
    let of_claims = Arc::clone(&queue);
    let _of_claims = claims.on_change(move |change| {
        let claim = change.object();
        of_claims.add(Subject::Claim(Key::of(claim.as_ref())));
        if let Some(owner) = controlled_by::<Pod>(claim.as_ref()) {
            let namespace = claim.namespace().unwrap_or_default();
            of_claims.add(Subject::Pod(Key::new(namespace, &owner.name)));
        }
    });
    let (of_templates, view) = (Arc::clone(&queue), Arc::clone(&pods));
    let _of_templates = templates.on_change(move |change| {
        let template = change.object();
        for pod in view.in_namespace(&template.namespace().unwrap_or_default()) {
            let waits = |entry: &PodResourceClaim| {
                entry.resource_claim_template_name == template.metadata.name
            };
            if entries(&pod).iter().any(waits) {
                of_templates.add(Subject::Pod(Key::of(pod.as_ref())));
            }
        }
    });
    let controller = Arc::new(Claims {
        freshness: Freshness::new(Arc::clone(&claims)),
        recorder: context.recorder.named("resource_claim"),
        context: context.clone(),
        pods,
        claims,
        templates,
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

impl Controller for Claims {
    type Key = Subject;
    const NAME: &'static str = "resourceclaim";

    async fn reconcile(&self, subject: &Subject) -> Result<Outcome> {
        match subject {
            Subject::Pod(key) => {
                let pod = self.pods.by_key(key);
                match pod.filter(|pod| pods::is_active(pod)) {
                    Some(pod) => self.provide(key, &pod).await?,
                    None => self.freshness.forget(key),
                }
            }
            Subject::Claim(key) => {
                if let Some(claim) = self.claims.by_key(key) {
                    self.free(key, &claim).await?;
                }
            }
        }
        Ok(Outcome::Done)
    }
}

impl Claims {
    /// Makes the claims of a pod's templates and writes their names into its status.
    async fn provide(&self, key: &Key, pod: &Arc<Pod>) -> Result<()> {
        if !self.freshness.is_fresh(key) {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in entries(pod) {
            let Some(template) = &entry.resource_claim_template_name else {
                continue;
            };
            let name = match self.made(pod, &entry.name) {
                Some(claim) => claim,
                None => match self.make(key, pod, entry, template).await? {
                    Some(claim) => claim,
                    None => continue,
                },
            };
            names.push(PodResourceClaimStatus {
                name: entry.name.clone(),
                resource_claim_name: Some(name),
            });
        }
        if noted(pod) == names {
            return Ok(());
        }
        let mut updated = pod.as_ref().clone();
        updated
            .status
            .get_or_insert_default()
            .resource_claim_statuses = Some(names);
        let api = self.context.api(&key.namespace);
        patch_status(&api, pod.as_ref(), &updated).await.map(drop)
    }

    /// The claim that was made for an entry of a pod.
    fn made(&self, pod: &Pod, entry: &str) -> Option<String> {
        let uid = pod.metadata.uid.as_deref()?;
        let own = self.claims.controlled_by(uid);
        let found = own
            .iter()
            .find(|claim| claim.annotations().get(ENTRY).is_some_and(|of| of == entry))?;
        Some(found.name_any())
    }

    async fn make(
        &self,
        key: &Key,
        pod: &Arc<Pod>,
        entry: &PodResourceClaim,
        template: &str,
    ) -> Result<Option<String>> {
        let Some(found) = self.templates.get(&key.namespace, template) else {
            let message = format!(
                "PodResourceClaim {}: resource claim template {template:?} not found",
                entry.name
            );
            self.recorder.record(
                pod.as_ref(),
                EventType::Warning,
                "FailedResourceClaimCreation",
                message,
            );
            return Ok(None);
        };
        let spec = found.spec.clone();
        let metadata = spec.metadata.unwrap_or_default();
        let mut annotations = metadata.annotations.unwrap_or_default();
        annotations.insert(ENTRY.to_owned(), entry.name.clone());
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-{}-", key.name, entry.name)),
                namespace: Some(key.namespace.clone()),
                labels: metadata.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref(pod.as_ref())]),
                ..Default::default()
            },
            spec: spec.spec,
            status: None,
        };
        let observer = self.freshness.observer(key);
        let created = self
            .context
            .api::<ResourceClaim>(&key.namespace)
            .create(&PostParams::default(), &claim)
            .await
            .doing(|| format!("create resource claim {} of pod {key}", entry.name));
        match created {
            Ok(created) => {
                observer.wrote(&created);
                Ok(Some(created.name_any()))
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => {
                let message = format!("PodResourceClaim {}: {error}", entry.name);
                self.recorder.record(
                    pod.as_ref(),
                    EventType::Warning,
                    "FailedResourceClaimCreation",
                    message,
                );
                Err(error)
            }
        }
    }

    /// Takes pods that are over off the claim's users; a claim without users gives its devices back, and one
    /// that was made for such a pod goes.
    async fn free(&self, key: &Key, claim: &Arc<ResourceClaim>) -> Result<()> {
        let mut status = claim.status.clone().unwrap_or_default();
        let users = status.reserved_for.clone().unwrap_or_default();
        let mut left = Vec::new();
        for user in &users {
            let is_pod =
                user.resource == "pods" && user.api_group.as_deref().unwrap_or_default().is_empty();
            if !is_pod || self.uses(key, &user.name, &user.uid).await? {
                left.push(user.clone());
            }
        }
        let owner = controlled_by::<Pod>(claim.as_ref());
        let over = match owner {
            Some(owner) if claim.annotations().contains_key(ENTRY) => {
                !self.uses(key, &owner.name, &owner.uid).await?
            }
            _ => false,
        };
        let leaving = claim.metadata.deletion_timestamp.is_some();
        let idle = left.is_empty() && (!users.is_empty() || leaving || over);
        let api = self.context.api::<ResourceClaim>(&key.namespace);
        let mut current = claim.as_ref().clone();
        if left != users || (idle && status.allocation.is_some()) {
            status.reserved_for = (!left.is_empty()).then_some(left);
            if idle {
                status.allocation = None;
                status.devices = None;
            }
            let updated = ResourceClaim {
                status: Some(status),
                ..current.clone()
            };
            if let Some(written) = patch_status(&api, &current, &updated).await? {
                current = written;
            }
        }
        if idle && current.finalizers().iter().any(|name| name == FINALIZER) {
            let mut updated = current.clone();
            updated.finalizers_mut().retain(|name| name != FINALIZER);
            if let Some(written) = patch(&api, &current, &updated).await? {
                current = written;
            }
        }
        if over && !leaving {
            delete(&api, &current).await?;
        }
        Ok(())
    }

    /// Whether a pod exists and may still use its claims. A view that does not show it may lag.
    async fn uses(&self, key: &Key, name: &str, uid: &str) -> Result<bool> {
        let uses = |pod: &Pod| pod.metadata.uid.as_deref() == Some(uid) && !pods::is_finished(pod);
        if let Some(pod) = self.pods.get(&key.namespace, name)
            && pod.metadata.uid.as_deref() == Some(uid)
        {
            return Ok(uses(&pod));
        }
        let api = self.context.api::<Pod>(&key.namespace);
        let fresh = api
            .get_opt(name)
            .await
            .doing(|| format!("get pod {name}"))?;
        Ok(fresh.is_some_and(|pod| uses(&pod)))
    }
}
