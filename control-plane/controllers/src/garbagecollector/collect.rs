//! What is done about a suspect: ask the API server about it and its owners, then delete it, let it go,
//! or leave it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde_json::json;
use tracing::{debug, info};

use super::{
    GarbageCollector,
    graph::{FOREGROUND, Identity, Node, ORPHAN, Work},
};
use crate::runtime::{Error, Result, ResultExt};

/// How an owner stands.
enum Standing {
    Solid,
    Absent,
    /// Being deleted in the foreground: waits for this dependent.
    Waiting,
}

impl GarbageCollector {
    fn api(&self, identity: &Identity) -> Result<Api<DynamicObject>> {
        let catalog = self.context.resources.catalog();
        let Some(served) = catalog.of_kind(&identity.api_version, &identity.kind) else {
            // Perhaps a CRD that discovery shows in a moment.
            self.context.resources.refresh();
            let (version, kind) = (&identity.api_version, &identity.kind);
            return Err(Error::Invalid(format!(
                "no resource serves {kind} of {version}"
            )));
        };
        let client = self.context.client.clone();
        Ok(if served.namespaced() {
            Api::namespaced_with(client, &identity.namespace, &served.resource)
        } else {
            Api::all_with(client, &served.resource)
        })
    }

    /// The object as the server has it now; `None` when it is gone or another one has its name.
    async fn live(&self, identity: &Identity) -> Result<Option<ObjectMeta>> {
        if identity.name.is_empty() {
            return Ok(None);
        }
        let found = self
            .api(identity)?
            .get_metadata_opt(&identity.name)
            .await
            .doing(|| format!("get {} {}", identity.kind, identity.name))?;
        Ok(found
            .map(|object| object.metadata)
            .filter(|meta| meta.uid.as_deref() == Some(&identity.uid)))
    }

    pub(super) async fn examine(&self, uid: &str) -> Result<()> {
        let Some(node) = self.graph.lock().get(uid).cloned() else {
            return Ok(());
        };
        if node.deleting && !node.waits_for_dependents {
            return Ok(());
        }
        if !node.supposed && !node.waits_for_dependents && node.owners.is_empty() {
            return Ok(());
        }
        let Some(live) = self.live(&node.identity).await? else {
            if node.supposed {
                self.note_absent(node.identity.clone());
            }
            let work = self.graph.lock().forget(uid);
            self.enqueue(work);
            return Ok(());
        };
        if node.supposed {
            // It exists; its own event will tell the rest.
            return Ok(());
        }
        if node.waits_for_dependents {
            return self.finish_foreground(&node, &live).await;
        }
        self.judge(&node, &live).await
    }

    /// Collects the object if no owner keeps it.
    async fn judge(&self, node: &Node, live: &ObjectMeta) -> Result<()> {
        let owners = live.owner_references.clone().unwrap_or_default();
        let (mut solid, mut absent, mut waiting) = (0, Vec::new(), Vec::new());
        for owner in &owners {
            match self.standing(owner, &node.identity.namespace).await? {
                Standing::Solid => solid += 1,
                Standing::Absent => absent.push(owner.uid.clone()),
                Standing::Waiting => waiting.push(owner.uid.clone()),
            }
        }
        if owners.is_empty() || (solid > 0 && absent.is_empty() && waiting.is_empty()) {
            return Ok(());
        }
        if solid > 0 {
            let gone: Vec<_> = absent.into_iter().chain(waiting).collect();
            return self.let_go(node, live, &gone).await;
        }
        if !waiting.is_empty() && !node.dependents.is_empty() {
            // Its own dependents go first, so that the whole tree goes bottom-up. If one of them
            // already waits in turn, the circle is opened here.
            let circular = self
                .graph
                .lock()
                .dependents(&node.identity.uid)
                .iter()
                .any(|dependent| dependent.waits_for_dependents);
            if circular {
                self.unblock(node, live).await?;
            }
            return self.delete(node, live, PropagationPolicy::Foreground).await;
        }
        let finalizer = |name: &str| {
            live.finalizers
                .iter()
                .flatten()
                .any(|finalizer| finalizer == name)
        };
        let propagation = if finalizer(ORPHAN) {
            PropagationPolicy::Orphan
        } else if finalizer(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(node, live, propagation).await
    }

    async fn standing(&self, owner: &OwnerReference, namespace: &str) -> Result<Standing> {
        let mut identity = Identity::of_owner(owner, namespace);
        {
            // An owner that the graph shows alive counts as alive: were it deleted a moment ago, its
            // event brings this dependent back here.
            let graph = self.graph.lock();
            let seen = graph.get(&owner.uid).filter(|seen| {
                !seen.supposed
                    && seen.identity.kind == owner.kind
                    && seen.identity.name == owner.name
                    && (seen.identity.namespace.is_empty() || seen.identity.namespace == namespace)
            });
            match seen {
                Some(seen) if seen.waits_for_dependents => return Ok(Standing::Waiting),
                Some(_) => return Ok(Standing::Solid),
                None => {}
            }
        }
        let catalog = self.context.resources.catalog();
        if catalog
            .of_kind(&owner.api_version, &owner.kind)
            .is_some_and(|kind| !kind.namespaced())
        {
            identity.namespace.clear();
        }
        if self.absent.lock().contains(&identity) {
            return Ok(Standing::Absent);
        }
        let Some(live) = self.live(&identity).await? else {
            self.note_absent(identity);
            return Ok(Standing::Absent);
        };
        let waits = live.deletion_timestamp.is_some()
            && live
                .finalizers
                .iter()
                .flatten()
                .any(|finalizer| finalizer == FOREGROUND);
        Ok(if waits {
            Standing::Waiting
        } else {
            Standing::Solid
        })
    }

    async fn delete(
        &self,
        node: &Node,
        live: &ObjectMeta,
        propagation: PropagationPolicy,
    ) -> Result<()> {
        let identity = &node.identity;
        let params = DeleteParams {
            propagation_policy: Some(propagation),
            preconditions: Some(Preconditions {
                uid: live.uid.clone(),
                // An owner that was added since must be able to save it.
                resource_version: live.resource_version.clone(),
            }),
            ..Default::default()
        };
        match self.api(identity)?.delete(&identity.name, &params).await {
            Ok(_) => {
                info!(
                    kind = identity.kind,
                    namespace = identity.namespace,
                    name = identity.name,
                    "collected"
                );
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => {
                Err(error).doing(|| format!("delete {} {}", identity.kind, identity.name))
            }
        }
    }

    async fn patch(&self, identity: &Identity, metadata: serde_json::Value) -> Result<()> {
        let body = json!({ "metadata": metadata });
        let api = self.api(identity)?;
        let params = PatchParams::default();
        match api
            .patch_metadata(&identity.name, &params, &Patch::Merge(&body))
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).doing(|| format!("patch {} {}", identity.kind, identity.name)),
        }
    }

    async fn let_go(&self, node: &Node, live: &ObjectMeta, of: &[String]) -> Result<()> {
        let kept: Vec<_> = live
            .owner_references
            .iter()
            .flatten()
            .filter(|owner| !of.contains(&owner.uid))
            .collect();
        debug!(
            kind = node.identity.kind,
            name = node.identity.name,
            "removing absent owners"
        );
        let metadata = json!({
            "uid": live.uid, "resourceVersion": live.resource_version, "ownerReferences": kept,
        });
        self.patch(&node.identity, metadata).await
    }

    async fn unblock(&self, node: &Node, live: &ObjectMeta) -> Result<()> {
        let mut owners = live.owner_references.clone().unwrap_or_default();
        for owner in &mut owners {
            owner.block_owner_deletion = Some(false);
        }
        let metadata = json!({ "uid": live.uid, "ownerReferences": owners });
        self.patch(&node.identity, metadata).await
    }

    /// An object that is being deleted in the foreground goes when nothing blocks it any more.
    async fn finish_foreground(&self, node: &Node, live: &ObjectMeta) -> Result<()> {
        let blocking = self.graph.lock().blocking_dependents(&node.identity.uid);
        if blocking.is_empty() {
            return self.remove_finalizer(node, live, FOREGROUND).await;
        }
        let not_yet = blocking
            .into_iter()
            .filter(|dependent| !dependent.waits_for_dependents);
        self.enqueue(not_yet.map(|dependent| Work::Examine(dependent.identity.uid)));
        Ok(())
    }

    async fn remove_finalizer(&self, node: &Node, live: &ObjectMeta, name: &str) -> Result<()> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == name) {
            return Ok(());
        }
        let kept: Vec<_> = finalizers
            .into_iter()
            .filter(|finalizer| finalizer != name)
            .collect();
        let metadata = json!({
            "uid": live.uid, "resourceVersion": live.resource_version, "finalizers": kept,
        });
        self.patch(&node.identity, metadata).await
    }

    /// Takes the object out of its dependents' owners, then lets it go.
    pub(super) async fn orphan(&self, uid: &str) -> Result<()> {
        let (node, dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(uid).cloned() else {
                return Ok(());
            };
            (node, graph.dependents(uid))
        };
        for dependent in dependents {
            if let Some(live) = self.live(&dependent.identity).await? {
                self.let_go(&dependent, &live, &[uid.to_owned()]).await?;
            }
        }
        if let Some(live) = self.live(&node.identity).await? {
            self.remove_finalizer(&node, &live, ORPHAN).await?;
        }
        Ok(())
    }
}
