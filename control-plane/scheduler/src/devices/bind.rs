//! Writes what was decided about a pod's devices, before the pod itself is bound: the claim's devices, and that the
//! pod uses them.

use ahash::AHashMap;
use k8s_openapi::api::resource::v1::{
    AllocationResult, ResourceClaim, ResourceClaimConsumerReference,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;

use super::{Grant, allocation};
use crate::pod::PodInfo;

/// Keeps a claim that has devices until they are given back.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// The most users of a claim (the API's own limit).
const MOST_USERS: usize = 256;

/// Devices that were promised to claims, by the claim's uid, until the view shows them.
#[derive(Default)]
pub(crate) struct Promises(Mutex<AHashMap<String, AllocationResult>>);

impl Promises {
    pub(crate) fn make(&self, grants: &[Grant]) {
        let mut promised = self.0.lock();
        for grant in grants {
            if let Some(allocation) = &grant.allocation {
                promised.insert(grant.claim.uid().unwrap_or_default(), allocation.clone());
            }
        }
    }

    fn take_back(&self, grants: &[Grant]) {
        let mut promised = self.0.lock();
        for grant in grants.iter().filter(|grant| grant.allocation.is_some()) {
            promised.remove(&grant.claim.uid().unwrap_or_default());
        }
    }

    /// What the claim will have, while the view does not show it.
    pub(crate) fn of(&self, claim: &ResourceClaim) -> Option<AllocationResult> {
        let mut promised = self.0.lock();
        let uid = claim.metadata.uid.as_deref()?;
        if allocation(claim).is_some() {
            promised.remove(uid);
            return None;
        }
        promised.get(uid).cloned()
    }
}

/// See the module's documentation.
pub(crate) struct DeviceBinder {
    pub(crate) client: Client,
    pub(crate) promises: std::sync::Arc<Promises>,
}

impl DeviceBinder {
    pub(crate) async fn carry_out(&self, grants: &[Grant], pod: &PodInfo) -> Result<(), String> {
        for grant in grants {
            let written = self.write(grant, pod).await;
            if let Err(error) = written {
                self.promises.take_back(grants);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write(&self, grant: &Grant, pod: &PodInfo) -> Result<(), String> {
        let name = grant.claim.name_any();
        let namespace = grant.claim.namespace().unwrap_or_default();
        let text = |error: kube::Error| format!("claim {namespace}/{name}: {error}");
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &namespace);
        // A promise may be older than what others wrote of the claim.
        let mut claim = api.get(&name).await.map_err(text)?;
        if claim.uid() != grant.claim.uid() {
            return Err(format!("claim {namespace}/{name} was replaced"));
        }
        let params = PatchParams::default();
        let gives = grant.allocation.is_some();
        if gives && allocation(&claim).is_some() {
            return Err(format!(
                "claim {namespace}/{name} was allocated by somebody else"
            ));
        }
        if gives && !claim.finalizers().iter().any(|known| known == FINALIZER) {
            let finalizers = claim.finalizers().iter().map(String::as_str);
            let body = json!({"metadata": {
                "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
                "finalizers": finalizers.chain([FINALIZER]).collect::<Vec<_>>(),
            }});
            let written = api.patch(&name, &params, &Patch::Merge(&body)).await;
            claim = written.map_err(text)?;
        }
        let status = claim.status.clone().unwrap_or_default();
        let mut users = status.reserved_for.unwrap_or_default();
        let reserved = users.iter().any(|user| user.uid == pod.uid);
        if reserved && !gives {
            return Ok(());
        }
        if !reserved && users.len() >= MOST_USERS {
            return Err(format!(
                "claim {namespace}/{name} is in use by {MOST_USERS} others"
            ));
        }
        if !reserved {
            users.push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: pod.key.name.clone(),
                uid: pod.uid.clone(),
            });
        }
        let mut body = json!({
            "metadata": {"uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version},
            "status": {"reservedFor": users},
        });
        if let Some(allocation) = &grant.allocation {
            body["status"]["allocation"] = json!(allocation);
        }
        let written = api.patch_status(&name, &params, &Patch::Merge(&body)).await;
        written.map(drop).map_err(text)
    }
}
