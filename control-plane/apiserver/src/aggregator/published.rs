//! What a server behind this one needs to believe it: the ConfigMap `extension-apiserver-authentication` in
//! `kube-system`, and the Role that lets it be read.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use super::FrontProxy;
use crate::server::ApiServer;

const NAME: &str = "extension-apiserver-authentication";
const ROLE: &str = "extension-apiserver-authentication-reader";
const INTERVAL: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);

/// Keeps both for ever.
pub(super) async fn keep(server: &Arc<ApiServer>) {
    loop {
        let Some(front_proxy) = server.aggregator.front_proxy.load_full() else {
            return;
        };
        let pause = match publish(server, &front_proxy).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "{NAME} could not be published");
                RETRY
            }
        };
        // Early, when keys have rotated.
        let _ = tokio::time::timeout(pause, server.aggregator.renewed.notified()).await;
    }
}

async fn publish(server: &Arc<ApiServer>, front_proxy: &FrontProxy) -> Result<(), ApiError> {
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": "kube-system"},
        "data": {
            "client-ca-file": front_proxy.client_ca_pem,
            "requestheader-allowed-names": "[\"front-proxy-client\"]",
            "requestheader-client-ca-file": front_proxy.ca_pem,
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
        },
    });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {
            "name": ROLE, "namespace": "kube-system",
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
        "rules": [{
            "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME],
            "verbs": ["get", "list", "watch"],
        }],
    });
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles";
    ensure(
        server,
        "/api/v1/namespaces/kube-system/configmaps",
        &config,
        "data",
    )
    .await?;
    ensure(server, roles, &role, "rules").await
}

/// Creates `wanted`, or repairs its `field`.
async fn ensure(
    server: &Arc<ApiServer>,
    path: &str,
    wanted: &Value,
    field: &str,
) -> Result<(), ApiError> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let own = format!("{path}/{name}");
    match server.call_self(Method::GET, &own, None).await {
        Ok(mut present) => {
            if present[field] == wanted[field] {
                return Ok(());
            }
            present[field] = wanted[field].clone();
            server.call_self(Method::PUT, &own, Some(&present)).await?;
            Ok(())
        }
        Err(error) if error.code == 404 => server.create_missing(path, wanted).await.map(drop),
        Err(error) => Err(error),
    }
}
