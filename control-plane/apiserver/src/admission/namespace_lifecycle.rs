//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is being deleted, and the
//! system's own namespaces stay.

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::{ApiError, Cause};

use super::{Attributes, Operation, Plugin};
use crate::storage::{Stored, store_error};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    async fn admit(&self, attributes: &Attributes<'_>, _: &mut Value) -> Result<(), ApiError> {
        if attributes.operation != Operation::Create || !attributes.endpoint.resource.namespaced {
            return Ok(());
        }
        let server = &attributes.context.server;
        let Some(namespaces) = server.cacher("", "namespaces") else {
            return Ok(());
        };
        let name = attributes.namespace;
        // Straight from the store: the namespace may have been created, or deleted, a moment ago.
        let found = server
            .caches
            .store()
            .get(&namespaces.key("", name), None)
            .await;
        let Some(found) = found.map_err(store_error)? else {
            return Err(ApiError::not_found("", "namespaces", name));
        };
        // What follows judges by its labels (webhooks, policies, pod security) as the cache has them: were that
        // behind, the first objects of a namespace would go unseen.
        server.caches.wait_for(found.mod_revision).await?;
        let namespace = Stored::read(&found)?.value;
        if !meta::is_deleting(&namespace) {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {name} because it is being terminated"
        );
        let mut error = attributes.forbidden(&why);
        if let Some(details) = &mut error.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {name} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        Err(error)
    }

    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        _: Option<&Value>,
    ) -> Result<(), ApiError> {
        let immortal = attributes.operation == Operation::Delete
            && attributes.is("", "namespaces")
            && IMMORTAL.contains(&attributes.name);
        if immortal {
            Err(attributes.forbidden("this namespace may not be deleted"))
        } else {
            Ok(())
        }
    }
}
