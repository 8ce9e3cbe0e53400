//! ServiceAccount: every pod runs as one, and gets a token for it as a projected volume.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Attributes, Plugin};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An odd number so that kubelet-made requests can be told apart, as upstream.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// A new namespace's default account is made by a controller: wait for it this long.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), ApiError> {
        if !attributes.creates_pod() {
            return Ok(());
        }
        if meta::annotation(pod, MIRROR_POD).is_some() {
            // It shows a pod of the node's own, which has no identity in the cluster.
            let account = pod["spec"]["serviceAccountName"]
                .as_str()
                .unwrap_or_default();
            return if account.is_empty() {
                Ok(())
            } else {
                Err(attributes.forbidden("a mirror pod may not reference service accounts"))
            };
        }
        let spec = &mut pod["spec"];
        if spec["serviceAccountName"]
            .as_str()
            .is_none_or(str::is_empty)
        {
            spec["serviceAccountName"] = DEFAULT.into();
        }
        let name = spec["serviceAccountName"]
            .as_str()
            .unwrap_or(DEFAULT)
            .to_owned();
        // The older name of the same field, which clients still read.
        spec["serviceAccount"] = name.as_str().into();
        let account = find(attributes, &name).await?;
        if spec["imagePullSecrets"]
            .as_array()
            .is_none_or(Vec::is_empty)
            && let Some(secrets) = account.get("imagePullSecrets").filter(|s| s.is_array())
        {
            spec["imagePullSecrets"] = secrets.clone();
        }
        let automount = spec["automountServiceAccountToken"]
            .as_bool()
            .or_else(|| account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if automount {
            mount_token(spec);
        }
        Ok(())
    }
}

async fn find(attributes: &Attributes<'_>, name: &str) -> Result<Value, ApiError> {
    let server = &attributes.context.server;
    let namespace = attributes.namespace;
    let accounts = server.cacher("", "serviceaccounts");
    let accounts = accounts.ok_or_else(|| ApiError::internal("serviceaccounts are not served"))?;
    let mut revision = server.caches.wait_current().await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(entry) = accounts.get(namespace, name) {
            return entry.decode();
        }
        revision = revision.next();
        let next = server.caches.wait_for(revision);
        if name != DEFAULT || tokio::time::timeout_at(deadline, next).await.is_err() {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            return Err(attributes.forbidden(&why));
        }
    }
}

/// Adds the projected volume and mounts it into every container that has nothing at the path.
fn mount_token(spec: &mut Value) {
    let named = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|volume| {
            let name = volume["name"].as_str()?;
            (name.starts_with(VOLUME_PREFIX) && volume["projected"].is_object())
                .then(|| name.to_owned())
        });
    let fresh = named.is_none();
    let name = named.unwrap_or_else(|| meta::generate_name(VOLUME_PREFIX, rand::random()));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers {
            let mounts = container["volumeMounts"].as_array().into_iter().flatten();
            if mounts
                .into_iter()
                .any(|mount| mount["mountPath"] == MOUNT_PATH)
            {
                continue;
            }
            let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            mounted = true;
        }
    }
    if !mounted || !fresh {
        return;
    }
    let volume = json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    });
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => spec["volumes"] = json!([volume]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_mounted_where_nothing_else_is() {
        let mut spec = json!({"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
        ]});
        mount_token(&mut spec);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(
            spec["containers"][0]["volumeMounts"][0]["name"],
            spec["volumes"][0]["name"]
        );
        assert_eq!(
            spec["containers"][1]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        let before = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, before, "once is enough");
    }
}
