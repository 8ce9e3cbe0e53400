//! Rules in the schemas of custom resources: what their author and what the author of an object is told.

use serde_json::{Value, json};

use crate::server::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FLEETS: &str = "/apis/rules.test/v1/namespaces/default/fleets";

/// Of ships with names, of which each keeps its size.
fn fleets(rules: Value) -> Value {
    let ship = json!({"type": "object", "required": ["name"],
        "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.size == oldSelf.size", "message": "size is immutable"}]});
    let spec = json!({"type": "object", "x-kubernetes-validations": rules, "properties": {
        "min_crew": {"type": "integer"}, "max_crew": {"type": "integer"},
        "ships": {"type": "array", "maxItems": 10, "items": ship,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}}});
    let schema = json!({"type": "object", "properties": {"spec": spec}});
    json!({"metadata": {"name": "fleets.rules.test"}, "spec": {
        "group": "rules.test", "scope": "Namespaced", "names": {"plural": "fleets", "kind": "Fleet"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

fn fleet(spec: Value) -> Value {
    json!({"apiVersion": "rules.test/v1", "kind": "Fleet", "metadata": {"name": "f"}, "spec": spec})
}

#[tokio::test]
async fn a_rule_about_nothing_is_refused_with_its_definition() {
    let server = Server::start().await;
    for (rule, words) in [
        ("self.crew > 1", "undefined field 'crew'"),
        ("isLarge(self)", "undeclared reference to 'isLarge'"),
        ("self.min_crew =", "compilation failed"),
        ("self.max_crew", "must evaluate to a bool"),
    ] {
        let definition = fleets(json!([{ "rule": rule }]));
        let status = server.post(DEFINITIONS, &definition).await.refused(422);
        let cause = &status["details"]["causes"][0];
        assert_eq!(
            cause["field"],
            "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"
        );
        assert!(
            cause["message"].as_str().unwrap().contains(words),
            "{cause}"
        );
    }
}

#[tokio::test]
async fn what_a_rule_says_is_told_with_the_type_of_what_it_is_about() {
    let server = Server::start().await;
    let rules = json!([{"rule": "self.min_crew <= self.max_crew", "messageExpression":
        "'at most ' + string(self.max_crew)", "fieldPath": ".min_crew"}]);
    server.post(DEFINITIONS, &fleets(rules)).await.ok();
    server.until_code(FLEETS, 200).await;
    let refused = server
        .post(FLEETS, &fleet(json!({"min_crew": 3, "max_crew": 2})))
        .await
        .refused(422);
    assert_eq!(
        refused["message"],
        "Fleet.rules.test \"f\" is invalid: spec.min_crew: Invalid value: \"object\": at most 2"
    );
    let ships = json!([{"name": "a", "size": 1}, {"name": "b", "size": 2}]);
    let made = fleet(json!({"min_crew": 1, "max_crew": 2, "ships": ships}));
    server.post(FLEETS, &made).await.ok();
    let own = format!("{FLEETS}/f");
    let moved = json!([{"name": "c", "size": 3}, {"name": "b", "size": 2}]);
    server
        .patch(&own, "merge", &json!({"spec": {"ships": moved}}))
        .await
        .ok();
    let grown = json!([{"name": "c", "size": 3}, {"name": "b", "size": 9}]);
    let refused = server
        .patch(&own, "merge", &json!({"spec": {"ships": grown}}))
        .await
        .refused(422);
    assert_eq!(
        refused["details"]["causes"][0],
        json!({"reason": "FieldValueInvalid", "field": "spec.ships[1]",
            "message": "Invalid value: \"object\": size is immutable"})
    );
    // Upstream's types are not Go's here: rules tell of them, and server-side apply.
    let wrong = json!({"spec": {"max_crew": "many"}});
    let refused = server.patch(&own, "merge", &wrong).await.refused(422);
    let message = refused["message"].as_str().unwrap();
    assert_eq!(
        message,
        "Fleet.rules.test \"f\" is invalid: [spec.max_crew: Invalid value: \"string\": spec.max_crew in body must be of type \
         integer: \"string\", <nil>: Invalid value: \"null\": some validation rules were not checked because the object was \
         invalid; correct the existing errors to complete validation]"
    );
    let more = json!({"spec": {"max_crew": 9}});
    server.patch(&own, "strategic", &more).await.refused(415);
    let wrong = fleet(json!({"max_crew": "many"}));
    let path = format!("{own}?fieldManager=m");
    let refused = server.patch(&path, "apply", &wrong).await.refused(500);
    assert_eq!(
        refused["message"],
        "failed to create typed patch object (default/f; rules.test/v1, Kind=Fleet): .spec.max_crew: expected numeric (int or \
         float), got string"
    );
}

#[tokio::test]
async fn an_applied_configuration_of_another_version_is_refused() {
    let server = Server::start().await;
    let mut other = config_map("a");
    other["apiVersion"] = "apps/v1".into();
    let path = format!("{CONFIG_MAPS}/a?fieldManager=m");
    let status = server.patch(&path, "apply", &other).await.refused(400);
    assert_eq!(
        status["message"],
        "invalid object type: apps/v1, Kind=ConfigMap"
    );
}

#[tokio::test]
async fn components_are_asked_how_they_are() {
    let server = Server::start().await;
    let path = "/api/v1/componentstatuses";
    let request =
        http::Request::get(path).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(request, "").await.ok();
    let rows = table["rows"].as_array().unwrap().iter();
    let rows: Vec<_> = rows
        .map(|row| (&row["cells"][0], &row["cells"][1]))
        .collect();
    let [unhealthy, healthy] = ["Unhealthy", "Healthy"].map(Value::from);
    assert_eq!(
        rows,
        [
            (&json!("controller-manager"), &unhealthy),
            (&json!("etcd-0"), &healthy),
            (&json!("scheduler"), &unhealthy)
        ]
    );
    let lease = json!({"metadata": {"name": "kube-scheduler"}, "spec": {
        "holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2999-01-01T00:00:00.000000Z"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    server.post(leases, &lease).await.ok();
    // A list waits until the cache knows.
    server.get(leases).await.ok();
    let scheduler = server.get(&format!("{path}/scheduler")).await.ok();
    assert_eq!(
        scheduler["conditions"],
        json!([{"type": "Healthy", "status": "True", "message": "ok"}])
    );
    server.get(&format!("{path}/none")).await.refused(404);
}
