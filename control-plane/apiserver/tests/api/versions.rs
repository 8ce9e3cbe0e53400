//! Custom resources in several versions, between which a webhook of the tests converts.

use serde_json::{Value, json};

use crate::definitions::DEFINITIONS;
use crate::hooks::serve;
use crate::server::*;
use crate::watches::{Lines, seen};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_the_versions_of_a_custom_resource() {
    let server = Server::start().await;
    let (url, bundle) = serve(|_, request| convert(request)).await;
    server
        .post(DEFINITIONS, &definition(&url, &bundle))
        .await
        .ok();
    server.until_code(V2, 200).await;
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
    server.until_code(V1, 200).await;
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
    let is_defaulted = |one: &Answer| one.json()["free"] == "late";
    server.until(&format!("{V1}/one"), is_defaulted).await;
    let list = server.get(V1).await.ok();
    assert_eq!(list["items"][0]["free"], "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_is_selected_by_fields_of_its_own() {
    let server = Server::start().await;
    let (url, bundle) = serve(|_, request| convert(request)).await;
    let mut fields = definition(&url, &bundle);
    fields["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".address"}]);
    fields["spec"]["versions"][1]["selectableFields"] =
        json!([{"jsonPath": ".host"}, {"jsonPath": ".port"}]);
    server.post(DEFINITIONS, &fields).await.ok();
    server.until_code(V2, 200).await;

    let on_a = format!("{V2}?watch=1&fieldSelector=host%3Da");
    let mut on_a = Lines::open(&server, &on_a).await;
    let first = format!("{V1}?watch=1&fieldSelector=address%3Da:80");
    let mut first = Lines::open(&server, &first).await;
    for (name, host, port) in [
        ("one", "a", "80"),
        ("two", "a", "8080"),
        ("three", "b", "80"),
    ] {
        let object = json!({"apiVersion": "example.test/v2", "kind": "Host",
            "metadata": {"name": name}, "host": host, "port": port});
        server.post(V2, &object).await.ok();
    }
    let names = async |path: String| {
        let list = server.get(&path).await.ok();
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(format!("{V2}?fieldSelector=host%3Da")).await,
        ["one", "two"]
    );
    assert_eq!(
        names(format!("{V2}?fieldSelector=host%3Da,port!%3D80")).await,
        ["two"]
    );
    let named = format!("{V2}?fieldSelector=metadata.name%3Done,port%3D80");
    assert_eq!(names(named).await, ["one"]);
    assert_eq!(
        names(format!("{V1}?fieldSelector=address%3Da:80")).await,
        ["one"]
    );
    server
        .get(&format!("{V1}?fieldSelector=host%3Da"))
        .await
        .refused(400);
    let page = server
        .get(&format!("{V2}?fieldSelector=host%3Da&limit=1"))
        .await
        .ok();
    let token = page["metadata"]["continue"].as_str().unwrap();
    assert_eq!(page["items"][0]["metadata"]["name"], "one");
    let rest = format!("{V2}?fieldSelector=host%3Da&limit=1&continue={token}");
    assert_eq!(names(rest).await, ["two"]);

    for name in ["one", "two"] {
        assert_eq!(on_a.seen().await, seen("ADDED", name));
    }
    assert_eq!(first.seen().await, seen("ADDED", "one"));
    let one = format!("{V2}?fieldSelector=host%3Da,port%3D80");
    server.delete(&one, &Value::Null).await.ok();
    let moved = json!({"host": "b"});
    server
        .patch(&format!("{V2}/two"), "merge", &moved)
        .await
        .ok();
    for name in ["one", "two"] {
        assert_eq!(on_a.seen().await, seen("DELETED", name));
    }
    assert_eq!(first.seen().await, seen("DELETED", "one"));
    assert_eq!(names(V2.to_owned()).await, ["three", "two"]);
    // Who comes later is told what there is by the same fields.
    let late = format!("{V2}?watch=1&fieldSelector=port%3D8080");
    assert_eq!(
        Lines::open(&server, &late).await.seen().await,
        seen("ADDED", "two")
    );
}

const SIZES_V1: &str = "/apis/example.test/v1/namespaces/default/sizes";
const SIZES_V2: &str = "/apis/example.test/v2/namespaces/default/sizes";

/// Two versions that have little in common, between which nobody converts; the first one is stored.
fn different() -> Value {
    let version = |name: &str, spec: Value, more: Value| {
        let mut version = json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": {
            "type": "object",
            "properties": {
                "spec": {"type": "object", "properties": spec},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        }}});
        for (field, value) in more.as_object().unwrap() {
            version[field] = value.clone();
        }
        version
    };
    let column = |name: &str| json!([{"name": name, "type": "integer", "jsonPath": ".spec.size"}]);
    let small = json!({"size": {"type": "integer", "maximum": 10}, "old": {"type": "string", "default": "yes"}});
    let rule = json!([{"rule": "self.size % 2 == 0", "message": "must be even"}]);
    let mut large = version(
        "v2",
        json!({"size": {"type": "integer", "maximum": 100}, "unit": {"type": "string", "default": "cm"}}),
        json!({"additionalPrinterColumns": column("Large"), "subresources": {"status": {}}}),
    );
    let spec = &mut large["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["required"] = json!(["size"]);
    spec["x-kubernetes-validations"] = rule;
    json!({"metadata": {"name": "sizes.example.test"}, "spec": {
        "group": "example.test", "scope": "Namespaced", "names": {"plural": "sizes", "kind": "Size"},
        "versions": [version("v1", small, json!({"additionalPrinterColumns": column("Small")})), large],
    }})
}

fn size(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.test/{version}"), "kind": "Size", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn each_version_has_its_own_rules_defaults_columns_and_subresources() {
    let server = Server::start().await;
    server.post(DEFINITIONS, &different()).await.ok();
    server.until_code(SIZES_V2, 200).await;

    // What one version forbids the other may allow, also for what is stored.
    let fault = |answer: &Value| {
        answer["details"]["causes"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let refused = server
        .post(SIZES_V1, &size("v1", "a", json!({"size": 50})))
        .await
        .refused(422);
    assert!(
        fault(&refused).contains("less than or equal to 10"),
        "{refused}"
    );
    let refused = server
        .post(SIZES_V2, &size("v2", "a", json!({"size": 5})))
        .await
        .refused(422);
    assert!(fault(&refused).contains("must be even"), "{refused}");
    server
        .post(SIZES_V2, &size("v2", "a", json!({})))
        .await
        .refused(422);
    let made = server
        .post(
            SIZES_V2,
            &size("v2", "a", json!({"size": 50, "unit": "m", "old": "no"})),
        )
        .await
        .ok();
    // The storage version has no unit, so that it is lost, and its default comes again; it has something else instead.
    assert_eq!(made["spec"], json!({"size": 50}));
    let read = server.get(&format!("{SIZES_V1}/a")).await.ok();
    assert_eq!(read["spec"], json!({"size": 50, "old": "yes"}));

    // A change obeys the version that it is made in.
    let path = format!("{SIZES_V2}/a");
    let patch = json!({"spec": {"size": 60}});
    server.patch(&path, "merge", &patch).await.ok();
    server
        .patch(&path, "merge", &json!({"spec": {"size": 61}}))
        .await
        .refused(422);
    let path = format!("{SIZES_V1}/a");
    server
        .patch(&path, "merge", &json!({"spec": {"size": 12}}))
        .await
        .refused(422);
    let changed = server
        .patch(&path, "merge", &json!({"spec": {"size": 7}}))
        .await
        .ok();
    assert_eq!(changed["spec"]["size"], 7);

    // One has a status of its own, the other has it with the rest.
    let status = json!({"status": {"seen": true}});
    let path = format!("{SIZES_V1}/a");
    let written = server.patch(&path, "merge", &status).await.ok();
    assert_eq!(written["status"], status["status"]);
    server.get(&format!("{path}/status")).await.refused(404);
    let even = json!({"spec": {"size": 8}, "status": {"seen": false}});
    let path = format!("{SIZES_V2}/a");
    let written = server.patch(&path, "merge", &even).await.ok();
    assert_eq!(written["status"], status["status"]);
    let unseen = json!({"status": {"seen": false}});
    let path = format!("{SIZES_V2}/a/status");
    let written = server.patch(&path, "merge", &unseen).await.ok();
    assert_eq!(written["status"], unseen["status"]);
    for (path, expected) in [
        ("/apis/example.test/v1", vec!["sizes"]),
        ("/apis/example.test/v2", vec!["sizes", "sizes/status"]),
    ] {
        let list = server.get(path).await.ok();
        let resources = list["resources"].as_array().unwrap().iter();
        let names: Vec<_> = resources
            .filter_map(|it| it["name"].as_str())
            .filter(|name| name.starts_with("sizes"))
            .collect();
        assert_eq!(names, expected);
    }

    let media = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for (path, column) in [(SIZES_V1, "Small"), (SIZES_V2, "Large")] {
        let request = http::Request::get(path).header("accept", media);
        let table = server.send(request, "").await.ok();
        assert_eq!(table["columnDefinitions"][1]["name"], column);
        assert_eq!(
            table["columnDefinitions"][1]["description"],
            "Custom resource definition column (in JSONPath format): .spec.size"
        );
        assert_eq!(table["rows"][0]["cells"], json!(["a", 8]));
    }
}
