//! Bootstrap tokens: removes expired ones, and signs the `cluster-info` ConfigMap with each that may, so
//! that a node that knows only a token can tell the true cluster from a false one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use tracing::{info, warn};
use windlass_informers::{Informer, Key};

use crate::runtime::{Context, Controller, Outcome, Queue, Result, delete, patch, run_workers};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PUBLIC: &str = "kube-public";
const INFO: &str = "cluster-info";
const SIGNED: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

struct Cleaner {
    context: Context,
    secrets: Arc<Informer<Secret>>,
}

struct Signer {
    context: Context,
    secrets: Arc<Informer<Secret>>,
    maps: Arc<Informer<ConfigMap>>,
}

pub(crate) async fn start_cleaner(context: Context) {
    let queue = Queue::new();
    let (secrets,) = context.synced::<(Secret,)>().await;
    let _own = queue.follow_to(&secrets, |it| is_token(it).then(|| Key::of(it)));
    let controller = Arc::new(Cleaner {
        context: context.clone(),
        secrets,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

pub(crate) async fn start_signer(context: Context) {
    let queue = Queue::new();
    let (secrets, maps) = context.synced::<(Secret, ConfigMap)>().await;
    let info = || Key::new(PUBLIC, INFO);
    let of_secrets = Arc::clone(&queue);
    let _of_secrets = secrets.on_change(move |change| {
        if is_token(change.object()) {
            of_secrets.add(info());
        }
    });
    let own = Arc::clone(&queue);
    let _own = maps.on_change(move |change| {
        if Key::of(change.object().as_ref()) == info() {
            own.add(info());
        }
    });
    let controller = Arc::new(Signer {
        context: context.clone(),
        secrets,
        maps,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE) && secret.namespace().as_deref() == Some(NAMESPACE)
}

fn field<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(name)?.0).ok()
}

/// How long a token has left; `None` for one without end. One whose end cannot be read has ended.
fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = field(secret, "expiration").filter(|text| !text.is_empty())?;
    let end: Timestamp = text.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

impl Controller for Cleaner {
    type Key = Key;
    const NAME: &'static str = "token-cleaner";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(secret) = self.secrets.by_key(key) else {
            return Ok(Outcome::Done);
        };
        match left(&secret, Timestamp::now()) {
            None => Ok(Outcome::Done),
            Some(left) if !left.is_zero() => Ok(Outcome::Again(left)),
            Some(_) => {
                info!(name = key.name, "bootstrap token has expired");
                delete(&self.context.api(&key.namespace), secret.as_ref()).await?;
                Ok(Outcome::Done)
            }
        }
    }
}

/// Id and secret of a token that may sign.
fn signing(secret: &Secret, now: Timestamp) -> Option<(&str, String)> {
    let allowed = field(secret, "usage-bootstrap-signing") == Some("true");
    let alive = left(secret, now).is_none_or(|left| !left.is_zero());
    let (id, key) = (field(secret, "token-id")?, field(secret, "token-secret")?);
    (allowed && alive && secret.name_any() == format!("bootstrap-token-{id}"))
        .then(|| (id, format!("{id}.{key}")))
}

/// A JWS over `content` with the content left out (RFC 7515, appendix F).
fn detached(content: &str, id: &str, token: &str) -> Option<String> {
    let header = format!(r#"{{"alg":"HS256","kid":"{id}"}}"#);
    let protected = base64url(header.as_bytes());
    let message = format!("{protected}.{}", base64url(content.as_bytes()));
    let key = EncodingKey::from_secret(token.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    match signature {
        Ok(signature) => Some(format!("{protected}..{signature}")),
        Err(error) => {
            warn!(%error, token = id, "cluster-info not signed");
            None
        }
    }
}

fn base64url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

impl Controller for Signer {
    type Key = Key;
    const NAME: &'static str = "bootstrap-signer";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(map) = self.maps.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(content) = map.data.as_ref().and_then(|data| data.get(SIGNED)) else {
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let tokens = self.secrets.in_namespace(NAMESPACE);
        let signatures: BTreeMap<String, String> = tokens
            .iter()
            .filter(|secret| is_token(secret))
            .filter_map(|secret| signing(secret, now))
            .filter_map(|(id, token)| {
                Some((format!("{SIGNATURE}{id}"), detached(content, id, &token)?))
            })
            .collect();
        let mut updated = map.as_ref().clone();
        let data = updated.data.get_or_insert_default();
        data.retain(|name, _| !name.starts_with(SIGNATURE));
        data.extend(signatures);
        patch(&self.context.api(PUBLIC), map.as_ref(), &updated).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(fields: serde_json::Value) -> Secret {
        let encoded: BTreeMap<_, _> = fields
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| {
                use base64::Engine as _;
                let text = value.as_str().unwrap();
                (
                    name.clone(),
                    base64::engine::general_purpose::STANDARD.encode(text),
                )
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "bootstrap-token-abcdef",
            "namespace": NAMESPACE}, "type": TYPE, "data": encoded}))
        .unwrap()
    }

    #[test]
    fn a_token_ends_when_it_says_or_when_it_cannot_be_read() {
        let now = Timestamp::from_second(1000).unwrap();
        let at = |text: &str| left(&token(json!({"expiration": text})), now);
        assert_eq!(left(&token(json!({})), now), None);
        assert_eq!(at("1970-01-01T00:16:50Z"), Some(Duration::from_secs(10)));
        assert_eq!(at("1970-01-01T00:16:30Z"), Some(Duration::ZERO));
        assert_eq!(at("tomorrow"), Some(Duration::ZERO));
    }

    #[test]
    fn only_a_token_for_signing_signs() {
        let now = Timestamp::from_second(1000).unwrap();
        let fields = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-signing": "true"});
        let secret = token(fields.clone());
        let (id, whole) = signing(&secret, now).unwrap();
        assert_eq!((id, whole.as_str()), ("abcdef", "abcdef.0123456789abcdef"));
        let mut other = fields;
        other["usage-bootstrap-signing"] = json!("false");
        assert!(signing(&token(other), now).is_none());
    }

    #[test]
    fn a_signature_leaves_the_content_out() {
        let signature = detached("payload", "joshua", "my.key").unwrap();
        let parts: Vec<_> = signature.split('.').collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0], "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9");
        assert_eq!(parts[1], "");
        assert_ne!(
            detached("payload", "joshua", "my.other").unwrap(),
            signature
        );
        assert_ne!(detached("other", "joshua", "my.key").unwrap(), signature);
    }
}
