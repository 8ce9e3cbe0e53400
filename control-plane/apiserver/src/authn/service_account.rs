//! ServiceAccount tokens: JSON Web Tokens bound to the account and, usually, to a pod.
//!
//! Issued by the TokenRequest API (KEP-1205) and verified here. A token is as good as what it is bound to: it
//! ends with its account or pod, so verification looks both up (through [`BoundObjects`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::UserInfo;

/// Says whether an object that a token is bound to still exists.
pub trait BoundObjects: Send + Sync {
    /// The uid of `serviceaccounts`, `pods`, `secrets` or `nodes` `namespace`/`name`, if it exists and is not
    /// being deleted beyond its grace period.
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String>;
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("signing key: {0}")]
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
    /// Empty: the API server's own audiences.
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
}

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

/// Issues and verifies ServiceAccount tokens with one ES256 key.
pub struct ServiceAccountTokens {
    issuer: String,
    audiences: Vec<String>,
    key_id: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    jwk: Jwk,
    objects: Arc<dyn BoundObjects>,
}

impl ServiceAccountTokens {
    /// `private_pem` is a PKCS#8 P-256 key; `issuer` is also the API server's audience.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn new(
        private_pem: &[u8],
        issuer: &str,
        objects: Arc<dyn BoundObjects>,
    ) -> Result<Self, TokenError> {
        let encoding = EncodingKey::from_ec_pem(private_pem).map_err(TokenError::Key)?;
        let mut jwk =
            Jwk::from_encoding_key(&encoding, Algorithm::ES256).map_err(TokenError::Key)?;
        let key_id = jwk
            .thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256)
            .map_err(TokenError::Key)?;
        jwk.common.key_id = Some(key_id.clone());
        jwk.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        let decoding = DecodingKey::from_jwk(&jwk).map_err(TokenError::Key)?;
        Ok(Self {
            issuer: issuer.to_owned(),
            audiences: vec![issuer.to_owned()],
            key_id,
            encoding,
            decoding,
            jwk,
            objects,
        })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences that mean the API server itself.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// What `/openid/v1/jwks` serves.
    pub fn key_set(&self) -> Value {
        json!(JwkSet {
            keys: vec![self.jwk.clone()]
        })
    }

    /// What `/.well-known/openid-configuration` serves.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// Signs a token; `id` becomes its `jti`. Answers the token and its expiry in seconds of the Unix epoch.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(
        &self,
        parameters: TokenParameters,
        id: String,
        now: i64,
    ) -> Result<(String, i64), TokenError> {
        let expires = now + parameters.expiration_seconds;
        let TokenParameters {
            namespace,
            service_account,
            pod,
            node,
            secret,
            audiences,
            ..
        } = parameters;
        let claims = Claims {
            aud: if audiences.is_empty() {
                self.audiences.clone()
            } else {
                audiences
            },
            exp: expires,
            iat: now,
            nbf: now,
            iss: self.issuer.clone(),
            jti: id,
            sub: format!("system:serviceaccount:{namespace}:{}", service_account.name),
            private: Some(Private {
                namespace,
                serviceaccount: service_account,
                pod,
                node,
                secret,
            }),
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        let token =
            jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(TokenError::Sign)?;
        Ok((token, expires))
    }

    /// Signs a token that is good for as long as the Secret that holds it and the account exist.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_for_secret(
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
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(TokenError::Sign)
    }

    /// The identity behind a token that lies in a Secret; `None` for a token of another form.
    fn verify_legacy(&self, token: &str) -> Option<Result<UserInfo, TokenError>> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[LEGACY_ISSUER]);
        validation.set_required_spec_claims::<&str>(&[]);
        validation.validate_exp = false;
        validation.validate_aud = false;
        let decoded = jsonwebtoken::decode::<LegacyClaims>(token, &self.decoding, &validation);
        let claims = decoded.ok()?.claims;
        let object = |name: &str, uid: &str| ObjectRef {
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        let account = object(&claims.account, &claims.account_uid);
        let secret = object(&claims.secret, &claims.secret_uid);
        let held = self
            .still_there("serviceaccounts", &claims.namespace, Some(&account))
            .and_then(|()| self.still_there("secrets", &claims.namespace, Some(&secret)));
        Some(
            held.map(|()| {
                UserInfo::service_account(&claims.namespace, &account.name, &account.uid)
            }),
        )
    }

    /// The identity behind a token. With no `audiences` the API server's own are required, else one of those.
    ///
    /// # Errors
    /// When the signature, time, audience or a bound object does not hold.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Result<UserInfo, TokenError> {
        // They name no audience and are for the API server only.
        if (audiences.is_empty() || audiences.iter().any(|a| self.audiences.contains(a)))
            && let Some(verdict) = self.verify_legacy(token)
        {
            return verdict;
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        // Time is checked below against the caller's clock, audiences in our own words.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims;
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        let wanted = if audiences.is_empty() {
            &self.audiences
        } else {
            audiences
        };
        if !claims.aud.iter().any(|a| wanted.contains(a)) {
            return Err(TokenError::Audience(claims.aud));
        }
        let private = claims.private.ok_or(TokenError::NoAccount)?;
        let account = &private.serviceaccount;
        self.still_there("serviceaccounts", &private.namespace, Some(account))?;
        self.still_there("pods", &private.namespace, private.pod.as_ref())?;
        self.still_there("secrets", &private.namespace, private.secret.as_ref())?;

        let mut user = UserInfo::service_account(&private.namespace, &account.name, &account.uid);
        user.extra = extra(&private, &claims.jti);
        Ok(user)
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
