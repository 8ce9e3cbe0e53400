//! A container's environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource, FileKeySelector, Pod};
use windlass_volumes::{Mounted, NodeFacts, Objects, downward, read_beneath};

use super::env_file;
use super::expansion::expand;

/// The most that a file of variables may hold.
const FILE_MOST: u64 = 1 << 20;

/// Where values come from.
pub(crate) struct Sources<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// Its addresses.
    pub(crate) pod_ips: &'a [String],
    /// The node.
    pub(crate) node: &'a NodeFacts,
    /// ConfigMaps and Secrets.
    pub(crate) objects: &'a dyn Objects,
    /// The pod's volumes, by their names.
    pub(crate) volumes: &'a BTreeMap<String, Mounted>,
    /// Variables of services; anything that the container says itself goes before them.
    pub(crate) services: BTreeMap<String, String>,
}

/// All variables of a container. An error is for the user: something that the container
/// refers to is missing.
pub(crate) async fn variables(
    sources: &Sources<'_>,
    container: &Container,
) -> Result<BTreeMap<String, String>, String> {
    let mut variables = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        import(sources, from, &mut variables).await?;
    }
    for env in container.env.iter().flatten() {
        let value = match &env.value_from {
            Some(from) => value_from(sources, container, from).await?,
            None => {
                let text = env.value.as_deref().unwrap_or_default();
                let lookup = |name: &str| {
                    variables
                        .get(name)
                        .or_else(|| sources.services.get(name))
                        .cloned()
                };
                Some(expand(text, &lookup))
            }
        };
        if let Some(value) = value {
            variables.insert(env.name.clone(), value);
        }
    }
    for (name, value) in &sources.services {
        variables
            .entry(name.clone())
            .or_insert_with(|| value.clone());
    }
    Ok(variables)
}

async fn import(
    sources: &Sources<'_>,
    from: &EnvFromSource,
    variables: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    let namespace = namespace(sources);
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let mut add = |key: &str, value: String| {
        let name = format!("{prefix}{key}");
        if !name.is_empty() && !name.contains(['=', '\0']) {
            variables.insert(name, value);
        }
    };
    if let Some(reference) = &from.config_map_ref {
        match fetched(sources.objects.config_map(namespace, &reference.name).await)? {
            Some(map) => {
                for (key, value) in map.data.iter().flatten() {
                    add(key, value.clone());
                }
            }
            None if reference.optional == Some(true) => {}
            None => return Err(format!("configmap {:?} not found", reference.name)),
        }
    }
    if let Some(reference) = &from.secret_ref {
        match fetched(sources.objects.secret(namespace, &reference.name).await)? {
            Some(secret) => {
                for (key, value) in secret.data.iter().flatten() {
                    add(key, String::from_utf8_lossy(&value.0).into_owned());
                }
            }
            None if reference.optional == Some(true) => {}
            None => return Err(format!("secret {:?} not found", reference.name)),
        }
    }
    Ok(())
}

/// None if the source is optional and not there.
async fn value_from(
    sources: &Sources<'_>,
    container: &Container,
    from: &EnvVarSource,
) -> Result<Option<String>, String> {
    let namespace = namespace(sources);
    if let Some(field) = &from.field_ref {
        let value = downward::field(
            sources.pod,
            sources.pod_ips,
            sources.node,
            &field.field_path,
        );
        return value.map(Some).map_err(|error| error.to_string());
    }
    if let Some(selector) = &from.resource_field_ref {
        let other = selector
            .container_name
            .as_deref()
            .filter(|name| !name.is_empty());
        let container = match other {
            Some(name) => crate::model::slot(sources.pod, name)
                .map(|slot| slot.container.into_owned())
                .ok_or_else(|| format!("container {name:?} not found in the pod"))?,
            None => container.clone(),
        };
        let value = downward::resource(&container, sources.node, selector);
        return value.map(Some).map_err(|error| error.to_string());
    }
    if let Some(reference) = &from.config_map_key_ref {
        let found = fetched(sources.objects.config_map(namespace, &reference.name).await)?;
        let optional = reference.optional == Some(true);
        let Some(map) = found else {
            let missing = format!("configmap {:?} not found", reference.name);
            return if optional { Ok(None) } else { Err(missing) };
        };
        let value = map
            .data
            .as_ref()
            .and_then(|data| data.get(&reference.key))
            .cloned();
        return match value {
            None if !optional => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            )),
            value => Ok(value),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let found = fetched(sources.objects.secret(namespace, &reference.name).await)?;
        let optional = reference.optional == Some(true);
        let Some(secret) = found else {
            let missing = format!("secret {:?} not found", reference.name);
            return if optional { Ok(None) } else { Err(missing) };
        };
        let value = secret
            .data
            .as_ref()
            .and_then(|data| data.get(&reference.key));
        return match value {
            None if !optional => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                reference.key, reference.name
            )),
            value => Ok(value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())),
        };
    }
    if let Some(reference) = &from.file_key_ref {
        return from_file(sources, reference);
    }
    Err("an environment variable's source is none that this agent knows".to_owned())
}

fn from_file(sources: &Sources<'_>, reference: &FileKeySelector) -> Result<Option<String>, String> {
    let FileKeySelector { key, path, .. } = reference;
    let volume = sources.volumes.get(&reference.volume_name);
    let volume =
        volume.ok_or_else(|| format!("no volume {:?} in the pod", reference.volume_name))?;
    let text = fetched(read_beneath(&volume.path, path, FILE_MOST))?;
    let value = match &text {
        Some(text) => env_file::value(&String::from_utf8_lossy(text), key)
            .map_err(|error| format!("{path:?}: {error}"))?,
        None => None,
    };
    if value.is_none() && reference.optional != Some(true) {
        return Err(format!(
            "environment variable key {key:?} not found in file {path:?}"
        ));
    }
    Ok(value)
}

fn namespace<'a>(sources: &Sources<'a>) -> &'a str {
    sources
        .pod
        .metadata
        .namespace
        .as_deref()
        .unwrap_or("default")
}

fn fetched<T>(result: windlass_volumes::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
    use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
    use serde_json::json;
    use windlass_volumes::{Result as VolumeResult, Token, TokenSpec};

    use super::*;

    struct Fixed;

    #[async_trait]
    impl Objects for Fixed {
        async fn config_map(&self, _: &str, name: &str) -> VolumeResult<Option<Arc<ConfigMap>>> {
            let map = json!({"data": {"color": "blue", "A": "from-map"}});
            Ok((name == "map").then(|| Arc::new(serde_json::from_value(map).unwrap())))
        }

        async fn secret(&self, _: &str, name: &str) -> VolumeResult<Option<Arc<Secret>>> {
            let secret = json!({"data": {"password": "aHVudGVyMg=="}});
            Ok((name == "secret").then(|| Arc::new(serde_json::from_value(secret).unwrap())))
        }

        async fn claim(
            &self,
            _: &str,
            _: &str,
        ) -> VolumeResult<Option<Arc<PersistentVolumeClaim>>> {
            Ok(None)
        }

        async fn persistent_volume(&self, _: &str) -> VolumeResult<Option<Arc<PersistentVolume>>> {
            Ok(None)
        }

        async fn token(&self, _: &TokenSpec) -> VolumeResult<Token> {
            Ok(Token {
                token: String::new(),
                renew_at: Timestamp::MAX,
                expires_at: Timestamp::MAX,
            })
        }

        async fn csi_driver(&self, _: &str) -> VolumeResult<Option<Arc<CSIDriver>>> {
            Ok(None)
        }

        async fn attachment(&self, _: &str, _: &str) -> VolumeResult<Option<VolumeAttachment>> {
            Ok(None)
        }

        async fn expanded(&self, _: &str, _: &str, _: &str) -> VolumeResult<()> {
            Ok(())
        }
    }

    async fn told(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vars"), "A='1'\nB='2'\n").unwrap();
        let volume = Mounted::folder(folder.path().to_owned());
        let container: Container = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"}, "spec": {"containers": []},
        }))
        .unwrap();
        let sources = Sources {
            pod: &pod,
            pod_ips: &["10.0.0.5".to_owned()],
            node: &NodeFacts {
                name: "n1".into(),
                ..NodeFacts::default()
            },
            objects: &Fixed,
            volumes: &[("work".to_owned(), volume)].into(),
            services: [("DB_SERVICE_HOST".to_owned(), "10.96.0.2".to_owned())].into(),
        };
        variables(&sources, &container).await
    }

    #[tokio::test]
    async fn values_come_from_everywhere_and_later_ones_win() {
        let variables = told(json!({"name": "c",
            "envFrom": [
                {"configMapRef": {"name": "map"}},
                {"prefix": "S_", "secretRef": {"name": "secret"}},
                {"configMapRef": {"name": "absent", "optional": true}},
            ],
            "env": [
                {"name": "A", "value": "own"},
                {"name": "B", "value": "$(A) $(color) $(DB_SERVICE_HOST) $(LATER) $$(A)"},
                {"name": "LATER", "value": "x"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "P", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "password"}}},
                {"name": "O", "valueFrom": {
                    "configMapKeyRef": {"name": "map", "key": "absent", "optional": true},
                }},
                {"name": "F", "valueFrom": {
                    "fileKeyRef": {"volumeName": "work", "path": "vars", "key": "B"},
                }},
                {"name": "OF", "valueFrom": {"fileKeyRef":
                    {"volumeName": "work", "path": "absent", "key": "B", "optional": true},
                }},
            ],
        }))
        .await
        .unwrap();
        assert_eq!(variables["A"], "own");
        assert_eq!(variables["B"], "own blue 10.96.0.2 $(LATER) $(A)");
        assert_eq!(variables["S_password"], "hunter2");
        assert_eq!(variables["IP"], "10.0.0.5");
        assert_eq!(variables["NODE"], "n1");
        assert_eq!(variables["P"], "hunter2");
        assert_eq!(variables["DB_SERVICE_HOST"], "10.96.0.2");
        assert_eq!(variables["F"], "2");
        assert!(!variables.contains_key("O") && !variables.contains_key("OF"));
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let env = |from: serde_json::Value| {
            told(json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]}))
        };
        for (from, expected) in [
            (
                json!({"configMapKeyRef": {"name": "absent", "key": "k"}}),
                "configmap \"absent\" not found",
            ),
            (
                json!({"configMapKeyRef": {"name": "map", "key": "k"}}),
                "couldn't find key k in ConfigMap shop/map",
            ),
            (
                json!({"secretKeyRef": {"name": "secret", "key": "k"}}),
                "couldn't find key k in Secret shop/secret",
            ),
            (
                json!({"fileKeyRef": {"volumeName": "work", "path": "vars", "key": "C"}}),
                "environment variable key \"C\" not found in file \"vars\"",
            ),
        ] {
            assert_eq!(env(from).await.unwrap_err(), expected);
        }
    }
}
