//! An OpenID Connect issuer that the test serves itself, over TLS, and that takes another key.

use std::sync::{Arc, Mutex};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use windlass_apiserver::authn::{Oidc, OidcConfig, OtherTokens};

use crate::hooks::serve_documents;
use crate::server::*;

struct Key {
    id: &'static str,
    private: EncodingKey,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let private = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { id, private }
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.private, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn token(&self, issuer: &str, user: &str) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        let claims = json!({
            "iss": issuer, "aud": "cluster", "sub": user, "groups": ["dev"], "exp": 4_102_444_800_i64,
        });
        encode(&header, &claims, &self.private).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_is_believed_by_its_keys_of_the_moment() {
    let published = Arc::new(Mutex::new(Vec::new()));
    let keys = published.clone();
    let (issuer, ca_pem) = serve_documents(move |own, path| match path {
        "/.well-known/openid-configuration" => {
            json!({"issuer": own, "jwks_uri": format!("{own}/keys")})
        }
        "/keys" => json!({"keys": *keys.lock().unwrap()}),
        _ => Value::Null,
    })
    .await;
    let first = Key::new("first");
    published.lock().unwrap().push(first.public());
    let oidc = Oidc::new(OidcConfig {
        issuer: issuer.clone(),
        client_id: "cluster".to_owned(),
        username_claim: "sub".to_owned(),
        username_prefix: Some("oidc:".to_owned()),
        groups_claim: Some("groups".to_owned()),
        groups_prefix: "oidc:".to_owned(),
        ca_pem: ca_pem.into_bytes(),
    });
    let tokens = OtherTokens {
        oidc: Some(oidc.clone()),
        ..OtherTokens::default()
    };
    let server = Server::start_with(None, tokens).await;
    tokio::spawn(
        server
            .shutdown
            .clone()
            .run_until_cancelled_owned(oidc.keep_keys()),
    );
    let reviewed = async |token: &str| {
        let review = json!({"spec": {"token": token}});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        server.post(path, &review).await.ok()["status"].take()
    };
    let believed = async |token: &str| {
        let deadline = tokio::time::Instant::now() + 2 * PATIENCE;
        loop {
            let mut status = reviewed(token).await;
            if status["authenticated"] == true {
                return status["user"].take();
            }
            assert!(tokio::time::Instant::now() < deadline, "{status}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let refused = async |token: &str| reviewed(token).await["authenticated"] != true;
    let user = believed(&first.token(&issuer, "jane")).await;
    assert_eq!(user["username"], "oidc:jane");
    assert_eq!(user["groups"], json!(["oidc:dev", "system:authenticated"]));

    // A key that nobody has published, under a name that nobody knows and under one that is known.
    for id in ["unheard-of", "first"] {
        assert!(refused(&Key::new(id).token(&issuer, "jane")).await, "{id}");
    }
    // The issuer changes its key: a token that names it makes the server look again.
    let second = Key::new("second");
    *published.lock().unwrap() = vec![second.public()];
    let user = believed(&second.token(&issuer, "joe")).await;
    assert_eq!(user["username"], "oidc:joe");
    assert!(refused(&first.token(&issuer, "jane")).await);
}
