//! What came as a whole, and what Go never leaves out.

use serde_json::json;

use super::*;

/// As a kube-apiserver answers: what is made new has an owner itself, but not what Go cannot leave out.
#[test]
fn what_came_as_a_whole_is_owned_as_a_whole() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.update("u", |object| {
        *object = json!({"metadata": {"name": "web"}, "spec": {
            "strategy": {"rollingUpdate": {"maxSurge": 1}},
            "template": {"spec": {
                "securityContext": {"runAsUser": 1},
                "containers": [{"name": "a", "resources": {}, "env": [
                    {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "x"}}},
                ]}],
            }},
        }});
    });
    let container = json!({".": {}, "f:name": {}, "f:resources": {}, "f:env": {
        ".": {}, "k:{\"name\":\"E\"}": {".": {}, "f:name": {}, "f:valueFrom": {".": {}, "f:fieldRef": {}}},
    }});
    assert_eq!(
        server.owners()["u (update)"],
        json!({"f:spec": {
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}},
            "f:template": {"f:spec": {
                "f:securityContext": {".": {}, "f:runAsUser": {}},
                "f:containers": {"k:{\"name\":\"a\"}": container},
            }},
        }})
    );
    let mut server = Server::new("io.k8s.api.core.v1.PersistentVolume", "v1");
    server.update("u", |object| {
        *object = json!({"spec": {"claimRef": {"name": "c"}}})
    });
    assert_eq!(
        server.owners()["u (update)"],
        json!({"f:spec": {"f:claimRef": {".": {}, "f:name": {}}}})
    );
}

/// Nobody owns a struct that Go cannot leave out while it is empty, and so nobody's apply takes it away.
#[test]
fn what_nobody_has_set_is_not_pruned() {
    let schema = Schema::builtin();
    let id = schema.type_id(SERVICE).unwrap();
    let live = json!({"status": {"conditions": [{"message": "a"}], "loadBalancer": {}}});
    let config = json!({"status": {}});
    let writer = Writer {
        manager: "m",
        api_version: "v1",
        subresource: "",
        now: "2026-01-02T03:04:05Z",
        reset_fields: &[],
    };
    let once = apply(&schema, id, Some(&live), &config, &writer, false).unwrap();
    assert_eq!(once["status"], live["status"]);
    let twice = apply(&schema, id, Some(&once), &config, &writer, false).unwrap();
    assert_eq!(twice, once);
}
