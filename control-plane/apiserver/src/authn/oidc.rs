//! Tokens of an OpenID Connect issuer, told apart from the cluster's own by their `iss`.
//!
//! Its keys are fetched in the background and again when a token names one that is not known; a request never
//! waits for the issuer.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, Uri};
use http_body_util::Full;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;
use tokio::sync::Notify;

use super::UserInfo;
use crate::outbound::{self, Route, Trust};

const REFRESH: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(10);
/// However many unknown keys tokens name.
const LEAST_PAUSE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 1 << 20;
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Whose tokens are accepted, and what becomes of their claims.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// `https://…`, as tokens name it.
    pub issuer: String,
    /// The audience that tokens must be for.
    pub client_id: String,
    pub username_claim: String,
    /// `None` is upstream's default: the issuer and `#`, but nothing before an e-mail address.
    pub username_prefix: Option<String>,
    pub groups_claim: Option<String>,
    pub groups_prefix: String,
    /// PEM of the authorities that may sign the issuer's certificate; empty: those that the machine trusts.
    pub ca_pem: Vec<u8>,
}

/// Verifies the tokens of one issuer.
pub struct Oidc {
    config: OidcConfig,
    keys: ArcSwap<JwkSet>,
    unknown_key: Notify,
}

impl Oidc {
    pub fn new(config: OidcConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            keys: ArcSwap::from_pointee(JwkSet { keys: Vec::new() }),
            unknown_key: Notify::new(),
        })
    }

    /// Fetches the issuer's keys, for ever.
    pub async fn keep_keys(self: Arc<Self>) {
        loop {
            let pause = match self.fetch().await {
                Ok(keys) => {
                    self.keys.store(Arc::new(keys));
                    REFRESH
                }
                Err(why) => {
                    tracing::warn!(
                        issuer = self.config.issuer,
                        why,
                        "no keys of the OIDC issuer"
                    );
                    RETRY
                }
            };
            tokio::time::sleep(LEAST_PAUSE.min(pause)).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.unknown_key.notified() => {}
            }
        }
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let issuer = self.config.issuer.trim_end_matches('/');
        let discovery = format!("{issuer}/.well-known/openid-configuration");
        let document: Value = self.get(&discovery).await?;
        if document["issuer"] != self.config.issuer.as_str() {
            return Err(format!("the issuer calls itself {}", document["issuer"]));
        }
        let keys = document["jwks_uri"].as_str().ok_or("no jwks_uri")?;
        let mut keys: Value = self.get(keys).await?;
        // One key of a kind that is not known must not hide the others.
        if let Some(list) = keys["keys"].as_array_mut() {
            list.retain(|key| {
                serde_json::from_value::<jsonwebtoken::jwk::Jwk>(key.clone()).is_ok()
            });
        }
        serde_json::from_value(keys).map_err(|e| e.to_string())
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let uri: Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("{url:?} names no host"))?;
        let route = Route {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            server_name: host.to_owned(),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        };
        let trust = Trust::Bundle(self.config.ca_pem.clone());
        let tls = outbound::connect(&route, &trust, None).await?;
        let request = Request::get(&route.path)
            .header(HOST, uri.authority().map_or(host, |a| a.as_str()))
            .header(ACCEPT, "application/json")
            .body(Full::<Bytes>::default())
            .map_err(|e| e.to_string())?;
        let (status, body) = outbound::exchange(tls, request, MAX_ANSWER).await?;
        if !status.is_success() {
            return Err(format!("{url}: {status}"));
        }
        serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}"))
    }

    /// Whether a token claims to be of this issuer; nothing of it is verified yet.
    pub(super) fn issued(&self, token: &str) -> bool {
        let claims = token.split('.').nth(1);
        let claims = claims.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let claims = claims.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        claims.is_some_and(|claims| claims["iss"] == self.config.issuer.as_str())
    }

    /// The identity behind a token.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn verify(&self, token: &str, now: i64) -> Result<UserInfo, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| e.to_string())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(format!("algorithm {:?} is not accepted", header.alg));
        }
        let keys = self.keys.load();
        let key = match &header.kid {
            Some(id) => keys.find(id),
            None => keys.keys.first(),
        };
        let Some(key) = key else {
            self.unknown_key.notify_one();
            return Err("signed with an unknown key".to_owned());
        };
        let key = DecodingKey::from_jwk(key).map_err(|e| e.to_string())?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.client_id]);
        // Checked below by the caller's clock.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation)
            .inspect_err(|error| {
                // The issuer may have given its new key the old one's name.
                if *error.kind() == ErrorKind::InvalidSignature {
                    self.unknown_key.notify_one();
                }
            })
            .map_err(|e| e.to_string())?
            .claims;
        if claims["exp"].as_i64().is_none_or(|end| end <= now) {
            return Err("expired".to_owned());
        }
        if claims["nbf"].as_i64().is_some_and(|begin| begin > now) {
            return Err("not valid yet".to_owned());
        }
        self.user(&claims)
    }

    fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let config = &self.config;
        let claim = &config.username_claim;
        let name = claims[claim].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("claim {claim:?} is missing"))?;
        if claim == "email" && claims["email_verified"] == false {
            return Err("the e-mail address is not verified".to_owned());
        }
        let prefix = match config.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if claim == "email" => String::new(),
            None => format!("{}#", config.issuer),
        };
        let groups = match config.groups_claim.as_ref().map(|claim| &claims[claim]) {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => {
                let texts = many.iter().filter_map(Value::as_str);
                texts.map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        Ok(UserInfo {
            name: format!("{prefix}{name}"),
            groups: groups
                .iter()
                .map(|g| format!("{}{g}", config.groups_prefix))
                .collect(),
            ..UserInfo::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    fn issuer() -> (Arc<Oidc>, EncodingKey) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("k".to_owned());
        let oidc = Oidc::new(OidcConfig {
            issuer: "https://issuer.test".to_owned(),
            client_id: "cluster".to_owned(),
            username_claim: "sub".to_owned(),
            username_prefix: None,
            groups_claim: Some("roles".to_owned()),
            groups_prefix: "oidc:".to_owned(),
            ca_pem: Vec::new(),
        });
        oidc.keys.store(Arc::new(JwkSet { keys: vec![jwk] }));
        (oidc, key)
    }

    #[test]
    fn a_token_of_the_issuer_names_its_user_and_groups() {
        let (oidc, key) = issuer();
        let token = |changes: Value| {
            let mut claims = json!({"iss": "https://issuer.test", "aud": "cluster", "sub": "jane",
                "exp": 2_000, "roles": ["dev"]});
            for (name, value) in changes.as_object().unwrap() {
                claims[name] = value.clone();
            }
            let mut header = Header::new(Algorithm::ES256);
            header.kid = Some("k".to_owned());
            encode(&header, &claims, &key).unwrap()
        };
        let user = oidc.verify(&token(json!({})), 1_000).unwrap();
        assert_eq!(user.name, "https://issuer.test#jane");
        assert_eq!(user.groups, ["oidc:dev"]);
        assert!(oidc.issued(&token(json!({}))));
        assert!(oidc.verify(&token(json!({})), 2_000).is_err());
        assert!(oidc.verify(&token(json!({"aud": "other"})), 1_000).is_err());
        assert!(
            oidc.verify(&token(json!({"iss": "https://other.test"})), 1_000)
                .is_err()
        );
        let (_, other) = issuer();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("k".to_owned());
        let claims =
            json!({"iss": "https://issuer.test", "aud": "cluster", "sub": "x", "exp": 2_000});
        let forged = encode(&header, &claims, &other).unwrap();
        assert!(oidc.verify(&forged, 1_000).is_err());
    }
}
