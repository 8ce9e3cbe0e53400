//! The namespaces that every cluster has.

use std::sync::Arc;

use serde_json::json;
use windlass_machinery::status::ApiError;

use crate::server::ApiServer;

const NAMES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];

/// Creates those that are missing.
pub(crate) async fn ensure(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let namespaces = server.cacher("", "namespaces");
    for name in NAMES {
        if namespaces
            .as_ref()
            .is_some_and(|cacher| cacher.get("", name).is_some())
        {
            continue;
        }
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let made = server.create_missing("/api/v1/namespaces", &object).await?;
        if made.is_some() {
            tracing::info!(name, "namespace created");
        }
    }
    Ok(())
}
