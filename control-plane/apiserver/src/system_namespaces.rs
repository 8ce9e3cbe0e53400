//! The namespaces that every cluster has.

use std::sync::Arc;

use http::Method;
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
        match server
            .call_self(Method::POST, "/api/v1/namespaces", Some(&object))
            .await
        {
            Ok(_) => tracing::info!(name, "namespace created"),
            // Another server was faster.
            Err(error) if error.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
