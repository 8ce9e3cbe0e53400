//! What a client sends wrong, it is told in Kubernetes' words; and it costs the server nothing.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use windlass_tests::cluster::Cluster;
use windlass_tests::http::Response;
use windlass_tests::namespace::Namespace;
use windlass_tests::proxy::Proxy;
use windlass_tests::stranger;

const MEGABYTE: usize = 1 << 20;
/// What a server may grow by while it refuses a bomb.
const ALLOWED_GROWTH: u64 = 48 << 20;

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "echo", "image": "windlass.dev/echo:dev"}]},
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    })
}

#[test]
fn an_unknown_field_is_refused_or_warned_about_as_the_user_asks() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("unknown")?;
    let mut manifest = deployment();
    manifest["spec"]["replicaz"] = json!(3);
    let text = manifest.to_string();
    let strict = namespace.try_run_with_input(&["apply", "--validate=strict", "-f", "-"], &text)?;
    ensure!(
        !strict.success && strict.stderr.contains(r#"unknown field "spec.replicaz""#),
        "{strict:?}"
    );
    let warn = namespace.try_run_with_input(&["apply", "--validate=warn", "-f", "-"], &text)?;
    ensure!(warn.success, "{warn:?}");
    ensure!(
        warn.stderr
            .contains(r#"Warning: unknown field "spec.replicaz""#),
        "{warn:?}"
    );
    let stored = namespace.get(&["deployment", "web"])?;
    ensure!(stored["spec"]["replicaz"].is_null(), "{stored}");
    Ok(())
}

/// (what is wrong, resource, manifest, [(field, reason)])
type Refused = (
    &'static str,
    &'static str,
    Value,
    &'static [(&'static str, &'static str)],
);

fn refused() -> Vec<Refused> {
    let mut cases: Vec<Refused> = Vec::new();
    let mut case = |what, resource, base: fn() -> Value, change: fn(&mut Value), causes| {
        let mut manifest = base();
        change(&mut manifest);
        cases.push((what, resource, manifest, causes));
    };
    const DEPLOYMENTS: &str = "apis/apps/v1/namespaces/NS/deployments";
    const SERVICES: &str = "api/v1/namespaces/NS/services";
    case(
        "a selector that does not match its template",
        DEPLOYMENTS,
        deployment,
        |manifest| manifest["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"}),
        &[("spec.template.metadata.labels", "FieldValueInvalid")],
    );
    case(
        "no selector",
        DEPLOYMENTS,
        deployment,
        |manifest| manifest["spec"]["selector"] = Value::Null,
        &[("spec.selector", "FieldValueRequired")],
    );
    case(
        "an invalid name",
        DEPLOYMENTS,
        deployment,
        |manifest| manifest["metadata"]["name"] = json!("Not_Valid"),
        &[("metadata.name", "FieldValueInvalid")],
    );
    case(
        "a container without a name",
        DEPLOYMENTS,
        deployment,
        |manifest| manifest["spec"]["template"]["spec"]["containers"][0]["name"] = json!(""),
        &[(
            "spec.template.spec.containers[0].name",
            "FieldValueRequired",
        )],
    );
    case(
        "no container",
        DEPLOYMENTS,
        deployment,
        |manifest| manifest["spec"]["template"]["spec"]["containers"] = json!([]),
        &[("spec.template.spec.containers", "FieldValueRequired")],
    );
    case(
        "a negative number of replicas",
        DEPLOYMENTS,
        deployment,
        |manifest| manifest["spec"]["replicas"] = json!(-1),
        &[("spec.replicas", "FieldValueInvalid")],
    );
    case(
        "a duplicate port",
        SERVICES,
        service,
        |manifest| {
            manifest["spec"]["ports"] =
                json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]);
        },
        &[("spec.ports[1]", "FieldValueDuplicate")],
    );
    case(
        "a duplicate port name",
        SERVICES,
        service,
        |manifest| {
            manifest["spec"]["ports"] =
                json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}]);
        },
        &[("spec.ports[1].name", "FieldValueDuplicate")],
    );
    case(
        "a port that is none",
        SERVICES,
        service,
        |manifest| manifest["spec"]["ports"][0]["port"] = json!(70000),
        &[("spec.ports[0].port", "FieldValueInvalid")],
    );
    case(
        "a node port outside of the range",
        SERVICES,
        service,
        |manifest| {
            manifest["spec"]["type"] = json!("NodePort");
            manifest["spec"]["ports"][0]["nodePort"] = json!(80);
        },
        &[("spec.ports[0].nodePort", "FieldValueInvalid")],
    );
    case(
        "an unknown type of Service",
        SERVICES,
        service,
        |manifest| manifest["spec"]["type"] = json!("Sideways"),
        &[("spec.type", "FieldValueNotSupported")],
    );
    cases
}

#[test]
fn an_invalid_object_is_refused_with_the_causes_that_kubernetes_gives() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("invalid")?;
    let proxy = Proxy::start()?;
    for (what, resource, manifest, expected) in refused() {
        let path = format!("/{}", resource.replace("NS", namespace.name()));
        let response = proxy.post_json(&path, manifest.to_string().as_bytes())?;
        let status = status_object(&response, 422, "Invalid").context(what)?;
        let causes: Vec<(&str, &str)> = status["details"]["causes"]
            .as_array()
            .with_context(|| format!("{what}: no causes in {status}"))?
            .iter()
            .map(|cause| {
                (
                    cause["field"].as_str().unwrap_or_default(),
                    cause["reason"].as_str().unwrap_or_default(),
                )
            })
            .collect();
        for cause in expected {
            ensure!(
                causes.contains(cause),
                "{what}: {cause:?} is missing in {status}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_wrong_type_is_refused_with_the_fields_name() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("type")?;
    let mut manifest = deployment();
    manifest["spec"]["replicas"] = json!("three");
    let said = namespace.try_run_with_input(&["apply", "-f", "-"], &manifest.to_string())?;
    ensure!(
        !said.success && said.stderr.contains("replicas"),
        "{said:?}"
    );
    Ok(())
}

#[test]
fn a_body_that_cannot_be_read_is_a_bad_request() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("broken")?;
    let proxy = Proxy::start()?;
    let path = format!("/api/v1/namespaces/{}/configmaps", namespace.name());
    let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let deep = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{}1{}}}"#,
        r#"{"a":"#.repeat(200),
        "}".repeat(200)
    );
    for (what, media_type, body) in [
        ("broken JSON", "application/json", &b"{\"kind\": "[..]),
        (
            "broken protobuf",
            "application/vnd.kubernetes.protobuf",
            b"k8s\0\xff\xff\xff\xff",
        ),
        (
            "protobuf without its magic",
            "application/vnd.kubernetes.protobuf",
            b"{}",
        ),
        ("JSON nested 100,000 deep", "application/json", &nested),
        (
            "an object nested 200 deep",
            "application/json",
            deep.as_bytes(),
        ),
    ] {
        let response = proxy.post(&path, &[("Content-Type", media_type)], body)?;
        status_object(&response, 400, "BadRequest").context(what)?;
    }
    Ok(())
}

#[test]
fn a_body_over_three_megabytes_is_too_large() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("large")?;
    let proxy = Proxy::start()?;
    let path = format!("/api/v1/namespaces/{}/configmaps", namespace.name());
    let manifest = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"},
        "data": {"key": "x".repeat(4 * MEGABYTE)},
    });
    let response = proxy.post_json(&path, manifest.to_string().as_bytes())?;
    status_object(&response, 413, "RequestEntityTooLarge")?;
    Ok(())
}

#[test]
fn bombs_cost_the_server_no_memory() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("bomb")?;
    let proxy = Proxy::start()?;
    let path = format!("/api/v1/namespaces/{}/configmaps", namespace.name());
    let before = cluster.control_plane()?.resident()?;

    // A gigabyte of spaces becomes a megabyte of gzip.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let spaces = vec![b' '; MEGABYTE];
    for _ in 0..1024 {
        gzip.write_all(&spaces)?;
    }
    let headers = [
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
    ];
    let response = proxy.post(&path, &headers, &gzip.finish()?)?;
    ensure!(
        [400, 413].contains(&response.status),
        "gzip: {} {}",
        response.status,
        response.text()
    );

    // Each level names the one before ten times.
    let mut yaml = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = level - 1;
        yaml += &format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{before}"); 10].join(", ")
        );
    }
    yaml += "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb, annotations: *a11}\n";
    let response = proxy.post(
        &path,
        &[("Content-Type", "application/yaml")],
        yaml.as_bytes(),
    )?;
    ensure!(
        [400, 413].contains(&response.status),
        "YAML: {} {}",
        response.status,
        response.text()
    );

    let growth = cluster.control_plane()?.resident()?.saturating_sub(before);
    ensure!(
        growth < ALLOWED_GROWTH,
        "the control plane grew by {} MB",
        growth >> 20
    );
    Ok(())
}

#[test]
fn a_stale_update_is_a_conflict() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("stale")?;
    namespace.run(&[
        "create",
        "configmap",
        "shared",
        "--from-literal=writer=nobody",
    ])?;
    let mut stale = namespace.get(&["configmap", "shared"])?;
    namespace.run(&[
        "patch",
        "configmap",
        "shared",
        "-p",
        r#"{"data":{"writer":"first"}}"#,
    ])?;
    stale["data"]["writer"] = json!("second");
    let path = format!("/api/v1/namespaces/{}/configmaps/shared", namespace.name());
    let response = Proxy::start()?.put_json(&path, stale.to_string().as_bytes())?;
    let status = status_object(&response, 409, "Conflict")?;
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("the object has been modified"),
        "{message}"
    );
    ensure!(namespace.field(&["configmap", "shared"], "{.data.writer}")? == "first");
    Ok(())
}

#[test]
fn what_is_there_already_cannot_be_created() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("twice")?;
    namespace.run(&["create", "configmap", "once"])?;
    let said = namespace.try_run(&["create", "configmap", "once"])?;
    ensure!(!said.success, "{said:?}");
    ensure!(
        said.stderr.contains(r#"configmaps "once" already exists"#),
        "{said:?}"
    );
    Ok(())
}

#[test]
fn what_is_not_there_is_a_status_object() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let proxy = Proxy::start()?;
    for path in [
        "/api/v1/nothings",
        "/apis/apps/v2",
        "/api/v1/namespaces/default/pods/none",
    ] {
        status_object(&proxy.get(path)?, 404, "NotFound").context(path)?;
    }
    Ok(())
}

#[test]
fn strangers_are_kept_out() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let anonymous = stranger::get("/api/v1/secrets", &[])?;
    let status = status_object(&anonymous, 403, "Forbidden")?;
    ensure!(
        status["message"]
            .as_str()
            .is_some_and(|text| text.contains("system:anonymous")),
        "{status}"
    );
    let wrong = stranger::get("/api/v1/secrets", &[("Authorization", "Bearer wrong")])?;
    status_object(&wrong, 401, "Unauthorized")?;
    ensure!(
        stranger::get("/readyz", &[])?.status == 200,
        "health is for everyone"
    );
    Ok(())
}

/// Checks that a response is a `Status` of this code and reason.
fn status_object(response: &Response, code: u16, reason: &str) -> Result<Value> {
    ensure!(
        response.status == code,
        "{} instead of {code}: {}",
        response.status,
        response.text()
    );
    let status = response.json()?;
    ensure!(
        status["kind"] == "Status" && status["status"] == "Failure",
        "{status}"
    );
    ensure!(
        status["code"] == code && status["reason"] == reason,
        "{status}"
    );
    Ok(status)
}
