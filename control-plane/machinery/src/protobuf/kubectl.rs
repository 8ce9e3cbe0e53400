//! Bodies that kubectl 1.33 sent, each from one command, against what they say.

use base64::Engine as _;
use rstest::rstest;
use serde_json::{Value, json};

use super::{decode, decode_envelope, encode};
use crate::schema::Schema;

#[rstest]
#[case::configmap(
    "azhzAAoPCgJ2MRIJQ29uZmlnTWFwEhsKEQoBYxIAGgAiACoAMgA4AEIAEgYKAWESAWIaACIA",
    json!({"data": {"a": "b"}, "metadata": {"name": "c"}}),
)]
#[case::secret(
    "azhzAAoMCgJ2MRIGU2VjcmV0Eh0KEQoBcxIAGgAiACoAMgA4AEIAEgYKAWESAWIaABoAIgA=",
    json!({"data": {"a": "Yg=="}, "metadata": {"name": "s"}}),
)]
#[case::token(
    "azhzAAooChhhdXRoZW50aWNhdGlvbi5rOHMuaW8vdjESDFRva2VuUmVxdWVzdBIdChAKABIAGgAiACoAMgA4AEIAEg\
     Mg2AQaBAoAEgAaACIA",
    json!({"metadata": {}, "spec": {"expirationSeconds": 600}, "status": {"token": ""}}),
)]
#[case::service(
    "azhzAAoNCgJ2MRIHU2VydmljZRJiChsKAW4SABoAIgAqADIAOABCAFoICgNhcHASAW4SPwobCgc4MC04MDgwEgNUQ1\
     AYUCIHCAAQkD8aACgAEggKA2FwcBIBbhoAIghOb2RlUG9ydDoAQgBSAFoAYABoABoCCgAaACIA",
    json!({"metadata": {"labels": {"app": "n"}, "name": "n"}, "spec": {"ports": [{"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": 8080}], "selector": {"app": "n"}, "type": "NodePort"}, "status": {"loadBalancer": {}}}),
)]
#[case::deployment(
    "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50Eq4BChsKAWQSABoAIgAqADIAOABCAFoICgNhcHASAWQSgAEIABIKCg\
     gKA2FwcBIBZBpoChoKABIAGgAiACoAMgA4AEIAWggKA2FwcBIBZBJKEiwKA3dlYhIFd2ViOjEqADIKCgAQABhQIgAq\
     AEIAagByAIABAIgBAJABAKIBABoAMgBCAEoAUgBYAGAAaACCAQCKAQCaAQDCAQAiAgoAKAA4ABoMCAAQABgAIAAoAD\
     gAGgAiAA==",
    json!({"metadata": {"labels": {"app": "d"}, "name": "d"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "d"}}, "strategy": {}, "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"image": "web:1", "name": "web", "ports": [{"containerPort": 80}], "resources": {}}]}}}, "status": {}}),
)]
#[case::access_review(
    "azhzAAoyChdhdXRob3JpemF0aW9uLms4cy5pby92MRIXU2VsZlN1YmplY3RBY2Nlc3NSZXZpZXcSPAoQCgASABoAIg\
     AqADIAOABCABIeChwKB2RlZmF1bHQSA2dldBoAIgAqBHBvZHMyADoAGggIABIAGgAgABoAIgA=",
    json!({"metadata": {}, "spec": {"resourceAttributes": {"namespace": "default", "resource": "pods", "verb": "get"}}, "status": {"allowed": false}}),
)]
#[case::job(
    "azhzAAoPCghiYXRjaC92MRIDSm9iEnIKEQoBahIAGgAiACoAMgA4AEIAElMyUQoQCgASABoAIgAqADIAOABCABI9Eh\
     oKAWoSAXgqAEIAagByAIABAIgBAJABAKIBABoFTmV2ZXIyAEIASgBSAFgAYABoAIIBAIoBAJoBAMIBABoIIAAoADAA\
     OgAaACIA",
    json!({"metadata": {"name": "j"}, "spec": {"template": {"metadata": {}, "spec": {"containers": [{"image": "x", "name": "j", "resources": {}}], "restartPolicy": "Never"}}}, "status": {}}),
)]
#[case::ingress(
    "azhzAAofChRuZXR3b3JraW5nLms4cy5pby92MRIHSW5ncmVzcxI8ChEKAWkSABoAIgAqADIAOABCABIjGiEKAWESHA\
     oaChgKAi9iEgsiCQoBYxIECgAQUBoFRXhhY3QaAgoAGgAiAA==",
    json!({"metadata": {"name": "i"}, "spec": {"rules": [{"host": "a", "http": {"paths": [{"backend": {"service": {"name": "c", "port": {"number": 80}}}, "path": "/b", "pathType": "Exact"}]}}]}, "status": {"loadBalancer": {}}}),
)]
fn bodies_say_what_their_commands_said(#[case] body: &str, #[case] expected: Value) {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(body)
        .unwrap();
    let envelope = decode_envelope(&bytes).unwrap();
    let (group, version) = envelope
        .api_version
        .split_once('/')
        .unwrap_or(("", envelope.api_version));
    let schema = Schema::builtin();
    let id = schema.kind_id(group, version, envelope.kind).unwrap();
    let object = decode(&schema, id, envelope.raw).unwrap();
    assert_eq!(object, expected, "{object}");
    // What we write, we read.
    assert_eq!(
        decode(&schema, id, &encode(&schema, id, &object).unwrap()).unwrap(),
        object
    );
}
