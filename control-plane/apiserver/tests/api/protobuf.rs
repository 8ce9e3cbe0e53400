//! Answers in protobuf, for clients that accept nothing else.

use http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use windlass_apiserver::authn::UserInfo;
use windlass_machinery::protobuf::{decode, decode_envelope};
use windlass_machinery::schema::Schema;

use crate::server::*;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn read(bytes: &[u8], type_name: &str) -> (String, Value) {
    let envelope = decode_envelope(bytes).unwrap();
    let schema = Schema::builtin();
    let id = schema.type_id(type_name).unwrap();
    (
        envelope.kind.to_owned(),
        decode(&schema, id, envelope.raw).unwrap(),
    )
}

#[tokio::test]
async fn objects_lists_and_failures_come_as_messages() {
    let server = Server::start().await;
    let accept = |path: String| Request::get(path).header("accept", PROTOBUF);
    let made = server.post(CONFIG_MAPS, &config_map("a")).await.ok();

    let one = server.send(accept(format!("{CONFIG_MAPS}/a")), "").await;
    assert_eq!(one.headers["content-type"], PROTOBUF);
    let (kind, value) = read(&one.body, "io.k8s.api.core.v1.ConfigMap");
    assert_eq!(kind, "ConfigMap");
    assert_eq!(value["data"], json!({"k": "v"}));
    assert_eq!(value["metadata"]["uid"], made["metadata"]["uid"]);

    let list = server.send(accept(CONFIG_MAPS.to_owned()), "").await;
    let (kind, value) = read(&list.body, "io.k8s.api.core.v1.ConfigMapList");
    assert_eq!(kind, "ConfigMapList");
    assert_eq!(value["items"][0]["metadata"]["name"], "a");
    assert!(
        !value["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .is_empty()
    );

    let bare = format!("{PROTOBUF};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let request = Request::get(CONFIG_MAPS).header("accept", bare);
    let list = server.send(request, "").await;
    let name = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList";
    assert_eq!(
        read(&list.body, name).1["items"][0]["metadata"]["name"],
        "a"
    );

    let missing = server.send(accept(format!("{CONFIG_MAPS}/b")), "").await;
    assert_eq!(missing.code, 404);
    let name = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
    assert_eq!(read(&missing.body, name).1["reason"], "NotFound");

    let table = format!("{PROTOBUF};as=Table;v=v1;g=meta.k8s.io");
    let request = Request::get(CONFIG_MAPS).header("accept", table);
    assert_eq!(server.send(request, "").await.code, 406);
}

#[tokio::test]
async fn a_watch_is_a_row_of_messages_behind_their_lengths() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let request = Request::get(format!("{CONFIG_MAPS}?watch=1")).header("accept", PROTOBUF);
    let admin = UserInfo::new("admin", &["system:masters"]);
    let mut response = server.open(Some(admin), request, "").await;
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let mut bytes = Vec::new();
    while bytes.len() < 4 {
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        bytes.extend_from_slice(&frame.into_data().unwrap());
    }
    let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    assert_eq!(bytes.len(), 4 + length);
    // The event's type is its first field, the object's envelope lies at the end.
    assert_eq!(&bytes[4..11], b"\x0a\x05ADDED");
    let at = bytes.windows(4).position(|w| w == b"k8s\0").unwrap();
    let (kind, value) = read(&bytes[at..], "io.k8s.api.core.v1.ConfigMap");
    assert_eq!(
        (kind.as_str(), &value["data"]["k"]),
        ("ConfigMap", &json!("v"))
    );
}

#[tokio::test]
async fn a_review_has_no_rows() {
    let server = Server::start().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("content-type", "application/json")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    assert_eq!(server.send(request, review.to_string()).await.code, 406);
}
