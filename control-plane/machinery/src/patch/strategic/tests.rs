use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

fn patched(kind: &str, mut object: Value, patch: &Value) -> Result<Value, ApiError> {
    let schema = Schema::builtin();
    let id = schema.type_id(kind).unwrap();
    strategic(&schema, id, &mut object, patch)?;
    Ok(object)
}

const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const DEPLOYMENT_SPEC: &str = "io.k8s.api.apps.v1.DeploymentSpec";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

#[rstest]
#[case::scalars_replace_and_null_removes(
    json!({"nodeName": "a", "hostname": "b"}), json!({"nodeName": "c", "hostname": null}), json!({"nodeName": "c"}))]
#[case::maps_merge(
    json!({"nodeSelector": {"a": "1", "b": "2"}}), json!({"nodeSelector": {"b": null, "c": "3"}}),
    json!({"nodeSelector": {"a": "1", "c": "3"}}))]
#[case::keyed_lists_merge_and_the_patch_leads(
    json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
    json!({"containers": [{"name": "c", "image": "3"}, {"name": "b", "image": "2"}]}),
    json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}))]
#[case::elements_are_deleted_by_key(
    json!({"containers": [{"name": "a"}, {"name": "b"}]}),
    json!({"containers": [{"name": "a", "$patch": "delete"}]}), json!({"containers": [{"name": "b"}]}))]
#[case::lists_are_replaced_on_demand(
    json!({"containers": [{"name": "a"}, {"name": "b"}]}),
    json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}), json!({"containers": [{"name": "c"}]}))]
#[case::maps_are_replaced_on_demand(
    json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
    json!({"securityContext": {"$patch": "replace", "fsGroup": 3}}), json!({"securityContext": {"fsGroup": 3}}))]
#[case::maps_are_emptied_on_demand(
    json!({"securityContext": {"runAsUser": 1}}), json!({"securityContext": {"$patch": "delete"}}),
    json!({"securityContext": {}}))]
#[case::atomic_lists_are_replaced(
    json!({"tolerations": [{"key": "a"}]}), json!({"tolerations": [{"key": "b"}]}),
    json!({"tolerations": [{"key": "b"}]}))]
#[case::retained_keys_drop_the_rest(
    json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
    json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}))]
#[case::order_is_enforced(
    json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
    json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}),
    json!({"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}))]
#[case::order_keeps_the_servers_own_in_place(
    json!({"containers": [{"name": "a"}, {"name": "own"}, {"name": "b"}]}),
    json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "new"}],
        "containers": [{"name": "new"}]}),
    json!({"containers": [{"name": "a"}, {"name": "own"}, {"name": "b"}, {"name": "new"}]}))]
#[case::nested_lists_merge(
    json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]}),
    json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "3"}, {"name": "Y", "$patch": "delete"}]}]}),
    json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "3"}]}]}))]
#[case::directives_are_not_stored(
    json!({}), json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "env": null}],
        "$setElementOrder/containers": [{"name": "b"}]}), json!({"containers": [{"name": "b"}]}))]
#[case::a_marker_is_no_element(
    json!({}), json!({"volumes": [{"name": "v"}, {"$patch": "replace"}]}), json!({"volumes": [{"name": "v"}]}))]
#[case::types_may_change(
    json!({"nodeName": {"a": 1}}), json!({"nodeName": "x"}), json!({"nodeName": "x"}))]
fn pod_specs(#[case] object: Value, #[case] patch: Value, #[case] expected: Value) {
    assert_eq!(patched(POD_SPEC, object, &patch).unwrap(), expected);
}

#[test]
fn scalar_lists_merge_as_sets_and_shrink_by_directive() {
    let object = json!({"finalizers": ["a", "b", "c"]});
    let merged = patched(
        OBJECT_META,
        object.clone(),
        &json!({"finalizers": ["d", "b"]}),
    )
    .unwrap();
    assert_eq!(merged, json!({"finalizers": ["d", "a", "b", "c"]}));
    let patch = json!({"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"]});
    assert_eq!(
        patched(OBJECT_META, object, &patch).unwrap(),
        json!({"finalizers": ["c", "a"]})
    );
}

#[test]
fn a_strategy_changes_with_retained_keys() {
    let object = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}});
    let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}});
    assert_eq!(
        patched(DEPLOYMENT_SPEC, object, &patch).unwrap(),
        json!({"strategy": {"type": "Recreate"}})
    );
}

#[rstest]
#[case(json!({"containers": [{"image": "x"}]}), "does not contain declared merge key: name")]
#[case(json!({"containers": [{"$patch": "delete"}]}), "does not contain declared merge key: name")]
#[case(json!({"containers": [{"name": "a", "$patch": "merge"}]}), "merging lists cannot yet")]
#[case(json!({"containers": [{"name": "a", "$patch": "fly"}]}), "unknown patch type: fly")]
#[case(json!({"securityContext": {"$patch": "fly"}}), "unknown patch type: fly")]
#[case(json!({"containers": ["a"]}), "different types")]
#[case(json!({"containers": [{"name": "b"}, {"name": "a"}], "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}]}), "doesn't match")]
#[case(json!({"$setElementOrder/containers": 1}), "setElementOrder")]
#[case(json!({"$deleteFromPrimitiveList/containers": 1}), "primitive list")]
#[case(json!({"$retainKeys": 1}), "retainKeys")]
#[case(json!({"$retainKeys": ["a"], "b": 1}), "retainKeys")]
fn refused(#[case] patch: Value, #[case] text: &str) {
    let object = json!({"containers": [{"name": "a"}], "securityContext": {"fsGroup": 1}});
    let error = patched(POD_SPEC, object, &patch).unwrap_err();
    assert!(error.message.contains(text), "{error}");
}

#[test]
fn large_lists_cost_no_square() {
    let list = |prefix: &str| -> Vec<Value> {
        (0..50_000)
            .map(|i| json!({"name": format!("{prefix}{i}")}))
            .collect()
    };
    let object = json!({"containers": list("a")});
    let patch = json!({"containers": list("b"), "$setElementOrder/containers": list("b")});
    let merged = patched(POD_SPEC, object, &patch).unwrap();
    assert_eq!(merged["containers"].as_array().unwrap().len(), 100_000);
}

/// Containers with distinct names, some fields set.
fn containers() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::btree_map(
        "[a-e]",
        (any::<Option<u8>>(), prop::option::of("[x-z]")),
        0..5,
    )
    .prop_map(|map| {
        map.into_iter()
            .map(|(name, (image, dir))| {
                let mut container = json!({"name": name});
                if let Some(image) = image {
                    container["image"] = image.to_string().into();
                }
                if let Some(dir) = dir {
                    container["workingDir"] = dir.into();
                }
                container
            })
            .collect()
    })
}

/// The patch that a client makes to get from one list to the other.
fn diff(from: &[Value], to: &[Value]) -> Value {
    let find = |list: &[Value], name: &Value| list.iter().find(|c| c["name"] == *name).cloned();
    let mut changes = Vec::new();
    for target in to {
        let mut change = target.clone();
        if let Some(source) = find(from, &target["name"]) {
            for field in ["image", "workingDir"] {
                if source.get(field).is_some() && target.get(field).is_none() {
                    change[field] = Value::Null;
                }
            }
        }
        changes.push(change);
    }
    for source in from.iter().filter(|c| find(to, &c["name"]).is_none()) {
        changes.push(json!({"name": source["name"], "$patch": "delete"}));
    }
    let order: Vec<Value> = to.iter().map(|c| json!({"name": c["name"]})).collect();
    json!({"containers": changes, "$setElementOrder/containers": order})
}

proptest! {
    #[test]
    fn a_diff_leads_to_its_target(from in containers(), to in containers(), seed in any::<u64>()) {
        let mut to = to;
        // Any order of the target must come out, not only the sorted one.
        to.sort_by_key(|c| c["name"].as_str().unwrap().bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(b.into())));
        let patch = diff(&from, &to);
        let result = patched(POD_SPEC, json!({"containers": from}), &patch).unwrap();
        prop_assert_eq!(&result["containers"], &Value::Array(to));
        // Applying it again changes nothing.
        let again = patched(POD_SPEC, result.clone(), &patch).unwrap();
        prop_assert_eq!(again, result);
    }
}
