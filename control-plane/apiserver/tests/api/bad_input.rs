//! What a client gets wrong, and the answer that says so.

use std::io::Write;

use http::Request;
use rstest::rstest;
use serde_json::{Value, json};
use windlass_apiserver::authn::UserInfo;

use crate::server::*;

#[tokio::test]
async fn an_unknown_field_is_refused_warned_about_or_ignored() {
    let server = Server::start().await;
    let mut object = deployment("d");
    object["spec"]["replicaz"] = 1.into();
    let strict = format!("{DEPLOYMENTS}?fieldValidation=Strict");
    let status = server.post(&strict, &object).await.refused(400);
    assert_eq!(
        status["message"],
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown \
         field \"spec.replicaz\""
    );
    let warned = server
        .post(
            &format!("{DEPLOYMENTS}?fieldValidation=Warn&dryRun=All"),
            &object,
        )
        .await;
    let warnings: Vec<_> = warned.headers.get_all("warning").iter().collect();
    assert_eq!(warnings, [r#"299 - "unknown field \"spec.replicaz\"""#]);
    assert!(warned.ok()["spec"].get("replicaz").is_none());
    let ignored = server
        .post(
            &format!("{DEPLOYMENTS}?fieldValidation=Ignore&dryRun=All"),
            &object,
        )
        .await;
    assert!(ignored.headers.get("warning").is_none());
    assert_eq!(ignored.code, 201);
}

#[tokio::test]
async fn a_duplicate_field_is_refused_under_strict() {
    let server = Server::start().await;
    let text = r#"{"metadata":{"name":"a"},"data":{"k":"1","k":"2"}}"#;
    let request = Request::post(format!("{CONFIG_MAPS}?fieldValidation=Strict"));
    let status = server
        .send(request.header("content-type", "application/json"), text)
        .await
        .refused(400);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("duplicate field \"data.k\""),
        "{status}"
    );
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    *object
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("no {pointer}")) = value;
    object
}

#[rstest]
#[case::name(CONFIG_MAPS, with(config_map("a"), "/metadata/name", json!("Not_A_Name")), "metadata.name", "FieldValueInvalid")]
#[case::no_name(CONFIG_MAPS, with(config_map("a"), "/metadata/name", json!("")), "metadata.name", "FieldValueRequired")]
#[case::label(CONFIG_MAPS, with(config_map("a"), "/metadata", json!({"name": "a", "labels": {"a b": "c"}})), "metadata.labels", "FieldValueInvalid")]
#[case::selector(DEPLOYMENTS, with(deployment("d"), "/spec/selector/matchLabels", json!({"app": "other"})), "spec.template.metadata.labels", "FieldValueInvalid")]
#[case::no_selector(DEPLOYMENTS, with(deployment("d"), "/spec/selector", json!({})), "spec.selector", "FieldValueInvalid")]
#[case::image(PODS, with(pod("p"), "/spec/containers/0", json!({"name": "c"})), "spec.containers[0].image", "FieldValueRequired")]
#[case::no_containers(PODS, with(pod("p"), "/spec/containers", json!([])), "spec.containers", "FieldValueRequired")]
#[tokio::test]
async fn a_fault_is_422_with_its_field_and_reason(
    #[case] path: &str,
    #[case] object: Value,
    #[case] field: &str,
    #[case] reason: &str,
) {
    let server = Server::start().await.with_default_account().await;
    let status = server.post(path, &object).await.refused(422);
    assert_eq!(status["reason"], "Invalid");
    let causes = status["details"]["causes"].as_array().unwrap();
    assert!(
        causes
            .iter()
            .any(|c| c["field"] == field && c["reason"] == reason),
        "{causes:#?}"
    );
}

#[tokio::test]
async fn a_wrong_type_another_kind_and_another_place_are_400() {
    let server = Server::start().await;
    let object = with(config_map("a"), "/data", json!("text"));
    let status = server.post(CONFIG_MAPS, &object).await.refused(400);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("ConfigMap in version \"v1\" cannot be handled")
    );
    server
        .post(
            CONFIG_MAPS,
            &json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}}),
        )
        .await
        .refused(400);
    let elsewhere = json!({"metadata": {"name": "a", "namespace": "other"}});
    server.post(CONFIG_MAPS, &elsewhere).await.refused(400);
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    server
        .put(&format!("{CONFIG_MAPS}/a"), &config_map("b"))
        .await
        .refused(400);
    let nameless =
        "the name of the object (a based on URL) was undeterminable: name must be provided";
    let unnamed = with(config_map("a"), "/metadata", json!({}));
    let refused = server.put(&format!("{CONFIG_MAPS}/a"), &unnamed).await;
    assert_eq!(refused.refused(400)["message"], nameless);
    let unnamed = json!({"metadata": {"name": null}});
    let refused = server
        .patch(&format!("{CONFIG_MAPS}/a"), "merge", &unnamed)
        .await;
    assert_eq!(refused.refused(400)["message"], nameless);
    let versioned = json!({"metadata": {"name": "c", "resourceVersion": "5"}});
    server.post(CONFIG_MAPS, &versioned).await.refused(400);
    // Where nothing can be made of a body its beginning is shown: JSON as it is, all else in hexadecimal digits.
    for (object, shown) in [
        (json!({"kind": 7}), r#"({"kind":7})"#),
        (
            json!({"kind": {"a": "much longer than this"}}),
            r#"({"kind":{"a":"much longer than ...)"#,
        ),
        (json!([1]), "(5b315d)"),
    ] {
        let refused = server.post(CONFIG_MAPS, &object).await.refused(400);
        let message = refused["message"].as_str().unwrap();
        assert!(message.ends_with(shown), "{message}");
    }
}

#[rstest]
#[case::broken_json("application/json", b"{\"metadata\":".to_vec(), 400)]
#[case::not_an_object("application/json", b"[1]".to_vec(), 400)]
#[case::empty("application/json", Vec::new(), 400)]
#[case::deep("application/json", "[".repeat(100_000).into_bytes(), 400)]
#[case::broken_protobuf("application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff".to_vec(), 400)]
#[case::no_protobuf("application/vnd.kubernetes.protobuf", b"hello".to_vec(), 400)]
#[case::broken_yaml("application/yaml", b"a: [".to_vec(), 400)]
#[case::yaml_bomb("application/yaml", yaml_bomb(), 400)]
#[case::unknown_media("text/plain", b"x".to_vec(), 415)]
#[case::large("application/json", vec![b' '; (3 << 20) + 1], 413)]
#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused(
    #[case] media: &str,
    #[case] body: Vec<u8>,
    #[case] code: u16,
) {
    let server = Server::start().await;
    let request = Request::post(CONFIG_MAPS).header("content-type", media);
    server.send(request, body).await.refused(code);
}

fn yaml_bomb() -> Vec<u8> {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        text.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![below; 10].join(",")
        ));
    }
    text.into_bytes()
}

#[tokio::test]
async fn a_gzip_bomb_is_413() {
    let server = Server::start().await;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(&vec![b' '; 100 << 20]).unwrap();
    let request = Request::post(CONFIG_MAPS)
        .header("content-type", "application/json")
        .header("content-encoding", "gzip");
    server
        .send(request, packer.finish().unwrap())
        .await
        .refused(413);
}

#[rstest]
#[case("/api/v1/namespaces/default/nothings", 404)]
#[case("/api/v1/namespaces/default/pods/p/nothing", 404)]
#[case("/apis/apps/v1/deployments/d", 404)]
#[case("/api/v1/namespaces/default/configmaps?limit=x", 400)]
#[case(
    "/api/v1/namespaces/default/configmaps?resourceVersionMatch=Exact",
    422
)]
#[tokio::test]
async fn a_request_for_what_is_not_there_is_a_status(#[case] path: &str, #[case] code: u16) {
    let server = Server::start().await;
    server.get(path).await.refused(code);
}

/// Outside of the groups that are Kubernetes' own, there is nobody who would write a Status.
#[tokio::test]
async fn a_path_that_is_nobodys_is_a_line_of_text() {
    let server = Server::start().await;
    for path in ["/apis/example.test/v1/things", "/nothing/here"] {
        let answer = server.send(Request::get(path), "").await;
        assert_eq!(
            (answer.code, &answer.body[..]),
            (404, &b"404 page not found\n"[..]),
            "{path}"
        );
    }
}

#[tokio::test]
async fn who_is_not_known_or_not_allowed_is_told_so() {
    let server = Server::start().await;
    let token = Request::get(CONFIG_MAPS).header("authorization", "Bearer nonsense");
    let status = server.send_as(None, token, "").await.refused(401);
    assert_eq!(status["reason"], "Unauthorized");
    let anonymous = server
        .send_as(None, Request::get(CONFIG_MAPS), "")
        .await
        .refused(403);
    assert_eq!(
        anonymous["message"],
        "configmaps is forbidden: User \"system:anonymous\" cannot list resource \"configmaps\" in API \
         group \"\" in the namespace \"default\""
    );
    let nobody = Some(UserInfo::new("eve", &["system:authenticated"]));
    server
        .send_as(nobody, Request::post(CONFIG_MAPS), "{}")
        .await
        .refused(403);
    for path in ["/healthz", "/livez", "/readyz"] {
        let answer = server.send_as(None, Request::get(path), "").await;
        assert_eq!((answer.code, &answer.body[..]), (200, &b"ok"[..]), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_costs_its_sender_the_request() {
    let server = Server::start().await;
    let path = format!("{CONFIG_MAPS}?timeout=200ms");
    let request = Request::post(path).header("content-type", "application/json");
    let silent = http_body_util::StreamBody::new(futures::stream::pending());
    let answer = server
        .send_body(request, http_body_util::BodyExt::boxed_unsync(silent))
        .await;
    assert_eq!(answer.refused(504)["reason"], "Timeout");
    server
        .get(&format!("{CONFIG_MAPS}?timeout=soon"))
        .await
        .refused(400);
    server.get(&format!("{CONFIG_MAPS}?timeout=32s")).await.ok();
}

#[tokio::test]
async fn a_collection_is_neither_replaced_nor_patched() {
    let server = Server::start().await;
    let refused = server.put(CONFIG_MAPS, &config_map("a")).await.refused(405);
    assert_eq!(refused["reason"], "MethodNotAllowed");
    assert_eq!(
        refused["message"],
        "the server does not allow this method on the requested resource"
    );
    let nothing = json!({});
    server
        .patch(CONFIG_MAPS, "merge", &nothing)
        .await
        .refused(405);
}

#[tokio::test]
async fn builtin_kinds_have_no_head() {
    let server = Server::start().await;
    for path in [CONFIG_MAPS, &format!("{CONFIG_MAPS}/kube-root-ca.crt")] {
        server.send(Request::head(path), "").await.refused(405);
    }
    assert_eq!(server.send(Request::head("/version"), "").await.code, 200);
}

#[rstest]
#[case("strategic", json!({"metadata": {"labels": "x"}}), r#"Invalid value: "map[metadata:map[labels:x]]": cannot restore map from string"#)]
#[case("strategic", json!({"data": {"a": 1, "b": null}}), r#"Invalid value: "map[data:map[a:1 b:<nil>]]": cannot convert int64 to string"#)]
#[case("strategic", json!({"immutable": [true]}), r#"Invalid value: "map[immutable:[true]]": unrecognized type: bool"#)]
#[case("strategic", json!({"x": "y"}), r#"Invalid value: "map[x:y]": strict decoding error: unknown field "x""#)]
#[tokio::test]
async fn a_patch_whose_result_is_no_object_of_the_kind_is_invalid(
    #[case] form: &str,
    #[case] patch: Value,
    #[case] why: &str,
) {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a?fieldValidation=Strict");
    let status = server.patch(&path, form, &patch).await.refused(422);
    assert_eq!(
        status["details"],
        json!({"causes": [{"reason": "FieldValueInvalid", "message": why, "field": "patch"}]})
    );
    assert_eq!(status["message"], format!(" \"\" is invalid: patch: {why}"));
}

#[rstest]
#[case("merge", json!([]), "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}")]
#[case("merge", json!(null), "Invalid JSON Patch")]
#[case("strategic", json!(1), "json: cannot unmarshal number into Go value of type map[string]interface {}")]
#[case("json", json!({}), "json: cannot unmarshal object into Go value of type jsonpatch.Patch")]
#[tokio::test]
async fn a_patch_of_the_wrong_shape_is_a_bad_request(
    #[case] form: &str,
    #[case] patch: Value,
    #[case] why: &str,
) {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    let status = server.patch(&path, form, &patch).await.refused(400);
    assert_eq!(status["message"], why);
}

#[tokio::test]
async fn a_merge_patch_that_does_not_fit_is_shown_with_what_it_made() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    let wrong = json!([{"op": "add", "path": "/data", "value": "x"}]);
    for (form, patch) in [("merge", json!({"data": "x"})), ("json", wrong)] {
        let status = server.patch(&path, form, &patch).await.refused(422);
        let message = status["message"].as_str().unwrap();
        assert!(
            message.contains(r#"\"data\":\"x\""#)
                && message.ends_with(
                    "json: cannot unmarshal string into Go struct field ConfigMap.data of type map[string]string"
                ),
            "{form}: {message}"
        );
    }
}
