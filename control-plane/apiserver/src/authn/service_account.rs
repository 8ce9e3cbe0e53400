//! ServiceAccount tokens: JSON Web Tokens bound to the account and, usually, to a pod.
//!
//! Issued by the TokenRequest API (KEP-1205) and verified here. A token is as good as what it is bound to: it
//! ends with its account or pod, so verification looks both up (through [`BoundObjects`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::Validation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::UserInfo;
use super::account_keys::AccountKeys;
use super::legacy_tracking::{INVALID_SINCE, LAST_USED, Used, day};

/// Says whether an object that a token is bound to still exists.
pub trait BoundObjects: Send + Sync {
    /// The uid of `serviceaccounts`, `pods`, `secrets` or `nodes` `namespace`/`name`, if it exists and is not
    /// being deleted beyond its grace period.
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String>;

    /// A label of a Secret.
    fn secret_label(&self, namespace: &str, name: &str, label: &str) -> Option<String>;
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("no private key is there")]
    NoKey,
    #[error("key: {0}; EC keys of P-256 and P-384 in PKCS#8 and RSA keys can be used")]
    Key(jsonwebtoken::errors::Error),
    #[error("token cannot be signed: {0}")]
    Sign(jsonwebtoken::errors::Error),
    #[error("not a token of this cluster: {0}")]
    Verify(#[from] jsonwebtoken::errors::Error),
    #[error("token has expired")]
    Expired,
    #[error("token is for the audiences {0:?}")]
    Audience(Vec<String>),
    #[error("token carries no service account")]
    NoAccount,
    #[error("the token in secret {namespace}/{secret} was unused for too long")]
    Invalidated { namespace: String, secret: String },
    #[error("{resource} {namespace}/{name} that the token is bound to does not exist any more")]
    Gone {
        resource: &'static str,
        namespace: String,
        name: String,
    },
}

/// An object's name and uid in the private claims.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ObjectRef {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// What a token is asked for.
#[derive(Clone, Debug)]
pub struct TokenParameters {
    pub namespace: String,
    pub service_account: ObjectRef,
    pub pod: Option<ObjectRef>,
    /// The node that the pod is bound to.
    pub node: Option<ObjectRef>,
    pub secret: Option<ObjectRef>,
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
}

/// What somebody who runs a server lets tokens live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Longer ones are shortened.
    pub most_seconds: Option<i64>,
    /// Whether pods' tokens are good for longer than they say, for programs that never read theirs again.
    pub extend: bool,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            most_seconds: None,
            extend: true,
        }
    }
}

/// What kubelets ask for, for programs of which it is not known whether they read a token again (KEP-1205).
const PATIENT_SECONDS: i64 = 60 * 60 + 7;
/// How long such a token is good in truth.
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    iss: String,
    jti: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    private: Option<Private>,
}

#[derive(Serialize, Deserialize)]
struct Private {
    namespace: String,
    serviceaccount: ObjectRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<ObjectRef>,
    /// When the token should have been read again, where it is good for longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

/// The issuer of tokens that lie in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// The claims of a token that lies in a Secret. The Secret's uid is our own addition: a Secret that was made anew
/// under the same name does not bring the old token back.
#[derive(Serialize, Deserialize)]
struct LegacyClaims {
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.uid")]
    secret_uid: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    account_uid: String,
}

/// Issues and verifies ServiceAccount tokens.
pub struct ServiceAccountTokens {
    /// The first one issues, all are believed.
    issuers: Vec<String>,
    audiences: Vec<String>,
    keys: ArcSwap<AccountKeys>,
    objects: Arc<dyn BoundObjects>,
    pub(crate) lifetimes: Lifetimes,
    pub(super) used: Used,
}

impl ServiceAccountTokens {
    /// `issuer` is also the API server's audience.
    pub fn new(keys: AccountKeys, issuer: &str, objects: Arc<dyn BoundObjects>) -> Self {
        Self {
            issuers: vec![issuer.to_owned()],
            audiences: vec![issuer.to_owned()],
            keys: ArcSwap::from_pointee(keys),
            objects,
            lifetimes: Lifetimes::default(),
            used: Used::default(),
        }
    }

    /// Believes these issuers besides its own, and takes `audiences` for the API server's; all issuers where there are none.
    #[must_use]
    pub fn accepting(mut self, issuers: &[String], audiences: &[String]) -> Self {
        self.issuers.extend_from_slice(issuers);
        self.audiences = match audiences {
            [] => self.issuers.clone(),
            stated => stated.to_vec(),
        };
        self
    }

    #[must_use]
    pub fn living(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// Believes `keys` from now on beside those that are in use, which go on signing.
    pub fn expect(&self, keys: &AccountKeys) {
        self.keys.rcu(|present| present.towards(keys));
    }

    /// Signs and verifies by `keys` alone from now on.
    pub(crate) fn use_keys(&self, keys: AccountKeys) {
        self.keys.store(Arc::new(keys));
    }

    pub fn issuer(&self) -> &str {
        &self.issuers[0]
    }

    /// The audiences that mean the API server itself.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// What `/openid/v1/jwks` serves.
    pub(crate) fn key_set(&self) -> Value {
        json!(self.keys.load().public())
    }

    /// What `/.well-known/openid-configuration` serves.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer(),
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.keys.load().algorithms(),
        })
    }

    /// Signs a token; `id` becomes its `jti`. Answers the token and when it is to be read again, in seconds of the Unix epoch.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(
        &self,
        parameters: TokenParameters,
        id: String,
        now: i64,
    ) -> Result<(String, i64), TokenError> {
        let TokenParameters {
            namespace,
            service_account,
            pod,
            node,
            secret,
            audiences,
            expiration_seconds,
        } = parameters;
        let told = now + expiration_seconds;
        let extended = self.lifetimes.extend
            && pod.is_some()
            && expiration_seconds == PATIENT_SECONDS
            && audiences.iter().all(|it| self.audiences.contains(it));
        let claims = Claims {
            aud: audiences,
            exp: if extended {
                now + EXTENDED_SECONDS
            } else {
                told
            },
            iat: now,
            nbf: now,
            iss: self.issuer().to_owned(),
            jti: id,
            sub: format!("system:serviceaccount:{namespace}:{}", service_account.name),
            private: Some(Private {
                namespace,
                serviceaccount: service_account,
                pod,
                node,
                secret,
                warnafter: extended.then_some(told),
            }),
        };
        Ok((self.keys.load().sign(&claims)?, told))
    }

    /// Signs a token that is good for as long as the Secret that holds it and the account exist.
    ///
    /// # Errors
    /// When signing fails.
    pub(crate) fn issue_for_secret(
        &self,
        namespace: &str,
        account: &ObjectRef,
        secret: &ObjectRef,
    ) -> Result<String, TokenError> {
        let claims = LegacyClaims {
            iss: LEGACY_ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
            namespace: namespace.to_owned(),
            secret: secret.name.clone(),
            secret_uid: secret.uid.clone(),
            account: account.name.clone(),
            account_uid: account.uid.clone(),
        };
        self.keys.load().sign(&claims)
    }

    /// The identity behind a token that lies in a Secret; `None` for a token of another form.
    fn verify_legacy(
        &self,
        token: &str,
        now: i64,
    ) -> Option<Result<(UserInfo, Vec<String>), TokenError>> {
        let keys = self.keys.load();
        let decoded = keys.verify::<LegacyClaims>(token, |validation| {
            validation.set_issuer(&[LEGACY_ISSUER]);
            validation.set_required_spec_claims::<&str>(&[]);
            validation.validate_exp = false;
            validation.validate_aud = false;
        });
        let claims = decoded.ok()?;
        let object = |name: &str, uid: &str| ObjectRef {
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        let account = object(&claims.account, &claims.account_uid);
        let secret = object(&claims.secret, &claims.secret_uid);
        let held = self
            .still_there("serviceaccounts", &claims.namespace, Some(&account))
            .and_then(|()| self.still_there("secrets", &claims.namespace, Some(&secret)))
            .and_then(|()| self.note_use(&claims.namespace, &secret.name, now));
        Some(held.map(|()| {
            let user = UserInfo::service_account(&claims.namespace, &account.name, &account.uid);
            (user, self.audiences.clone())
        }))
    }

    /// Refuses a token that was marked as unused for too long, and has the day of this use written down.
    fn note_use(&self, namespace: &str, secret: &str, now: i64) -> Result<(), TokenError> {
        let label = |label| self.objects.secret_label(namespace, secret, label);
        if label(INVALID_SINCE).is_some_and(|since| !since.is_empty()) {
            return Err(TokenError::Invalidated {
                namespace: namespace.to_owned(),
                secret: secret.to_owned(),
            });
        }
        if label(LAST_USED) != Some(day(now)) {
            self.used.note(namespace, secret);
        }
        Ok(())
    }

    /// The identity behind a token that is for one of `audiences`, and for which of them it is.
    ///
    /// # Errors
    /// When the signature, time, audience or a bound object does not hold.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Result<(UserInfo, Vec<String>), TokenError> {
        // They name no audience and are for the API server only.
        if audiences.iter().any(|a| self.audiences.contains(a))
            && let Some(verdict) = self.verify_legacy(token, now)
        {
            return verdict;
        }
        let validate = |validation: &mut Validation| {
            validation.set_issuer(&self.issuers);
            // Time is checked below against the caller's clock, audiences in our own words.
            validation.validate_exp = false;
            validation.validate_aud = false;
        };
        let claims: Claims = self.keys.load().verify(token, validate)?;
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        let mut meant = claims.aud.clone();
        meant.retain(|audience| audiences.contains(audience));
        if meant.is_empty() {
            return Err(TokenError::Audience(claims.aud));
        }
        let private = claims.private.ok_or(TokenError::NoAccount)?;
        let account = &private.serviceaccount;
        self.still_there("serviceaccounts", &private.namespace, Some(account))?;
        self.still_there("pods", &private.namespace, private.pod.as_ref())?;
        self.still_there("secrets", &private.namespace, private.secret.as_ref())?;
        // A pod's token tells of its node; only a token without a pod is tied to one.
        let node = private.node.as_ref().filter(|_| private.pod.is_none());
        self.still_there("nodes", "", node)?;

        if private.warnafter.is_some_and(|then| now > then) {
            tracing::debug!(
                namespace = private.namespace,
                name = account.name,
                pod = private.pod.as_ref().map(|pod| &pod.name),
                "token is good for longer than its pod should have used it"
            );
        }
        let mut user = UserInfo::service_account(&private.namespace, &account.name, &account.uid);
        user.extra = extra(&private, &claims.jti);
        Ok((user, meant))
    }

    fn still_there(
        &self,
        resource: &'static str,
        namespace: &str,
        object: Option<&ObjectRef>,
    ) -> Result<(), TokenError> {
        let Some(object) = object else { return Ok(()) };
        match self.objects.uid(resource, namespace, &object.name) {
            Some(uid) if object.uid.is_empty() || uid == object.uid => Ok(()),
            _ => Err(TokenError::Gone {
                resource,
                namespace: namespace.to_owned(),
                name: object.name.clone(),
            }),
        }
    }
}

/// The `authentication.kubernetes.io/*` extras that upstream adds (KEP-4193).
fn extra(private: &Private, token_id: &str) -> BTreeMap<String, Vec<String>> {
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        }
    };
    if !token_id.is_empty() {
        add("credential-id", &format!("JTI={token_id}"));
    }
    if let Some(pod) = &private.pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        add("node-name", &node.name);
        add("node-uid", &node.uid);
    }
    extra
}
