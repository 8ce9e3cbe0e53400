//! What nobody may do who was not given it: grant rights, sign for others, let claims grow.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use windlass_apiserver::authn::UserInfo;

use crate::server::*;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

async fn as_jane(server: &Server, method: &str, path: &str, object: &Value) -> Answer {
    let user = UserInfo::new("jane", &["system:authenticated"]);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json");
    server
        .send_as(Some(user), request, object.to_string())
        .await
}

/// Makes a ClusterRole of these rules and gives it to jane; returns when it is in force.
async fn give_jane(server: &Server, name: &str, rules: Value) {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let roles = format!("{RBAC}/clusterroles");
    server.post(&roles, &role).await.ok();
    let bindings = format!("{RBAC}/clusterrolebindings");
    let to = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"});
    let binding = json!({"metadata": {"name": name}, "subjects": [to], "roleRef": role_ref("ClusterRole", name)});
    server.post(&bindings, &binding).await.ok();
    let first = &role["rules"][0];
    let resource = first["resources"][0].as_str().unwrap();
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({"spec": {"user": "jane", "resourceAttributes": {"verb": first["verbs"][0],
        "group": first["apiGroups"][0], "resource": resource, "subresource": subresource,
        "name": first["resourceNames"][0], "namespace": "default"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let given = async {
        while server.post(reviews, &review).await.ok()["status"]["allowed"] != true {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given)
        .await
        .expect("the role takes effect");
}

fn role_ref(kind: &str, name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
}

fn role(name: &str, verbs: &[&str], resource: &str) -> Value {
    json!({"metadata": {"name": name},
        "rules": [{"verbs": verbs, "apiGroups": [""], "resources": [resource]}]})
}

#[tokio::test]
async fn nobody_grants_more_than_they_hold() {
    let server = Server::start().await;
    let writes = json!([{"verbs": ["create", "update", "delete"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles", "rolebindings", "clusterroles"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    give_jane(&server, "writer", writes).await;

    let own = role("own", &["get"], "pods");
    as_jane(&server, "POST", ROLES, &own).await.ok();
    let more = role("more", &["get", "list"], "secrets");
    let refused = as_jane(&server, "POST", ROLES, &more).await.refused(403);
    assert_eq!(
        refused["message"],
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
    );
    let at = format!("{ROLES}/own");
    let grown = role("own", &["get"], "secrets");
    as_jane(&server, "PUT", &at, &grown).await.refused(403);
    let sums = json!({"metadata": {"name": "sum"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let refused = as_jane(&server, "POST", &format!("{RBAC}/clusterroles"), &sums)
        .await
        .refused(403);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("must have cluster-admin privileges to use the aggregationRule"),
        "{message}"
    );

    // What somebody else made can be bound by those who hold it as well.
    server.post(ROLES, &more).await.ok();
    let binding =
        |name: &str| json!({"metadata": {"name": name}, "roleRef": role_ref("Role", name)});
    as_jane(&server, "POST", BINDINGS, &binding("own"))
        .await
        .ok();
    as_jane(&server, "POST", BINDINGS, &binding("more"))
        .await
        .refused(403);
    let missing = as_jane(&server, "POST", BINDINGS, &binding("none")).await;
    missing.refused(404);
    // Of a role that grants more than she holds jane may still change what garbage collection does.
    let mut held = server.get(&format!("{ROLES}/more")).await.ok();
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    as_jane(&server, "PUT", &format!("{ROLES}/more"), &held)
        .await
        .ok();

    let name = json!([{"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"],
        "resourceNames": ["more"]}]);
    give_jane(&server, "binder", name).await;
    as_jane(&server, "POST", BINDINGS, &binding("more"))
        .await
        .ok();
    let all = json!([{"verbs": ["escalate"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles", "clusterroles"]}]);
    give_jane(&server, "escalator", all).await;
    as_jane(&server, "PUT", &at, &grown).await.ok();
}

#[tokio::test]
async fn approving_and_signing_take_the_signers_right() {
    let server = Server::start().await;
    let writes = json!([{"verbs": ["update"], "apiGroups": ["certificates.k8s.io"],
        "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"]}]);
    give_jane(&server, "writer", writes).await;
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let request = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/own",
        "request": STANDARD.encode(pem), "usages": ["client auth"]}});
    let mut request = server.post(REQUESTS, &request).await.ok();

    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "Test"}]);
    let approval = format!("{REQUESTS}/r/approval");
    request["status"]["conditions"] = condition("Approved");
    let refused = as_jane(&server, "PUT", &approval, &request)
        .await
        .refused(403);
    assert_eq!(
        refused["message"],
        "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to approve requests with \
         signerName \"example.com/own\""
    );
    let rights = json!([{"verbs": ["approve"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": ["example.com/*"]}]);
    give_jane(&server, "approver", rights).await;
    let mut request = as_jane(&server, "PUT", &approval, &request).await.ok();

    let status = format!("{REQUESTS}/r/status");
    let conditions = request["status"]["conditions"].as_array_mut().unwrap();
    conditions.push(condition("Failed")[0].clone());
    as_jane(&server, "PUT", &status, &request)
        .await
        .refused(403);
    let rights = json!([{"verbs": ["sign"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": ["example.com/own"]}]);
    give_jane(&server, "signer", rights).await;
    as_jane(&server, "PUT", &status, &request).await.ok();
}

#[tokio::test]
async fn claims_grow_where_their_class_lets_them() {
    let server = Server::start().await;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    for (name, lets) in [("fixed", false), ("growing", true)] {
        let class = json!({"metadata": {"name": name}, "provisioner": "example.com/disk", "allowVolumeExpansion": lets});
        server.post(classes, &class).await.ok();
    }
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let size = |size: &str| json!({"requests": {"storage": size}});
    for (class, code) in [("fixed", 403), ("growing", 200)] {
        let claim = json!({"metadata": {"name": class}, "spec": {"storageClassName": class,
            "accessModes": ["ReadWriteOnce"], "volumeName": "v", "resources": size("1Gi")}});
        server.post(claims, &claim).await.ok();
        let at = format!("{claims}/{class}");
        let bound = json!({"status": {"phase": "Bound"}});
        server
            .patch(&format!("{at}/status"), "merge", &bound)
            .await
            .ok();
        let grown = json!({"spec": {"resources": size("2Gi")}});
        let answer = server.patch(&at, "merge", &grown).await;
        assert_eq!(answer.code, code, "{answer:?}");
    }
}
