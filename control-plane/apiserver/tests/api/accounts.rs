//! Who is let in by which token, what a node's agent may read, and what is accounted for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use serde_json::{Value, json};
use windlass_apiserver::audit::AuditLog;
use windlass_apiserver::authn::{OtherTokens, StaticTokens, UserInfo};

use crate::server::*;

#[tokio::test]
async fn a_static_token_is_its_user() {
    let tokens = OtherTokens {
        fixed: StaticTokens::parse("t0ken,jane,7,\"dev,ops\"").unwrap(),
        ..OtherTokens::default()
    };
    let server = Server::start_with(None, tokens).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "t0ken"}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let found = server.post(path, &review).await.ok();
    let user = &found["status"]["user"];
    assert_eq!(
        (&user["username"], &user["uid"]),
        (&json!("jane"), &json!("7"))
    );
    assert_eq!(
        user["groups"],
        json!(["dev", "ops", "system:authenticated"])
    );
    let request = Request::get("/api/v1/pods").header("authorization", "Bearer other");
    server.send_as(None, request, "").await.refused(401);
}

#[tokio::test]
async fn an_agent_reads_what_its_nodes_pods_refer_to_and_nothing_else() {
    let server = Server::start().await.with_default_account().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["mine", "other"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"k": "v"}});
        server.post(secrets, &secret).await.ok();
    }
    let mut own = pod("p");
    own["spec"]["nodeName"] = "n".into();
    own["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "mine"}}]);
    server.post(PODS, &own).await.ok();
    // A list waits until the cache has the pod.
    server.get(PODS).await.ok();
    let agent = |node: &str| {
        Some(UserInfo::new(
            &format!("system:node:{node}"),
            &["system:nodes", "system:authenticated"],
        ))
    };
    let get = |path: String| Request::get(path);
    server
        .send_as(agent("n"), get(format!("{secrets}/mine")), "")
        .await
        .ok();
    let watch = format!("{secrets}?fieldSelector=metadata.name%3Dmine");
    server.send_as(agent("n"), get(watch), "").await.ok();
    server
        .send_as(agent("n"), get(format!("{secrets}/other")), "")
        .await
        .refused(403);
    server
        .send_as(agent("n"), get(secrets.to_owned()), "")
        .await
        .refused(403);
    server
        .send_as(agent("m"), get(format!("{secrets}/mine")), "")
        .await
        .refused(403);
    let lease = |name: &str| {
        get(format!(
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
        ))
    };
    assert_eq!(server.send_as(agent("n"), lease("n"), "").await.code, 404);
    server
        .send_as(agent("n"), lease("m"), "")
        .await
        .refused(403);
}

#[tokio::test]
async fn an_agent_asks_for_tokens_of_the_audiences_that_its_pods_name() {
    let server = Server::start().await.with_default_account().await;
    let driver = json!({"metadata": {"name": "d.example"}, "spec": {"tokenRequests": [{"audience": "disk"}]}});
    let drivers = "/apis/storage.k8s.io/v1/csidrivers";
    server.post(drivers, &driver).await.ok();
    let mut own = pod("p");
    own["spec"]["nodeName"] = "n".into();
    own["spec"]["volumes"] = json!([
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": "vault", "path": "t"}}]}},
        {"name": "d", "csi": {"driver": "d.example"}},
    ]);
    let own = server.post(PODS, &own).await.ok();
    // A list waits until the caches have both.
    server.get(PODS).await.ok();
    let agent = UserInfo::new("system:node:n", &["system:nodes", "system:authenticated"]);
    let role = json!({"metadata": {"name": "ask"}, "rules": [{"apiGroups": [""], "resources": ["allowed"],
        "verbs": ["request-serviceaccounts-token-audience"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    server
        .post(&format!("{rbac}/clusterroles"), &role)
        .await
        .ok();
    let binding = json!({"metadata": {"name": "ask"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "ask"}, "subjects": [{"kind": "User", "name": "system:node:n"}]});
    let bindings = format!("{rbac}/clusterrolebindings");
    server.post(&bindings, &binding).await.ok();
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let ask = async |audiences: Value| {
        let to =
            json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": own["metadata"]["uid"]});
        let request = json!({"spec": {"audiences": audiences, "boundObjectRef": to}});
        let builder = Request::post(path).header("content-type", "application/json");
        server
            .send_as(Some(agent.clone()), builder, request.to_string())
            .await
    };
    for audience in ["vault", "disk"] {
        ask(json!([audience])).await.ok();
    }
    let allowed = async {
        while ask(json!(["allowed"])).await.code != 201 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, allowed)
        .await
        .expect("the role takes effect");
    // The pod's own token is for the API server.
    ask(json!([])).await.ok();
    let refused = ask(json!(["mail"])).await.refused(403);
    assert_eq!(
        refused["message"],
        "serviceaccounts \"default\" is forbidden: audience \"mail\" not found in pod spec volume, system:node:n is not \
         authorized to request tokens for this audience"
    );
    let refused = ask(json!(["vault", "disk"])).await.refused(403);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("node may only request 0 or 1 audiences"),
        "{message}"
    );
}

#[tokio::test]
async fn requests_are_accounted_for_as_the_policy_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let policy = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: RequestResponse, resources: [{group: \"\", resources: [configmaps]}], namespaces: [default]}
- {level: None}
";
    let log = AuditLog::open(policy, path.to_str().unwrap()).unwrap();
    let server = Server::start_with(Some(log), OtherTokens::default()).await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    server.get("/api/v1/namespaces").await.ok();
    let stranger = UserInfo::new("jane", &["system:authenticated"]);
    let request = Request::get(CONFIG_MAPS);
    server
        .send_as(Some(stranger), request, "")
        .await
        .refused(403);
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [created, refused] = events.as_slice() else {
        panic!("two requests were about ConfigMaps of default: {text}");
    };
    assert_eq!(
        (&created["verb"], &created["stage"]),
        (&json!("create"), &json!("ResponseComplete"))
    );
    assert_eq!(created["requestObject"]["data"], json!({"k": "v"}));
    assert_eq!(created["responseObject"]["metadata"]["name"], "a");
    assert_eq!(created["responseStatus"]["code"], 201);
    assert_eq!(created["user"]["username"], "admin");
    assert_eq!(refused["responseStatus"]["code"], 403);
    assert_eq!(
        refused["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );
}

#[tokio::test]
async fn a_token_secret_is_filled_and_its_token_ends_with_it() {
    let server = Server::start().await.with_default_account().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"type": "kubernetes.io/service-account-token", "metadata": {
        "name": "t", "annotations": {"kubernetes.io/service-account.name": "default"},
    }});
    server.post(secrets, &secret).await.ok();
    let own = format!("{secrets}/t");
    let is_filled = |found: &Answer| found.json()["data"]["token"].is_string();
    let data = server.until(&own, is_filled).await.ok()["data"].take();
    assert!(data["ca.crt"].is_string());
    let token = STANDARD.decode(data["token"].as_str().unwrap()).unwrap();
    let token = String::from_utf8(token).unwrap();
    let review = json!({"spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let found = server.post(path, &review).await.ok();
    assert_eq!(
        found["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    // The day of its use is noted, and since when days are noted.
    let is_used = |secret: &Answer| {
        secret.json()["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].is_string()
    };
    server.until(&own, is_used).await;
    let since = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let since = server.get(since).await.ok()["data"]["since"].clone();
    assert_eq!(
        since.as_str().map(str::len),
        Some("2026-01-02".len()),
        "{since}"
    );
    // One that a controller has found unused for too long is refused, until somebody takes the mark away.
    for (mark, authenticated) in [
        (json!("2020-01-01"), Value::Null),
        (Value::Null, json!(true)),
    ] {
        let patch =
            json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": mark}}});
        server.patch(&own, "merge", &patch).await.ok();
        server.get(secrets).await.ok();
        let found = server.post(path, &review).await.ok();
        assert_eq!(found["status"]["authenticated"], authenticated, "{mark}");
    }

    server.delete(&own, &Value::Null).await.ok();
    // A list waits until the cache knows.
    server.get(secrets).await.ok();
    let found = server.post(path, &review).await.ok();
    assert_ne!(found["status"]["authenticated"], true);
}
