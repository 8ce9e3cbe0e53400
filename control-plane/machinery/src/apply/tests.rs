use proptest::prelude::*;
use serde_json::json;

use super::*;

mod wholes;

const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
const SERVICE: &str = "io.k8s.api.core.v1.Service";
const POD: &str = "io.k8s.api.core.v1.Pod";

struct Server {
    kind: &'static str,
    api_version: &'static str,
    live: Option<Value>,
    clock: i64,
}

impl Server {
    fn new(kind: &'static str, api_version: &'static str) -> Self {
        Self {
            kind,
            api_version,
            live: None,
            clock: 1_000_000_000,
        }
    }

    fn with<T>(
        &mut self,
        manager: &str,
        call: impl FnOnce(&Schema, TypeId, Option<&Value>, &Writer<'_>) -> T,
    ) -> T {
        let schema = Schema::builtin();
        self.clock += 1;
        let now = crate::time::format(self.clock);
        let writer = Writer {
            manager,
            api_version: self.api_version,
            subresource: "",
            now: &now,
            reset_fields: &["status"],
        };
        call(
            &schema,
            schema.type_id(self.kind).unwrap(),
            self.live.as_ref(),
            &writer,
        )
    }

    fn apply(&mut self, manager: &str, config: &Value, force: bool) -> Result<(), ApplyError> {
        let applied = self.with(manager, |schema, id, live, writer| {
            apply(schema, id, live, config, writer, force)
        })?;
        self.live = Some(applied);
        Ok(())
    }

    fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
        let mut new = self.live.clone().unwrap_or_else(|| json!({}));
        change(&mut new);
        self.with(manager, |schema, id, live, writer| {
            track_update(schema, id, live, &mut new, writer)
        });
        self.live = Some(new);
    }

    fn object(&self) -> Value {
        let mut object = self.live.clone().unwrap();
        meta::remove(&mut object, "managedFields");
        object
    }

    /// manager -> FieldsV1
    fn owners(&self) -> Value {
        let entries = managed::read(self.live.as_ref().unwrap()).unwrap();
        let owner = |entry: &Entry| match entry.operation {
            Operation::Apply => entry.manager.clone(),
            Operation::Update => format!("{} (update)", entry.manager),
        };
        Value::Object(
            entries
                .iter()
                .map(|entry| (owner(entry), entry.set.to_value()))
                .collect(),
        )
    }

    fn time_of(&self, manager: &str) -> String {
        let entries = managed::read(self.live.as_ref().unwrap()).unwrap();
        entries
            .iter()
            .find(|entry| entry.manager == manager)
            .unwrap()
            .time
            .clone()
    }
}

fn deployment(replicas: Option<i64>) -> Value {
    let mut config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"containers": [
                {"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]},
            ]}},
        },
    });
    if let Some(replicas) = replicas {
        config["spec"]["replicas"] = replicas.into();
    }
    config
}

#[test]
fn an_applied_object_is_owned_field_by_field() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.apply("a", &deployment(Some(3)), false).unwrap();
    assert_eq!(server.object(), deployment(Some(3)));
    assert_eq!(
        server.owners(),
        json!({"a": {
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:spec": {"f:containers": {
                "k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}, "f:ports": {
                    "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}},
        }})
    );
    let entry = &server.live.as_ref().unwrap()["metadata"]["managedFields"][0];
    assert_eq!(
        (
            &entry["operation"],
            &entry["apiVersion"],
            &entry["fieldsType"]
        ),
        (&json!("Apply"), &json!("apps/v1"), &json!("FieldsV1"))
    );
}

#[test]
fn applying_again_changes_nothing_and_dropping_a_field_removes_it() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.apply("a", &deployment(Some(3)), false).unwrap();
    let before = server.live.clone();
    server.apply("a", &deployment(Some(3)), false).unwrap();
    assert_eq!(server.live, before);
    server.apply("a", &deployment(None), false).unwrap();
    assert_eq!(server.object(), deployment(None));
    assert_ne!(
        server.time_of("a"),
        before.unwrap()["metadata"]["managedFields"][0]["time"]
    );
}

#[test]
fn conflicts_read_as_upstreams_and_yield_to_force() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.update("kubectl-client-side-apply", |object| {
        *object = deployment(Some(1))
    });
    let error = ApiError::from(server.apply("a", &deployment(Some(2)), false).unwrap_err());
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    assert_eq!((error.code, error.reason), (409, "Conflict"));
    let cause = &error.details.unwrap().causes[0];
    assert_eq!(
        (
            cause.reason.as_str(),
            cause.message.as_str(),
            cause.field.as_str()
        ),
        (
            "FieldManagerConflict",
            "conflict with \"kubectl-client-side-apply\" using apps/v1",
            ".spec.replicas"
        )
    );
    let mut two = deployment(Some(2));
    two["spec"]["template"]["spec"]["containers"][0]["image"] = "a:2".into();
    let error = ApiError::from(server.apply("a", &two, false).unwrap_err());
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n\
         - .spec.replicas\n- .spec.template.spec.containers[name=\"a\"].image"
    );
    server.apply("a", &two, true).unwrap();
    assert_eq!(server.object(), two);
    let theirs = &server.owners()["kubectl-client-side-apply (update)"];
    assert!(theirs["f:spec"].get("f:replicas").is_none());
    assert_eq!(theirs["f:spec"]["f:selector"], json!({}));
}

#[test]
fn equal_values_are_shared_and_survive_until_the_last_owner_drops_them() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.apply("a", &deployment(Some(3)), false).unwrap();
    server
        .apply(
            "b",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3}}),
            false,
        )
        .unwrap();
    server.apply("a", &deployment(None), false).unwrap();
    assert_eq!(server.object()["spec"]["replicas"], 3);
    server
        .apply(
            "b",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            false,
        )
        .unwrap();
    assert_eq!(server.object(), deployment(None));
}

#[test]
fn elements_of_keyed_lists_come_and_go_with_their_owner() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.apply("a", &deployment(None), false).unwrap();
    let sidecar = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": {"containers": [
        {"name": "sidecar", "image": "s"}]}}}});
    server.apply("b", &sidecar, false).unwrap();
    let names = |server: &Server| -> Vec<String> {
        let object = server.object();
        let containers = object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap();
        containers
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&server), ["a", "sidecar"]);
    server
        .apply(
            "b",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            false,
        )
        .unwrap();
    assert_eq!(names(&server), ["a"]);
    // What an updater set inside an applied element keeps the element alive.
    server.apply("b", &sidecar, false).unwrap();
    server.update("u", |object| {
        object["spec"]["template"]["spec"]["containers"][1]["workingDir"] = "/x".into();
    });
    server
        .apply(
            "b",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            false,
        )
        .unwrap();
    assert_eq!(
        server.object()["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}])
    );
}

#[test]
fn the_configs_order_wins_and_others_stay_in_place() {
    let service = |ports: &[i64]| {
        let ports: Vec<_> = ports
            .iter()
            .map(|p| json!({"port": p, "protocol": "TCP"}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": ports}})
    };
    let ports = |server: &Server| -> Vec<i64> {
        server.object()["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["port"].as_i64().unwrap())
            .collect()
    };
    let mut server = Server::new(SERVICE, "v1");
    server.apply("a", &service(&[1, 2, 3]), false).unwrap();
    server.apply("b", &service(&[9]), false).unwrap();
    assert_eq!(ports(&server), [1, 2, 3, 9]);
    server.apply("a", &service(&[3, 1, 2]), false).unwrap();
    // Items of others follow the item that they followed, also when that one moves to the front.
    assert_eq!(ports(&server), [3, 9, 1, 2]);
    server.apply("a", &service(&[3, 2]), false).unwrap();
    assert_eq!(ports(&server), [3, 9, 2]);
}

#[test]
fn ports_without_protocol_are_the_ones_with_the_default() {
    let mut server = Server::new(SERVICE, "v1");
    server.update("u", |object| {
        *object = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}});
    });
    let config = json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "name": "http"}]}});
    server.apply("a", &config, false).unwrap();
    assert_eq!(
        server.object()["spec"]["ports"],
        json!([{"port": 80, "protocol": "TCP", "nodePort": 30000, "name": "http"}])
    );
    let twice = json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]}});
    let error = server.apply("a", &twice, false).unwrap_err().to_string();
    assert!(
        error.contains("duplicate entries for key [port=80,protocol=\"TCP\"]"),
        "{error}"
    );
    let none = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "x"}]}});
    let mut server = Server::new(POD, "v1");
    assert!(
        server
            .apply("a", &none, false)
            .unwrap_err()
            .to_string()
            .contains("omits all key fields")
    );
}

#[test]
fn updates_take_what_they_change_and_times_move_only_then() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.apply("a", &deployment(Some(3)), false).unwrap();
    server.update("hpa", |object| object["spec"]["replicas"] = 5.into());
    assert!(server.owners()["a"]["f:spec"].get("f:replicas").is_none());
    assert_eq!(
        server.owners()["hpa (update)"],
        json!({"f:spec": {"f:replicas": {}}})
    );
    let before = server.live.clone();
    server.update("hpa", |_| {});
    assert_eq!(server.live, before);
    server.update("u", |object| {
        object["spec"].as_object_mut().unwrap().remove("replicas");
    });
    assert!(server.owners().get("hpa (update)").is_none());
    // Labels that someone added as a whole belong to them as a whole.
    server.update("u", |object| {
        object["metadata"]["annotations"] = json!({"x": "y"})
    });
    assert_eq!(
        server.owners()["u (update)"],
        json!({"f:metadata": {"f:annotations": {".": {}, "f:x": {}}}})
    );
}

#[test]
fn status_is_nobodys_on_the_main_resource_and_a_subresource_has_entries_of_its_own() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    let mut config = deployment(None);
    config["status"] = json!({"replicas": 9});
    server.apply("a", &config, false).unwrap();
    assert!(server.owners()["a"].get("f:status").is_none());
    let schema = Schema::builtin();
    let mut new = server.live.clone().unwrap();
    new["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    let writer = Writer {
        manager: "controller",
        api_version: "apps/v1",
        subresource: "status",
        now: "2026-01-01T00:00:00Z",
        reset_fields: &["spec", "metadata.labels"],
    };
    track_update(
        &schema,
        schema.type_id(DEPLOYMENT).unwrap(),
        server.live.as_ref(),
        &mut new,
        &writer,
    );
    let entry = new["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == "controller");
    let entry = entry.unwrap();
    assert_eq!(entry["subresource"], "status");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:replicas": {}, "f:conditions": {".": {},
            "k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}})
    );
}

#[test]
fn kubectl_takes_over_from_its_client_side_self() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.update("kubectl-client-side-apply", |object| {
        *object = deployment(Some(1));
        let last = object.to_string();
        meta::set_annotation(object, LAST_APPLIED, Some(&last));
    });
    server
        .apply("kubectl", &deployment(Some(2)), false)
        .unwrap();
    let object = server.object();
    assert_eq!(object["spec"]["replicas"], 2);
    let last: Value =
        serde_json::from_str(meta::annotation(&object, LAST_APPLIED).unwrap()).unwrap();
    assert_eq!(last, deployment(Some(2)));
    // Not what someone else changed since.
    server.update("hpa", |object| object["spec"]["replicas"] = 7.into());
    assert!(
        server
            .apply("kubectl", &deployment(Some(3)), false)
            .is_err()
    );
}

#[test]
fn objects_from_before_have_an_owner_once_they_are_applied_to() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.live = Some(deployment(Some(1)));
    server.update("u", |object| object["spec"]["paused"] = true.into());
    assert!(
        server.live.as_ref().unwrap()["metadata"]
            .get("managedFields")
            .is_none()
    );
    let error = ApiError::from(server.apply("a", &deployment(Some(2)), false).unwrap_err());
    assert!(
        error
            .message
            .contains("conflict with \"before-first-apply\" using apps/v1: .spec.replicas"),
        "{error}"
    );
}

#[test]
fn managed_fields_can_be_written_and_reset_by_clients() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.apply("a", &deployment(Some(1)), false).unwrap();
    server.update("x", |object| {
        object["metadata"]["managedFields"][0]["manager"] = "b".into();
    });
    assert!(server.owners().get("b").is_some() && server.owners().get("a").is_none());
    // Forgetting to send them, or sending nonsense, keeps the live ones.
    server.update("x", |object| {
        meta::remove(object, "managedFields");
    });
    assert!(server.owners().get("b").is_some());
    server.update("x", |object| {
        object["metadata"]["managedFields"] = json!([{"operation": "Dance"}])
    });
    assert!(server.owners().get("b").is_some());
    server.update("x", |object| {
        object["metadata"]["managedFields"] = json!([{}])
    });
    assert!(
        server.live.as_ref().unwrap()["metadata"]
            .get("managedFields")
            .is_none()
    );
    let mut config = deployment(None);
    config["metadata"]["managedFields"] = json!([]);
    assert!(matches!(
        server.apply("a", &config, false),
        Err(ApplyError::ManagedFieldsInConfig)
    ));
}

#[test]
fn the_number_of_entries_is_bounded() {
    let mut server = Server::new(DEPLOYMENT, "apps/v1");
    server.update("first", |object| *object = deployment(Some(0)));
    for i in 0..40 {
        server.update(&format!("m{i}"), |object| {
            object["metadata"]["labels"][format!("l{i}")] = "x".into()
        });
    }
    let owners = server.owners();
    assert_eq!(owners.as_object().unwrap().len(), 10);
    assert!(owners.get("ancient-changes (update)").is_some());
    assert!(owners.get("m39 (update)").is_some());
}

/// A pod's configuration made of few names, so that managers meet.
fn config() -> impl Strategy<Value = Value> {
    let word = || prop::sample::select(vec!["x", "y", "z"]);
    let key = || prop::sample::select(vec!["a", "b", "c"]);
    let env = prop::collection::btree_map(key(), word(), 0..3);
    let container = (
        prop::option::of(word()),
        env,
        prop::option::of(prop::collection::vec(word(), 0..3)),
    );
    let containers = prop::collection::btree_map(key(), container, 0..3);
    let labels = prop::collection::btree_map(key(), word(), 0..3);
    let finalizers = prop::collection::btree_set(key(), 0..3);
    let selector = prop::option::of(prop::collection::btree_map(key(), word(), 1..3));
    (containers, labels, finalizers, selector, any::<bool>()).prop_map(
        |(containers, labels, finalizers, selector, reverse)| {
            let mut list: Vec<Value> = containers
                .into_iter()
                .map(|(name, (image, env, args))| {
                    let mut container = json!({"name": name});
                    if let Some(image) = image {
                        container["image"] = image.into();
                    }
                    if !env.is_empty() {
                        let env = env.into_iter().map(|(n, v)| json!({"name": n, "value": v}));
                        container["env"] = env.collect();
                    }
                    if let Some(args) = args {
                        container["args"] = args.into();
                    }
                    container
                })
                .collect();
            if reverse {
                list.reverse();
            }
            // One field is always there: an object that nobody owns anything of is not tracked any more.
            let mut config =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"restartPolicy": "Always"}});
            if !list.is_empty() {
                config["spec"]["containers"] = list.into();
            }
            if !labels.is_empty() {
                config["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                config["metadata"]["finalizers"] = json!(finalizers);
            }
            if let Some(selector) = selector {
                config["spec"]["nodeSelector"] = json!(selector);
            }
            config
        },
    )
}

/// All leaves of the object have an owner, and nobody owns what does not exist.
fn check_ownership(server: &Server) {
    let schema = Schema::builtin();
    let shape = Shape::Struct(schema.type_id(POD).unwrap());
    let live = server.live.as_ref().unwrap();
    let mut object = field_set(&schema, shape, live);
    object.subtract(&Set::of_fields(UNOWNED));
    // Empty structs are what is left of their fields.
    let mut owned = Set::default();
    for entry in managed::read(live).unwrap() {
        owned.union(entry.set);
    }
    object.subtract(&owned);
    object.subtract(&Set::of_fields(["spec"]));
    let mut unowned = Vec::new();
    object.each_path(|path| unowned.push(path.to_owned()));
    assert!(unowned.is_empty(), "unowned: {unowned:?} in {live}");
}

proptest! {
    #[test]
    fn apply_twice_is_apply_once_and_ownership_is_never_lost(
        steps in prop::collection::vec((0..3_usize, any::<bool>(), config()), 1..8)
    ) {
        let mut server = Server::new(POD, "v1");
        for (manager, update, config) in steps {
            let manager = ["a", "b", "c"][manager];
            if update && server.live.is_some() {
                // An update replaces the whole object by the config.
                server.update(manager, |object| *object = config.clone());
            } else {
                server.apply(manager, &config, true).unwrap();
                let schema = Schema::builtin();
                let shape = Shape::Struct(schema.type_id(POD).unwrap());
                // Everything that was applied is there …
                let merged = merge(&schema, shape, Some(server.object()), &config);
                prop_assert_eq!(&merged, &server.object());
                // … owned …
                let entries = managed::read(server.live.as_ref().unwrap()).unwrap();
                let mut expected = field_set(&schema, shape, &config);
                expected.subtract(&Set::of_fields(UNOWNED));
                let mine = entries.iter().find(|e| e.manager == manager && e.operation == Operation::Apply);
                prop_assert_eq!(mine.map(|e| e.set.clone()).unwrap_or_default(), expected);
                // … and applying it again, forced or not, changes nothing.
                let before = server.live.clone();
                server.apply(manager, &config, false).unwrap();
                prop_assert_eq!(&server.live, &before);
            }
            check_ownership(&server);
        }
    }

    #[test]
    fn an_unforced_apply_changes_nothing_of_others(first in config(), second in config()) {
        let mut server = Server::new(POD, "v1");
        server.apply("a", &first, false).unwrap();
        if server.apply("b", &second, false).is_ok() {
            let schema = Schema::builtin();
            let shape = Shape::Struct(schema.type_id(POD).unwrap());
            let merged = merge(&schema, shape, Some(server.object()), &first);
            // Order may differ, content may not.
            prop_assert!(compare(&schema, shape, Some(&merged), Some(&server.object())).is_empty());
        }
    }
}
