//! The `EncryptionConfiguration` file: which resources, by which providers.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::cipher::{Key, Provider};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the encryption configuration cannot be read: {0}")]
    Unreadable(String),
    #[error("it is no apiserver.config.k8s.io/v1 EncryptionConfiguration")]
    OtherKind,
    #[error("resources[{0}] names no resources or no providers")]
    Empty(usize),
    #[error("provider {0:?} is not known here: use aesgcm, aescbc or identity")]
    UnknownProvider(String),
    #[error("key {name:?}: {why}")]
    Key { name: String, why: String },
    #[error("the store cannot be asked: {0}")]
    Store(windlass_store::StoreError),
}

/// Providers by the resources that they are for, in the order of the file.
pub(super) struct Config {
    entries: Vec<(Vec<String>, Vec<Provider>)>,
}

impl Config {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let decoded = windlass_machinery::yaml::decode(text.as_bytes());
        let config = decoded
            .map_err(|e| ConfigError::Unreadable(e.to_string()))?
            .value;
        if config["kind"] != "EncryptionConfiguration"
            || config["apiVersion"] != "apiserver.config.k8s.io/v1"
        {
            return Err(ConfigError::OtherKind);
        }
        let mut entries = Vec::new();
        for (index, entry) in list(&config["resources"]).iter().enumerate() {
            let resources: Vec<String> = list(&entry["resources"])
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect();
            let providers = list(&entry["providers"])
                .iter()
                .map(provider)
                .collect::<Result<Vec<_>, _>>()?;
            if resources.is_empty() || providers.is_empty() {
                return Err(ConfigError::Empty(index));
            }
            entries.push((resources, providers));
        }
        Ok(Self { entries })
    }

    /// The providers of `secrets`, `deployments.apps`, …; none where nothing is enciphered.
    pub(super) fn providers(&self, resource: &str) -> &[Provider] {
        let group = resource.split_once('.').map_or("", |(_, group)| group);
        let names = |pattern: &String| {
            let of_group = pattern
                .strip_prefix("*.")
                .is_some_and(|wanted| wanted == "*" || wanted == group);
            // `*.` is everything of the core group.
            pattern == resource || of_group || (pattern == "*." && group.is_empty())
        };
        let found = self
            .entries
            .iter()
            .find(|(resources, _)| resources.iter().any(names));
        found.map_or(&[], |(_, providers)| providers)
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn provider(value: &Value) -> Result<Provider, ConfigError> {
    let (name, body) = value
        .as_object()
        .and_then(|map| map.iter().next())
        .ok_or_else(|| ConfigError::UnknownProvider(value.to_string()))?;
    let keys = || -> Result<Vec<Key>, ConfigError> {
        let mut seen = HashMap::new();
        let keys = list(&body["keys"]).iter().map(|key| {
            let name = key["name"].as_str().unwrap_or_default();
            let wrong = |why: String| ConfigError::Key {
                name: name.to_owned(),
                why,
            };
            if name.is_empty() || name.contains(':') || seen.insert(name, ()).is_some() {
                return Err(wrong(
                    "a key needs a name of its own without colons".to_owned(),
                ));
            }
            let secret = STANDARD.decode(key["secret"].as_str().unwrap_or_default());
            let secret = secret.map_err(|e| wrong(e.to_string()))?;
            Key::new(name, secret).map_err(|e| wrong(e.to_string()))
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(ConfigError::Key {
                name: String::new(),
                why: "at least one key is needed".to_owned(),
            });
        }
        Ok(keys)
    };
    match name.as_str() {
        "identity" => Ok(Provider::Identity),
        "aescbc" => Ok(Provider::AesCbc(keys()?)),
        "aesgcm" => Ok(Provider::AesGcm(keys()?)),
        other => Err(ConfigError::UnknownProvider(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_one_by_one_or_by_group() {
        let text = "
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets, '*.apps']
  providers:
  - aesgcm: {keys: [{name: a, secret: AAAAAAAAAAAAAAAAAAAAAA==}]}
  - identity: {}
";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.providers("secrets").len(), 2);
        assert_eq!(config.providers("deployments.apps").len(), 2);
        assert!(config.providers("configmaps").is_empty());
        assert!(Config::parse(&text.replace("aesgcm", "kms")).is_err());
        assert!(Config::parse(&text.replace("AAAAAAAAAAAAAAAAAAAAAA==", "AAAA")).is_err());
    }
}
