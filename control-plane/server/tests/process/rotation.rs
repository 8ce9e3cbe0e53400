//! Keys are replaced while clients are connected. The CA's: those that are stay, those that come get in whichever CA they
//! know, until the old one is retired. That of ServiceAccount tokens: they are good until theirs is retired.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt as _};
use http::Request;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::config::Kubeconfig;
use kube::{Client, ResourceExt as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::server::{PATIENCE, Server, client, until};

fn bundle(kubeconfig: &Kubeconfig) -> String {
    let cluster = kubeconfig.clusters[0].cluster.as_ref().expect("a cluster");
    cluster.certificate_authority_data.clone().expect("a CA")
}

/// A file of a user who has this one's key and has read that one's CA.
fn with_ca_of(kubeconfig: &Kubeconfig, other: &Kubeconfig) -> Kubeconfig {
    let mut mixed = kubeconfig.clone();
    let cluster = mixed.clusters[0].cluster.as_mut().expect("a cluster");
    cluster.certificate_authority_data = Some(bundle(other));
    mixed
}

async fn published(client: &Client) -> String {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let Ok(map) = maps.get("kube-root-ca.crt").await else {
        return String::new();
    };
    map.data
        .unwrap_or_default()
        .remove("ca.crt")
        .unwrap_or_default()
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Writes by `client` and waits until `watch`, which was opened long ago, tells of it.
async fn write_and_see(
    client: &Client,
    watch: &mut (impl Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin),
    name: &str,
) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    maps.create(&PostParams::default(), &map)
        .await
        .expect("a write");
    let seen = async {
        loop {
            match watch
                .next()
                .await
                .expect("the watch goes on")
                .expect("an event")
            {
                WatchEvent::Added(map) if map.name_any() == name => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("the event");
}

#[tokio::test]
async fn the_ca_rotates_under_clients_that_know_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(folder.path()).await;
    let before = server.kubeconfig().expect("a kubeconfig");
    let old = client(before.clone()).await;
    until("the CA is published", async || {
        certificates(&published(&old).await) == 1
    })
    .await;
    let maps: Api<ConfigMap> = Api::namespaced(old.clone(), "default");
    let watch = maps.watch(&WatchParams::default().timeout(290), "0").await;
    let mut watch = watch.expect("a watch").boxed();
    write_and_see(&old, &mut watch, "before").await;

    server.ca("rotate");
    until("the new CA is published beside the old one", async || {
        certificates(&published(&old).await) == 2
    })
    .await;
    until("the administrator's file is written anew", async || {
        server
            .kubeconfig()
            .is_some_and(|now| bundle(&now) != bundle(&before))
    })
    .await;
    let after = server.kubeconfig().expect("a kubeconfig");
    write_and_see(&old, &mut watch, "after").await;
    assert!(
        server.answers(before.clone()).await,
        "who knows only the old CA"
    );
    assert!(server.answers(after.clone()).await, "who knows both");
    assert!(
        server.answers(with_ca_of(&before, &after)).await,
        "who has read the new bundle"
    );

    server.ca("rotate");
    until("three CAs are published", async || {
        certificates(&published(&old).await) == 3
    })
    .await;
    write_and_see(&old, &mut watch, "again").await;
    assert!(
        server.answers(before.clone()).await,
        "who has slept through two rotations"
    );

    server.ca("retire");
    until("who knows only the old CA is refused", async || {
        !server.answers(before.clone()).await
    })
    .await;
    let now = server.kubeconfig().expect("a kubeconfig");
    assert!(server.answers(now.clone()).await, "who knows the last CA");
    assert!(
        !server.answers(with_ca_of(&before, &now)).await,
        "a certificate of a CA that is retired"
    );
    let maps: Api<ConfigMap> = Api::namespaced(old, "default");
    let refused = maps
        .get("before")
        .await
        .expect_err("an old certificate on an old connection");
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 401));
    let new = client(now).await;
    until("one CA is published", async || {
        certificates(&published(&new).await) == 1
    })
    .await;
}

/// A serving certificate for this machine, of a CA that nobody else uses.
struct Serving {
    ca: String,
    certificate: String,
    key: String,
}

impl Serving {
    fn new() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("a CA").pem();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Self {
            ca,
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// The certificate first: for a moment it goes with another key.
    fn write(&self, certificate: &Path, key: &Path) {
        std::fs::write(certificate, &self.certificate).expect("a file");
        std::fs::write(key, &self.key).expect("a file");
    }

    fn trusted_in(&self, kubeconfig: &Kubeconfig) -> Kubeconfig {
        let mut other = kubeconfig.clone();
        let cluster = other.clusters[0].cluster.as_mut().expect("a cluster");
        cluster.certificate_authority_data = Some(STANDARD.encode(&self.ca));
        other
    }
}

#[tokio::test]
async fn a_serving_certificate_that_somebody_else_signed_is_replaced_by_its_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = tempfile::tempdir().expect("a temporary folder");
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| files.path().join(name));
    let (first, second) = (Serving::new(), Serving::new());
    first.write(&certificate, &key);
    let flags = [
        "--tls-cert-file",
        certificate.to_str().expect("a path"),
        "--tls-private-key-file",
        key.to_str().expect("a path"),
    ];
    let server = Server::start_with(folder.path(), &flags, Some(&first.ca)).await;
    let before = server.kubeconfig().expect("a kubeconfig");
    let old = client(before.clone()).await;
    let maps: Api<ConfigMap> = Api::namespaced(old, "default");
    let watch = maps.watch(&WatchParams::default().timeout(290), "0").await;
    let mut watch = watch.expect("a watch").boxed();

    second.write(&certificate, &key);
    let after = second.trusted_in(&before);
    until("the new certificate is served", async || {
        server.answers(after.clone()).await
    })
    .await;
    assert!(!server.answers(before).await, "who trusts the old one only");
    // Who was connected notices nothing.
    write_and_see(&client(after).await, &mut watch, "after").await;
}

/// The ids of the keys by which others verify tokens.
async fn verifying(client: &Client) -> Vec<String> {
    let request = Request::get("/openid/v1/jwks").body(Vec::new());
    let set = client.request_text(request.expect("a request")).await;
    let set: serde_json::Value = serde_json::from_str(&set.expect("an answer")).expect("a key set");
    let keys = set["keys"].as_array().expect("keys");
    let ids = keys.iter().filter_map(|key| key["kid"].as_str());
    ids.map(str::to_owned).collect()
}

/// A token of the default account.
async fn issue(client: &Client) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let asked = TokenRequest::default();
    let parameters = PostParams::default();
    let made = accounts.create_token_request("default", &parameters, &asked);
    made.await
        .expect("a token")
        .status
        .expect("it is made")
        .token
}

async fn is_good(client: &Client, token: &str) -> bool {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &review).await;
    let status = review.expect("a review").status;
    status.and_then(|status| status.authenticated) == Some(true)
}

#[tokio::test]
async fn the_key_of_account_tokens_rotates_under_those_who_hold_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(folder.path()).await;
    let client = client(server.kubeconfig().expect("a kubeconfig")).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    until("the default account is made", async || {
        accounts.get("default").await.is_ok()
    })
    .await;
    let old = issue(&client).await;
    let before = verifying(&client).await;
    assert_eq!(before.len(), 1);

    server.key("service-account-key", "rotate");
    let signed_by = |token: &str| {
        let header = token.split('.').next().expect("a header");
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header);
        let header: serde_json::Value =
            serde_json::from_slice(&header.expect("base64")).expect("JSON");
        header["kid"].as_str().expect("a key").to_owned()
    };
    assert_eq!(signed_by(&old), before[0]);
    until("the new key signs", async || {
        let new = issue(&client).await;
        assert!(is_good(&client, &old).await, "the old key's token");
        assert!(is_good(&client, &new).await, "whichever key signed it");
        signed_by(&new) != before[0]
    })
    .await;
    assert_eq!(verifying(&client).await.len(), 2);
    let new = issue(&client).await;

    server.key("service-account-key", "retire");
    until("the old key's token is refused", async || {
        assert!(is_good(&client, &new).await, "the new key's token");
        !is_good(&client, &old).await
    })
    .await;
    assert_eq!(verifying(&client).await, [signed_by(&new)]);
}
