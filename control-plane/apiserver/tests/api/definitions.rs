//! Definitions of custom resources that come, change and go.

use serde_json::{Value, json};

use crate::server::*;
use crate::watches::Lines;

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Of the group `life.test`, in one version, with any content.
pub fn definition(plural: &str, kind: &str) -> Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({"metadata": {"name": format!("{plural}.life.test")}, "spec": {
        "group": "life.test", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": schema}}]}})
}

pub fn instances(plural: &str) -> String {
    format!("/apis/life.test/v1/namespaces/default/{plural}")
}

fn is(definition: &Value, condition: &str, status: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == condition && c["status"] == status)
}

/// Waits until a definition says what `holds` wants.
async fn told(server: &Server, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let path = format!("{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3D{name}");
    let mut watch = Lines::open(server, &path).await;
    loop {
        let event = watch.next().await.expect("the watch goes on");
        if event["type"] != "DELETED" && holds(&event["object"]) {
            return event["object"].clone();
        }
    }
}

/// Makes a definition and waits until it is established.
pub async fn establish(server: &Server, plural: &str, kind: &str) {
    let definition = definition(plural, kind);
    server.post(DEFINITIONS, &definition).await.ok();
    let name = definition["metadata"]["name"].as_str().unwrap();
    told(server, name, |told| is(told, "Established", "True")).await;
}

#[tokio::test]
async fn what_is_established_is_served_and_discovered() {
    let server = Server::start().await;
    for turn in 0..8 {
        let plural = format!("things{turn}");
        establish(&server, &plural, &format!("Thing{turn}")).await;
        server.get(&instances(&plural)).await.ok();
        let discovered = server.get("/apis/life.test/v1").await.ok();
        let mut names = discovered["resources"].as_array().unwrap().iter();
        let found = names.find(|resource| resource["name"] == plural);
        assert_eq!(
            found.expect(&plural)["verbs"],
            json!([
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch"
            ])
        );
    }
}

/// As it comes up while others write, with a client that has lost its server and asks at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_custom_resources_resumes_at_a_server_that_has_just_started() {
    const WRITES: usize = 120;
    let folder = tempfile::tempdir().unwrap();
    let (store, _etcd) = crate::store::open(folder.path()).await;
    let first = Server::start_over(store.clone(), Setup::default()).await;
    establish(&first, "logs", "Log").await;
    let path = instances("logs");
    let write = async |from: usize, to: usize| {
        for number in from..to {
            let name = format!("log{}", number / 2);
            if number % 2 == 0 {
                let log = json!({"apiVersion": "life.test/v1", "kind": "Log", "metadata": {"name": name}});
                first.post(&path, &log).await.ok();
            } else {
                let log = format!("{path}/{name}");
                first.delete(&log, &Value::Null).await.ok();
            }
        }
    };
    let list = first.get(&path).await.ok();
    let watch = format!(
        "{path}?watch=1&resourceVersion={}",
        list["metadata"]["resourceVersion"].as_str().unwrap()
    );
    write(0, WRITES / 2).await;
    let start = Server::start_over(store, Setup::default());
    let (second, ()) = tokio::join!(start, write(WRITES / 2, WRITES));
    second.get(&path).await.ok();
    let mut of_first = Lines::open(&first, &watch).await;
    let mut of_second = Lines::open(&second, &watch).await;
    for number in 0..WRITES {
        let (expected, told) = (of_first.next().await, of_second.next().await);
        assert_eq!(told, expected, "event {number}");
    }
}

#[tokio::test]
async fn of_two_definitions_with_one_kind_the_second_waits_for_the_first() {
    let server = Server::start().await;
    let (ones, twos) = (definition("ones", "Same"), definition("twos", "Same"));
    let posted = [
        server.post(DEFINITIONS, &ones),
        server.post(DEFINITIONS, &twos),
    ];
    for answer in futures::future::join_all(posted).await {
        answer.ok();
    }
    let judged =
        |told: &Value| is(told, "NamesAccepted", "True") || is(told, "NamesAccepted", "False");
    let one = told(&server, "ones.life.test", judged).await;
    let two = told(&server, "twos.life.test", judged).await;
    let accepted = [&one, &two].map(|told| is(told, "NamesAccepted", "True"));
    assert!(
        accepted[0] != accepted[1],
        "one of them has the kind: {accepted:?}"
    );
    let (first, second) = if accepted[0] {
        ("ones", "twos.life.test")
    } else {
        ("twos", "ones.life.test")
    };
    let first = format!("{DEFINITIONS}/{first}.life.test");
    server.delete(&first, &Value::Null).await.ok();
    told(&server, second, |told| is(told, "Established", "True")).await;
}

#[tokio::test]
async fn an_instance_that_stays_holds_its_own_definition_and_no_other() {
    let server = Server::start().await;
    for (plural, kind) in [("anchors", "Anchor"), ("boats", "Boat")] {
        establish(&server, plural, kind).await;
    }
    let anchor = json!({"apiVersion": "life.test/v1", "kind": "Anchor",
        "metadata": {"name": "a", "finalizers": ["life.test/hold"]}});
    let anchors = instances("anchors");
    server.post(&anchors, &anchor).await.ok();
    let anchors_definition = format!("{DEFINITIONS}/anchors.life.test");
    server.delete(&anchors_definition, &Value::Null).await.ok();
    let ending = |told: &Value| is(told, "Terminating", "True");
    told(&server, "anchors.life.test", ending).await;
    let refused = server
        .post(
            &anchors,
            &json!({"metadata": {"name": "b"},
        "apiVersion": "life.test/v1", "kind": "Anchor"}),
        )
        .await
        .refused(405);
    assert_eq!(
        refused["message"],
        "create not allowed while custom resource definition is terminating"
    );

    // Later in every list than the one that waits.
    server
        .delete(&format!("{DEFINITIONS}/boats.life.test"), &Value::Null)
        .await
        .ok();
    server
        .until_code(&format!("{DEFINITIONS}/boats.life.test"), 404)
        .await;
    establish(&server, "crates", "Crate").await;
    let kept = server.get(&anchors_definition).await.ok();
    assert_eq!(kept["metadata"]["finalizers"].as_array().unwrap().len(), 1);

    let free = json!({"metadata": {"finalizers": null}});
    server
        .patch(&format!("{anchors}/a"), "merge", &free)
        .await
        .ok();
    server.until_code(&anchors_definition, 404).await;
    server.until_code(&anchors, 404).await;
}

#[tokio::test]
async fn a_custom_resource_scales_with_and_without_a_resource_version() {
    let server = Server::start().await;
    let mut scaled = definition("fleets", "Fleet");
    scaled["spec"]["versions"][0]["subresources"] = json!({"scale": {
        "specReplicasPath": ".spec.ships", "statusReplicasPath": ".status.ships", "labelSelectorPath": ".status.selector",
    }});
    server.post(DEFINITIONS, &scaled).await.ok();
    told(&server, "fleets.life.test", |told| {
        is(told, "Established", "True")
    })
    .await;
    let fleet = json!({
        "apiVersion": "life.test/v1", "kind": "Fleet", "metadata": {"name": "home"},
        "spec": {"ships": 2}, "status": {"ships": 1, "selector": "of=home"},
    });
    server.post(&instances("fleets"), &fleet).await.ok();
    let path = format!("{}/home/scale", instances("fleets"));
    let mut scale = server.get(&path).await.ok();
    assert_eq!(scale["spec"], json!({"replicas": 2}));
    assert_eq!(
        scale["status"],
        json!({"replicas": 1, "selector": "of=home"})
    );
    let bare = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "home"}, "spec": {"replicas": 3},
    });
    // As upstream: the custom resource itself could not be replaced like this.
    assert_eq!(server.put(&path, &bare).await.ok()["spec"]["replicas"], 3);
    scale["spec"]["replicas"] = 4.into();
    server.put(&path, &scale).await.refused(409);
    let present = server.get(&format!("{}/home", instances("fleets"))).await;
    assert_eq!(present.ok()["spec"]["ships"], 3);
}

#[tokio::test]
async fn a_custom_resource_says_itself_what_it_is() {
    let server = Server::start().await;
    establish(&server, "rafts", "Raft").await;
    let rafts = instances("rafts");
    let raft = json!({"apiVersion": "life.test/v1", "kind": "Raft", "metadata": {"name": "r"}, "spec": {}});
    let made = server.post(&rafts, &raft).await.ok();
    let own = format!("{rafts}/r");
    let unread = "couldn't get version/kind; json parse error: json: cannot unmarshal";
    for (field, value, words) in [
        ("kind", Value::Null, "Object 'Kind' is missing in"),
        ("kind", json!(""), "Object 'Kind' is missing in"),
        (
            "kind",
            json!(7),
            &*format!("{unread} number into Go struct field .kind"),
        ),
        (
            "apiVersion",
            json!([]),
            &*format!("{unread} array into Go struct field .apiVersion"),
        ),
        (
            "apiVersion",
            Value::Null,
            "the API version in the data () does not match",
        ),
        (
            "kind",
            json!("Boat"),
            "Boat in version \"v1\" cannot be handled as a Raft",
        ),
    ] {
        let mut other = made.clone();
        other[field] = value.clone();
        for refused in [
            server.post(&rafts, &other).await.refused(400),
            server.put(&own, &other).await.refused(400),
        ] {
            let message = refused["message"].as_str().unwrap();
            assert!(message.contains(words), "{message}");
        }
        let path = format!("{own}?fieldManager=m");
        let refused = server.patch(&path, "apply", &other).await.refused(400);
        let message = refused["message"].as_str().unwrap();
        assert!(message.starts_with("invalid object type: "), "{message}");
    }
    let bare = json!({"kind": null});
    let refused = server.patch(&own, "merge", &bare).await.refused(422);
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("Object 'Kind' is missing in"), "{message}");
}
