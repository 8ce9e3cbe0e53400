use base64::Engine as _;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::schema::arbitrary::{self, Seed};
use crate::schema::{Schema, TypeId};

fn id(kind: &str) -> TypeId {
    Schema::builtin().type_id(kind).unwrap()
}

const POD: &str = "io.k8s.api.core.v1.Pod";

/// What kubectl 1.32 sends for `create configmap c --from-literal=a=b` and `create token`.
#[test]
fn bodies_of_kubectl_are_understood() {
    // magic, TypeMeta{v1, ConfigMap}, raw: metadata{name, zero fields that gogo writes}, data{a: b}
    let mut meta = Vec::new();
    wire::put_bytes(&mut meta, 1, b"c");
    for tag in [2, 3, 4, 5, 6] {
        wire::put_bytes(&mut meta, tag, b"");
    }
    wire::put_int(&mut meta, 7, 0);
    wire::put_bytes(&mut meta, 8, b"");
    let mut raw = Vec::new();
    wire::put_bytes(&mut raw, 1, &meta);
    wire::put_bytes(&mut raw, 2, b"\x0a\x01a\x12\x01b");
    let body = wrap("v1", "ConfigMap", &raw);
    let envelope = decode_envelope(&body).unwrap();
    assert_eq!(
        (envelope.api_version, envelope.kind, envelope.content_type),
        ("v1", "ConfigMap", "")
    );
    let object = decode(
        &Schema::builtin(),
        id("io.k8s.api.core.v1.ConfigMap"),
        envelope.raw,
    )
    .unwrap();
    assert_eq!(
        object,
        json!({"metadata": {"name": "c"}, "data": {"a": "b"}})
    );
}

/// Bytes written by hand after the public description of the format.
#[rstest]
#[case("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", "CAoaAAAq", None)]
#[case(
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "CAoiCk9ycGhhbg==",
    None
)]
#[case("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", "CAoiBk9ycGhhbg==",
    Some(json!({"gracePeriodSeconds": 10, "propagationPolicy": "Orphan"})))]
#[case("io.k8s.apimachinery.pkg.apis.meta.v1.Preconditions", "CgExEgEy", Some(json!({"uid": "1", "resourceVersion": "2"})))]
fn small_messages(#[case] kind: &str, #[case] base64: &str, #[case] expected: Option<Value>) {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .unwrap();
    assert_eq!(decode(&Schema::builtin(), id(kind), &bytes).ok(), expected);
}

#[test]
fn special_types_have_their_own_messages() {
    let object = json!({
        "metadata": {"creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"a": ""},
            "managedFields": [{"manager": "m", "time": "2026-01-02T03:04:05Z", "fieldsV1": {"f:a": {}}}]},
        "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "projected": {"sources": [
                {"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "r", "divisor": "0"}}]}}]}}],
            "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
        },
    });
    let schema = Schema::builtin();
    let bytes = encode(&schema, id(POD), &object).unwrap();
    assert_eq!(decode(&schema, id(POD), &bytes).unwrap(), object);
}

/// As upstream's own samples have it: an entry without a time is neither lost nor given one.
#[test]
fn a_time_in_a_map_may_be_unset() {
    let object = json!({"status": {"disruptedPods": {"a": null, "b": "2026-01-02T03:04:05Z"}}});
    let kind = id("io.k8s.api.policy.v1.PodDisruptionBudget");
    let schema = Schema::builtin();
    let bytes = encode(&schema, kind, &object).unwrap();
    assert_eq!(decode(&schema, kind, &bytes).unwrap(), object);
    let mut checked = object.clone();
    let report = crate::fields::check(&schema, kind, &mut checked);
    assert_eq!((report.errors, checked), (Vec::new(), object));
}

#[test]
fn a_review_keeps_its_extra_lists() {
    let object = json!({"spec": {"user": "u", "extra": {"a": ["x", "y"], "b": []}}});
    let kind = id("io.k8s.api.authorization.v1.SubjectAccessReview");
    let schema = Schema::builtin();
    let bytes = encode(&schema, kind, &object).unwrap();
    assert_eq!(decode(&schema, kind, &bytes).unwrap(), object);
}

#[test]
fn every_type_survives_the_round_trip() {
    let schema = Schema::builtin();
    for (id, ty) in schema.types() {
        for seed in 0..40 {
            let object = arbitrary::object(&schema, id, &mut Seed(seed), 0);
            let bytes = encode(&schema, id, &object).unwrap();
            let back = decode(&schema, id, &bytes)
                .unwrap_or_else(|error| panic!("{}: {error}: {object}", ty.name));
            assert_eq!(back, object, "{}", ty.name);
        }
    }
}

#[test]
fn hostile_bytes_cost_an_error_only() {
    let schema = Schema::builtin();
    let huge_length = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(
        decode(&schema, id(POD), &huge_length),
        Err(ProtobufError::Truncated)
    );
    let endless = [
        0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
    ];
    assert_eq!(
        decode(&schema, id(POD), &endless),
        Err(ProtobufError::VarintTooLong)
    );
    assert_eq!(
        decode(&schema, id(POD), &[0x03]),
        Err(ProtobufError::IllegalTag(0))
    );
    assert_eq!(
        decode(&schema, id(POD), &[0x0b]),
        Err(ProtobufError::IllegalWireType(3))
    );
    assert_eq!(decode_envelope(b"{}"), Err(ProtobufError::NoMagic));
    // A schema in a schema in a schema: `not` is tag 28.
    let mut nested = Vec::new();
    for _ in 0..5_000 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 28, &nested);
        nested = outer;
    }
    let props = id("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    assert_eq!(decode(&schema, props, &nested), Err(ProtobufError::TooDeep));
    // An object in an envelope in an object, and so on.
    let list = id("io.k8s.apimachinery.pkg.apis.meta.v1.List");
    let mut nested = b"{}".to_vec();
    for _ in 0..500 {
        let mut extension = Vec::new();
        wire::put_bytes(&mut extension, 1, &nested);
        let mut items = Vec::new();
        wire::put_bytes(&mut items, 2, &extension);
        nested = wrap("meta.k8s.io/v1", "List", &items);
    }
    let envelope = decode_envelope(&nested).unwrap();
    assert_eq!(
        decode(&schema, list, envelope.raw),
        Err(ProtobufError::TooDeep)
    );
}

proptest! {
    #[test]
    fn truncated_and_mangled_bodies_never_panic(seed in any::<u64>(), cut in any::<prop::sample::Index>(), flip in any::<u8>()) {
        let schema = Schema::builtin();
        let object = arbitrary::object(&schema, id(POD), &mut Seed(seed), 0);
        let mut bytes = encode(&schema, id(POD), &object).unwrap();
        if !bytes.is_empty() {
            let at = cut.index(bytes.len());
            let _ = decode(&schema, id(POD), &bytes[..at]);
            bytes[at] ^= flip;
            let _ = decode(&schema, id(POD), &bytes);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let schema = Schema::builtin();
        let _ = decode(&schema, id(POD), &bytes);
        let _ = decode_envelope(&bytes);
    }
}
