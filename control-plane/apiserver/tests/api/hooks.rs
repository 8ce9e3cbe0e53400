//! Webhooks that the tests serve themselves, over TLS, and what the API server makes of them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::server::*;

/// Serves `answer`, which gets a path and a review and makes the review's response, or null to stay silent; answers with
/// what a `clientConfig` needs: the URL up to the path, and the certificate.
pub async fn serve(
    answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
) -> (String, String) {
    let (url, pem) = listen(move |_, path, body| {
        let mut review: Value = serde_json::from_slice(body).unwrap();
        let mut response = answer(path, &review["request"]);
        if response.is_null() {
            return None;
        }
        response["uid"] = review["request"]["uid"].clone();
        review["response"] = response;
        Some(review)
    })
    .await;
    (url, STANDARD.encode(pem))
}

/// Serves `answer`, which gets the URL and a path below it; answers with the URL and the certificate.
pub async fn serve_documents(
    answer: impl Fn(&str, &str) -> Value + Send + Sync + 'static,
) -> (String, String) {
    listen(move |own, path, _| Some(answer(own, path))).await
}

/// `answer` gets the URL, the path and the body.
async fn listen(
    answer: impl Fn(&str, &str, &[u8]) -> Option<Value> + Send + Sync + 'static,
) -> (String, String) {
    let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let shared = Arc::new((url.clone(), answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, shared) = (acceptor.clone(), shared.clone());
            tokio::spawn(async move {
                let Ok(mut io) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.map_or(0, |l| l.split("\r\n").next().unwrap().parse().unwrap());
                let mut body = vec![0; length];
                io.read_exact(&mut body).await.unwrap();
                let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap();
                let (own, answer) = &*shared;
                let Some(response) = answer(own, path, &body) else {
                    return std::future::pending().await;
                };
                let text = response.to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                io.write_all(head.as_bytes()).await.unwrap();
                io.write_all(text.as_bytes()).await.unwrap();
                io.shutdown().await.ok();
            });
        }
    });
    (url, own.cert.pem())
}

pub fn rule(operation: &str, groups: &str, resource: &str) -> Value {
    json!({"operations": [operation], "apiGroups": [groups], "apiVersions": ["*"], "resources": [resource]})
}

pub fn configuration(kind: &str, name: &str, url: String, bundle: &str, rule: &Value) -> Value {
    json!({"metadata": {"name": name}, "kind": kind, "webhooks": [{
        "name": format!("{name}.example.test"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": url, "caBundle": bundle}, "rules": [rule],
    }]})
}

pub const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
pub const VALIDATING: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_refuse_what_their_rules_name() {
    let server = Server::start().await.with_default_account().await;
    let (url, bundle) = serve(|path, request| match path {
        "/add" => {
            let patch = r#"[{"op": "add", "path": "/data/added", "value": "yes"}]"#;
            json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch)})
        }
        _ => {
            let kind = request["kind"]["kind"].as_str().unwrap();
            let attached = request["object"]["container"].as_str().unwrap_or("none");
            json!({"allowed": false, "status": {"message": format!("no {kind} here ({attached})"), "code": 403}})
        }
    })
    .await;
    let add = configuration(
        "MutatingWebhookConfiguration",
        "add",
        format!("{url}/add"),
        &bundle,
        &rule("CREATE", "", "configmaps"),
    );
    server.post(MUTATING, &add).await.ok();
    // Admission looks into the cache; a list waits until that has it.
    server.get(MUTATING).await.ok();
    let made = server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(made["data"], json!({"k": "v", "added": "yes"}));

    let refuse = configuration(
        "ValidatingWebhookConfiguration",
        "refuse",
        format!("{url}/refuse"),
        &bundle,
        &rule("CONNECT", "", "pods/attach"),
    );
    server.post(VALIDATING, &refuse).await.ok();
    server.get(VALIDATING).await.ok();
    server.post(PODS, &pod("p")).await.ok();
    server.bind("p", "n").await;
    let attach = format!("{PODS}/p/attach?container=c&stdout=true");
    let refused = server.send(Request::get(attach), "").await.refused(403);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("no PodAttachOptions here (c)"),
        "{message}"
    );
}

#[tokio::test]
async fn a_match_condition_that_is_no_expression_is_its_authors_fault() {
    let server = Server::start().await;
    let mut wrong = configuration(
        "ValidatingWebhookConfiguration",
        "wrong",
        "https://127.0.0.1:1/".to_owned(),
        "",
        &rule("CREATE", "", "configmaps"),
    );
    wrong["webhooks"][0]["matchConditions"] =
        json!([{"name": "x", "expression": "... [] bad expression"}]);
    let status = server.post(VALIDATING, &wrong).await.refused(422);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("compilation failed")
    );
}

#[tokio::test]
async fn an_applied_field_that_the_kind_lacks_is_refused() {
    let server = Server::start().await;
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "daata": {}});
    let answer = server
        .patch(&format!("{CONFIG_MAPS}/a?fieldManager=m"), "apply", &config)
        .await
        .refused(500);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains(".daata: field not declared in schema"),
        "{message}"
    );
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n  k: w\n";
    let request = Request::patch(format!(
        "{CONFIG_MAPS}/a?fieldManager=m&fieldValidation=Strict"
    ))
    .header("content-type", "application/apply-patch+yaml");
    let answer = server.send(request, twice).await.refused(400);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("line 7: key \"k\" already set in map"),
        "{message}"
    );
}

#[tokio::test]
async fn a_policy_is_told_what_its_expressions_confuse() {
    let server = Server::start().await;
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policy = |name: &str, validation: Value| {
        json!({
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"],
                    "operations": ["CREATE"],
                }]},
                "variables": [{"name": "replicas", "expression": "object.spec.replicas"}],
                "validations": [validation],
            },
        })
    };
    let right = policy(
        "right.example.com",
        json!({"expression": "variables.replicas > 1"}),
    );
    let confused = policy(
        "confused.example.com",
        json!({
            "expression": "variables.replicas > '1'",
            "messageExpression": "'wants more than one, got ' + object.spec.replicas",
        }),
    );
    for (policy, expected) in [(right, 0), (confused, 2)] {
        let made = server.post(path, &policy).await.ok();
        let own = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
        let is_checked = |found: &Answer| found.json()["status"]["typeChecking"].is_object();
        let status = server.until(&own, is_checked).await.ok()["status"].take();
        assert_eq!(status["observedGeneration"], 1);
        let warnings = &status["typeChecking"]["expressionWarnings"];
        assert_eq!(
            warnings.as_array().map_or(0, Vec::len),
            expected,
            "{status}"
        );
        if expected > 0 {
            assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
            let warning = warnings[0]["warning"].as_str().unwrap();
            let words = "found no matching overload for '_>_' applied to '(int, string)'";
            assert!(
                warning.starts_with("apps/v1, Kind=Deployment: ERROR") && warning.contains(words),
                "{warning}"
            );
            assert_eq!(
                warnings[1]["fieldRef"],
                "spec.validations[0].messageExpression"
            );
        }
    }
}

#[tokio::test]
async fn the_first_object_of_a_namespace_meets_the_policies_of_its_labels() {
    let server = Server::start().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({
        "metadata": {"name": "nothing.example.com"},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"held": "yes"}},
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                    "resources": ["configmaps"], "operations": ["CREATE"]}],
            },
            "validations": [{"expression": "false"}],
        },
    });
    let policies = format!("{group}/validatingadmissionpolicies");
    server.post(&policies, &policy).await.ok();
    let binding = json!({
        "metadata": {"name": "nothing.example.com"},
        "spec": {"policyName": "nothing.example.com", "validationActions": ["Deny"]},
    });
    let bindings = format!("{group}/validatingadmissionpolicybindings");
    server.post(&bindings, &binding).await.ok();

    let namespace = async |name: &str| {
        let labelled = json!({"metadata": {"name": name, "labels": {"held": "yes"}}});
        server.post("/api/v1/namespaces", &labelled).await.ok();
        format!("/api/v1/namespaces/{name}/configmaps")
    };
    let known = namespace("known").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let generated = json!({"metadata": {"generateName": "c"}});
    while server.post(&known, &generated).await.code != 422 {
        assert!(tokio::time::Instant::now() < deadline, "the policy holds");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for round in 0..50 {
        let path = namespace(&format!("n{round}")).await;
        server.post(&path, &config_map("first")).await.refused(422);
    }
}
