//! Other forms of objects: tables, metadata, YAML, discovery, OpenAPI.

use http::Request;
use serde_json::{Value, json};

use crate::server::*;
use crate::watches::Lines;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[tokio::test]
async fn kubectl_gets_a_table() {
    let server = Server::start().await.with_default_account().await;
    server.post(PODS, &pod("p")).await.ok();
    for path in [PODS.to_owned(), format!("{PODS}/p")] {
        let table = server
            .send(Request::get(path).header("accept", TABLE), "")
            .await
            .ok();
        assert_eq!(
            (&table["kind"], &table["apiVersion"]),
            (&json!("Table"), &json!("meta.k8s.io/v1"))
        );
        let columns: Vec<_> = table["columnDefinitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(columns[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(cells[..3], [json!("p"), json!("0/1"), json!("Pending")]);
        assert_eq!(cells.len(), columns.len());
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
}

#[tokio::test]
async fn metadata_alone_can_be_asked_for() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = server
        .send(Request::get(CONFIG_MAPS).header("accept", accept), "")
        .await
        .ok();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0].get("data").is_none());
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    // Who asks for the one is not given the other.
    let one = format!("{CONFIG_MAPS}/a");
    let object = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    for (path, accept, code) in [
        (&*one, accept, 406),
        (CONFIG_MAPS, object, 406),
        (&*one, object, 200),
    ] {
        let answer = server.send(Request::get(path).header("accept", accept), "");
        assert_eq!(answer.await.code, code, "{path} {accept}");
    }
}

#[tokio::test]
async fn yaml_goes_in_and_out() {
    let server = Server::start().await;
    let text =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: from-yaml\ndata:\n  k: \"on\"\n";
    let request = Request::post(CONFIG_MAPS)
        .header("content-type", "application/yaml")
        .header("accept", "application/yaml");
    let answer = server.send(request, text).await;
    assert_eq!(
        (
            answer.code,
            answer.headers["content-type"].to_str().unwrap()
        ),
        (201, "application/yaml")
    );
    let yaml = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(yaml.contains("name: from-yaml"), "{yaml}");
    assert_eq!(
        server.get(&format!("{CONFIG_MAPS}/from-yaml")).await.ok()["data"]["k"],
        "on"
    );
    server
        .send(Request::get(CONFIG_MAPS).header("accept", "text/html"), "")
        .await
        .refused(406);
}

#[tokio::test]
async fn discovery_lists_what_is_served() {
    let server = Server::start().await;
    let aggregated =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let apis = server
        .send(Request::get("/apis").header("accept", aggregated), "")
        .await;
    assert!(
        apis.headers["content-type"]
            .to_str()
            .unwrap()
            .contains("as=APIGroupDiscoveryList")
    );
    let apis = apis.ok();
    assert_eq!(apis["kind"], "APIGroupDiscoveryList");
    let apps = apis["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|g| g["metadata"]["name"] == "apps")
        .unwrap();
    let resources = apps["versions"][0]["resources"].as_array().unwrap();
    let deployments = resources
        .iter()
        .find(|r| r["resource"] == "deployments")
        .unwrap();
    assert_eq!(deployments["shortNames"], json!(["deploy"]));
    assert_eq!(server.get("/api").await.ok()["versions"], json!(["v1"]));
    assert_eq!(server.get("/apis").await.ok()["kind"], "APIGroupList");
    let core = server.get("/api/v1").await.ok();
    let named = |name: &str| {
        core["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["name"] == name)
            .cloned()
    };
    assert_eq!(named("pods").unwrap()["shortNames"], json!(["po"]));
    assert_eq!(named("pods/eviction").unwrap()["group"], "policy");
    assert_eq!(server.get("/version").await.ok()["minor"], "35");
}

#[tokio::test]
async fn openapi_lists_what_a_patch_takes() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let document = server.get(url).await.ok();
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"]["kind"],
        "Deployment"
    );
    let parameters: Vec<_> = patch["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert!(
        parameters.contains(&"fieldValidation") && parameters.contains(&"dryRun"),
        "{parameters:?}"
    );
}

#[tokio::test]
async fn every_answer_has_an_audit_id_and_metrics_count_it() {
    let server = Server::start().await;
    let answer = server
        .send(Request::get(CONFIG_MAPS).header("audit-id", "mine"), "")
        .await;
    assert_eq!(answer.headers["audit-id"], "mine");
    assert!(
        server
            .get("/nothing")
            .await
            .headers
            .contains_key("audit-id")
    );
    let mut watch = Lines::open(&server, &format!("{CONFIG_MAPS}?watch=1")).await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    watch.next().await.unwrap();
    let metrics = server.get("/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for series in [
        "apiserver_request_total{verb=\"LIST\"",
        "apiserver_watch_events_total{group=\"\",version=\"v1\",resource=\"configmaps\"} 1",
        "apiserver_longrunning_requests{verb=\"WATCH\"",
        "etcd_request_duration_seconds_count{operation=\"create\",type=\"configmaps\"}",
        "kubernetes_build_info{major=\"1\",minor=\"35\",git_version=\"v1.35",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
    ] {
        let line = text.lines().find(|line| line.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("no {series} in {text}"));
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 0.0, "{line}");
    }
    // Prometheus' format has the names of samples, OpenMetrics those of families.
    let plain = &metrics.headers["content-type"];
    assert_eq!(plain, "text/plain; version=0.0.4; charset=utf-8");
    assert!(text.contains("\n# TYPE apiserver_request_total counter\n"));
    let accept = "application/openmetrics-text; version=1.0.0, text/plain; q=0.5";
    let request = Request::get("/metrics").header("accept", accept);
    let open = server.send(request, "").await;
    let text = String::from_utf8(open.body.to_vec()).unwrap();
    assert!(text.contains("\n# TYPE apiserver_request counter\n") && text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn openapi_v2_names_kinds_in_both_forms() {
    let server = Server::start().await;
    let document = server.get("/openapi/v2").await.ok();
    let definitions = &document["definitions"];
    let deployment = &definitions["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"][0]["kind"],
        "Deployment"
    );
    let spec = &deployment["properties"]["spec"]["$ref"];
    assert_eq!(spec, "#/definitions/io.k8s.api.apps.v1.DeploymentSpec");
    let path = "/api/v1/namespaces/{namespace}/replicationcontrollers";
    let list = &document["paths"][path]["get"];
    let answer = &list["responses"]["200"]["schema"]["$ref"];
    let controllers = "io.k8s.api.core.v1.ReplicationControllerList";
    assert_eq!(*answer, format!("#/definitions/{controllers}"));
    let items = &definitions[controllers]["properties"]["items"];
    assert_eq!(items["description"], "List of replication controllers.");
    let mut queries = list["parameters"].as_array().unwrap().iter();
    assert!(queries.any(|query| query["$ref"] == "#/parameters/labelSelector"));
    let about = &document["parameters"]["labelSelector"];
    assert_eq!(
        (&about["in"], &about["type"]),
        (&json!("query"), &json!("string"))
    );
    assert!(
        about["description"]
            .as_str()
            .unwrap()
            .contains("list of returned")
    );
    let post = &document["paths"][path]["post"]["parameters"][0];
    assert_eq!(
        post["schema"]["$ref"],
        "#/definitions/io.k8s.api.core.v1.ReplicationController"
    );
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let answer = server
        .send(Request::get("/openapi/v2").header("accept", accept), "")
        .await;
    assert_eq!(
        answer.headers["content-type"],
        accept.replace("v2@v1", "v2.v1")
    );
    assert_eq!(answer.body[..5], *b"\n\x032.0");
}

#[tokio::test]
async fn json_is_indented_for_those_who_read_it() {
    let server = Server::start().await;
    let list = format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Da");
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let text = async |path: &str, agent: &str, accept: &str| {
        let request = Request::get(path)
            .header("user-agent", agent)
            .header("accept", accept);
        let answer = server.send(request, "").await;
        String::from_utf8(answer.body.to_vec()).unwrap()
    };
    let json = "application/json";
    let indented =
        "{\n  \"kind\": \"ConfigMapList\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n";
    for (path, agent, accept, is_indented) in [
        (list.clone(), "curl/8.5.0", "*/*", true),
        (list.clone(), "kubectl/v1.35.0", json, false),
        (format!("{list}&pretty=true"), "kubectl/v1.35.0", json, true),
        (format!("{list}&pretty=false"), "curl/8.5.0", json, false),
        (list.clone(), "", "application/json;pretty=1", true),
    ] {
        let text = text(&path, agent, accept).await;
        assert_eq!(
            text.starts_with(indented),
            is_indented,
            "{path}, {agent}: {text}"
        );
        let names = serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(names["items"][0]["metadata"]["name"], "a");
    }
    let missing = text(&format!("{CONFIG_MAPS}/b"), "curl/8.5.0", "*/*").await;
    assert!(missing.ends_with("\"code\": 404\n}"), "{missing}");
    let version = text("/version", "", json).await;
    assert!(version.starts_with("{\n  \""), "{version}");
}
