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

/// Serves `answer`, which gets a path and a review and makes the review's response; answers with what a
/// `clientConfig` needs: the URL up to the path, and the certificate.
pub async fn serve(
    answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
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
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut io) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                let length = head.split("content-length: ").nth(1).unwrap();
                let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                let mut body = vec![0; length];
                io.read_exact(&mut body).await.unwrap();
                let mut review: Value = serde_json::from_slice(&body).unwrap();
                let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap();
                let mut response = answer(path, &review["request"]);
                response["uid"] = review["request"]["uid"].clone();
                review["response"] = response;
                let text = review.to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                io.write_all(head.as_bytes()).await.unwrap();
                io.write_all(text.as_bytes()).await.unwrap();
                io.shutdown().await.ok();
            });
        }
    });
    (url, STANDARD.encode(own.cert.pem()))
}

fn rule(operation: &str, groups: &str, resource: &str) -> Value {
    json!({"operations": [operation], "apiGroups": [groups], "apiVersions": ["*"], "resources": [resource]})
}

fn configuration(kind: &str, name: &str, url: String, bundle: &str, rule: &Value) -> Value {
    json!({"metadata": {"name": name}, "kind": kind, "webhooks": [{
        "name": format!("{name}.example.test"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": url, "caBundle": bundle}, "rules": [rule],
    }]})
}

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

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
    let binding = json!({"metadata": {"name": "p"}, "target": {"name": "n"}});
    server
        .post(&format!("{PODS}/p/binding"), &binding)
        .await
        .ok();
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

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/example.test/v1/namespaces/default/hosts";
const V2: &str = "/apis/example.test/v2/namespaces/default/hosts";

/// Version 1 has an address in one text, version 2 host and port apart.
fn definition(url: &str, bundle: &str) -> Value {
    let version = |name: &str, fields: Value| {
        json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": {
            "type": "object", "properties": fields,
        }}})
    };
    json!({"metadata": {"name": "hosts.example.test"}, "spec": {
        "group": "example.test", "scope": "Namespaced",
        "names": {"plural": "hosts", "kind": "Host"},
        "versions": [
            version("v1", json!({"address": {"type": "string"}, "free": {"type": "string", "default": "x"}})),
            version("v2", json!({"host": {"type": "string"}, "port": {"type": "string"}, "free": {"type": "string"}})),
        ],
        "conversion": {"strategy": "Webhook", "webhook": {
            "conversionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": bundle},
        }},
    }})
}

fn convert(request: &Value) -> Value {
    let wanted = request["desiredAPIVersion"].clone();
    let objects = request["objects"].as_array().unwrap();
    let converted: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut new = object.clone();
            if wanted == "example.test/v2" {
                let address = object["address"].as_str().unwrap();
                let (host, port) = address.split_once(':').unwrap();
                (new["host"], new["port"]) = (host.into(), port.into());
                new.as_object_mut().unwrap().remove("address");
            } else {
                let (host, port) = (&object["host"], &object["port"]);
                let address = format!("{}:{}", host.as_str().unwrap(), port.as_str().unwrap());
                new["address"] = address.into();
                new.as_object_mut().unwrap().remove("host");
                new.as_object_mut().unwrap().remove("port");
            }
            new["apiVersion"] = wanted.clone();
            new
        })
        .collect();
    json!({"convertedObjects": converted, "result": {"status": "Success"}})
}

async fn served(server: &Server, path: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while server.get(path).await.code != 200 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{path} is not served"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_the_versions_of_a_custom_resource() {
    let server = Server::start().await;
    let (url, bundle) = serve(|_, request| convert(request)).await;
    server
        .post(DEFINITIONS, &definition(&url, &bundle))
        .await
        .ok();
    served(&server, V2).await;
    let one = json!({"apiVersion": "example.test/v1", "kind": "Host", "metadata": {"name": "one"}, "address": "a:1"});
    server.post(V1, &one).await.ok();
    let read = server.get(&format!("{V2}/one")).await.ok();
    assert_eq!((&read["host"], &read["port"]), (&json!("a"), &json!("1")));
    assert_eq!(read["apiVersion"], "example.test/v2");
    // The first version's default, filled in when it was written.
    assert_eq!(read["free"], "x");

    // From now on the other version is stored; what is there stays as it is.
    let swap = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true},
    ]);
    let changed = server
        .patch(&format!("{DEFINITIONS}/hosts.example.test"), "json", &swap)
        .await
        .ok();
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let two = json!({"apiVersion": "example.test/v1", "kind": "Host", "metadata": {"name": "two"}, "address": "b:2"});
    server.post(V1, &two).await.ok();
    let all = server.get(V2).await.ok();
    let hosts: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["apiVersion"].clone(), item["host"].clone()))
        .collect();
    let v2 = json!("example.test/v2");
    assert_eq!(hosts, [(v2.clone(), json!("a")), (v2, json!("b"))]);
    let all = server.get(V1).await.ok();
    assert_eq!(all["items"][1]["address"], "b:2");

    // A change in the one version of what is stored in the other.
    let patched = server
        .patch(&format!("{V1}/one"), "merge", &json!({"address": "c:3"}))
        .await
        .ok();
    assert_eq!(patched["address"], "c:3");
    let read = server.get(&format!("{V2}/one")).await.ok();
    assert_eq!(read["host"], "c");
}

#[tokio::test]
async fn a_default_reaches_objects_that_were_stored_before_it() {
    let server = Server::start().await;
    let mut plain = definition("", "");
    plain["spec"]["conversion"] = json!({"strategy": "None"});
    plain["spec"]["versions"]
        .as_array_mut()
        .unwrap()
        .truncate(1);
    let properties = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let free = plain.pointer_mut(&format!("{properties}/free")).unwrap();
    *free = json!({"type": "string"});
    server.post(DEFINITIONS, &plain).await.ok();
    served(&server, V1).await;
    let one = json!({"apiVersion": "example.test/v1", "kind": "Host", "metadata": {"name": "one"}, "address": "a:1"});
    let made = server.post(V1, &one).await.ok();
    assert_eq!(made.get("free"), None);
    let default =
        json!([{"op": "add", "path": format!("{properties}/free/default"), "value": "late"}]);
    server
        .patch(
            &format!("{DEFINITIONS}/hosts.example.test"),
            "json",
            &default,
        )
        .await
        .ok();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while server.get(&format!("{V1}/one")).await.ok()["free"] != "late" {
        assert!(tokio::time::Instant::now() < deadline, "no default");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let list = server.get(V1).await.ok();
    assert_eq!(list["items"][0]["free"], "late");
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
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for (policy, expected) in [(right, 0), (confused, 2)] {
        let made = server.post(path, &policy).await.ok();
        let own = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
        let status = loop {
            let status = server.get(&own).await.ok()["status"].take();
            if status["typeChecking"].is_object() {
                break status;
            }
            assert!(tokio::time::Instant::now() < deadline, "{status}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
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
