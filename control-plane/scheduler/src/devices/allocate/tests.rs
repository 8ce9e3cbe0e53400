use serde_json::{Value, json};

use super::*;
use crate::plugins::tests::node;

/// A pool of a node's devices, with these attributes each.
fn pool(devices: Value, more: Value) -> Arc<ResourceSlice> {
    let mut spec = json!({"driver": "gpu.example", "nodeName": "n", "devices": devices,
        "pool": {"name": "n", "generation": 1, "resourceSliceCount": 1}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let slice = json!({"metadata": {"name": "s"}, "spec": spec});
    Arc::new(serde_json::from_value(slice).unwrap())
}

fn inventory(slices: &[Arc<ResourceSlice>], in_use: &[&str]) -> Inventory {
    let class = |name: &str, expression: &str| {
        let class = json!({"metadata": {"name": name}, "spec": {
            "selectors": [{"cel": {"expression": expression}}],
            "config": [{"opaque": {"driver": "gpu.example", "parameters": {"of": name}}}]}});
        (
            name.to_owned(),
            Arc::new(serde_json::from_value(class).unwrap()),
        )
    };
    Inventory {
        slices: slices.to_vec(),
        classes: [
            class("gpu", r#"device.driver == "gpu.example""#),
            class(
                "large",
                r#"device.attributes["gpu.example"].size == "large""#,
            ),
        ]
        .into(),
        in_use: in_use
            .iter()
            .map(|name| DeviceId {
                driver: "gpu.example".into(),
                pool: "n".into(),
                device: (*name).into(),
            })
            .collect(),
    }
}

fn claim(devices: Value) -> Arc<ResourceClaim> {
    let claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}, "spec": {"devices": devices}});
    Arc::new(serde_json::from_value(claim).unwrap())
}

fn four() -> Arc<ResourceSlice> {
    let device = |name: &str, size: &str, board: &str| {
        json!({"name": name, "attributes": {
            "size": {"string": size}, "gpu.example/board": {"string": board}}})
    };
    pool(
        json!([
            device("a", "small", "1"),
            device("b", "large", "1"),
            device("c", "large", "2"),
            device("d", "small", "2"),
        ]),
        json!({}),
    )
}

/// What each request gets, as `request=device`.
fn given(inventory: &Inventory, claims: &[Value]) -> Result<Vec<String>, String> {
    let here = node("n", json!({}), json!({}), &[]);
    let claims: Vec<_> = claims.iter().cloned().map(claim).collect();
    let results = allocate(inventory, &claims, &here)?;
    let results = results
        .into_iter()
        .flat_map(|result| result.devices.unwrap().results.unwrap());
    Ok(results
        .map(|result| format!("{}={}", result.request, result.device))
        .collect())
}

fn exactly(name: &str, more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "gpu"});
    for (key, value) in more.as_object().into_iter().flatten() {
        exactly[key] = value.clone();
    }
    json!({"name": name, "exactly": exactly})
}

#[test]
fn classes_and_expressions_select_and_what_is_in_use_is_left_alone() {
    let all = inventory(&[four()], &["b"]);
    let one = json!({"requests": [exactly("r", json!({"deviceClassName": "large"}))]});
    assert_eq!(given(&all, std::slice::from_ref(&one)).unwrap(), ["r=c"]);
    assert_eq!(given(&all, &[one.clone(), one]).unwrap_err(), CANNOT);
    let two = json!({"requests": [exactly("r", json!({"count": 2, "selectors": [
        {"cel": {"expression": r#"device.attributes["gpu.example"].board == "2""#}}]}))]});
    assert_eq!(given(&all, &[two]).unwrap(), ["r=c", "r=d"]);
    let unknown = json!({"requests": [exactly("r", json!({"deviceClassName": "none"}))]});
    assert_eq!(
        given(&all, &[unknown]).unwrap_err(),
        "request r: device class none does not exist"
    );
}

#[test]
fn a_choice_that_leads_nowhere_is_taken_back() {
    let all = inventory(&[four()], &[]);
    // The first device of board 1 is small; with the same board for both, "x" must not take one of another board.
    let same = json!({"requests": [exactly("x", json!({})), exactly("y", json!({"deviceClassName": "large"}))],
        "constraints": [{"matchAttribute": "gpu.example/board"}]});
    assert_eq!(
        given(&all, std::slice::from_ref(&same)).unwrap(),
        ["x=a", "y=b"]
    );
    let busy = inventory(&[four()], &["b"]);
    assert_eq!(given(&busy, &[same]).unwrap(), ["x=d", "y=c"]);
    let apart = json!({"requests": [exactly("x", json!({"count": 2}))],
        "constraints": [{"distinctAttribute": "gpu.example/board", "requests": ["x"]}]});
    assert_eq!(given(&all, &[apart]).unwrap(), ["x=a", "x=c"]);
    let missing = json!({"requests": [exactly("x", json!({}))],
        "constraints": [{"matchAttribute": "gpu.example/none"}]});
    assert_eq!(given(&all, &[missing]).unwrap_err(), CANNOT);
}

#[test]
fn alternatives_are_tried_in_their_order_and_all_means_all() {
    let ranked = |busy: &[&str]| {
        let request = json!({"requests": [{"name": "r", "firstAvailable": [
            {"name": "two", "deviceClassName": "large", "count": 2},
            {"name": "any", "deviceClassName": "gpu"}]}]});
        given(&inventory(&[four()], busy), &[request]).unwrap()
    };
    assert_eq!(ranked(&[]), ["r/two=b", "r/two=c"]);
    assert_eq!(ranked(&["c"]), ["r/any=a"]);
    let every = json!({"requests": [exactly("r", json!({"allocationMode": "All"}))]});
    assert_eq!(
        given(&inventory(&[four()], &[]), std::slice::from_ref(&every))
            .unwrap()
            .len(),
        4
    );
    assert!(given(&inventory(&[four()], &["a"]), std::slice::from_ref(&every)).is_err());
    assert!(
        given(&inventory(&[], &[]), &[every]).is_err(),
        "all of none are not enough"
    );
}

#[test]
fn an_administrators_claim_shares_what_is_in_use() {
    let busy = inventory(&[four()], &["a", "b", "c", "d"]);
    let watch =
        json!({"requests": [exactly("r", json!({"allocationMode": "All", "adminAccess": true}))]});
    assert_eq!(given(&busy, &[watch]).unwrap().len(), 4);
}

#[test]
fn taints_repel_and_shared_counters_run_out() {
    let tainted = pool(
        json!([{"name": "a", "taints": [{"key": "broken", "effect": "NoSchedule"}]}]),
        json!({}),
    );
    let tolerating = json!({"tolerations": [{"key": "broken", "operator": "Exists"}]});
    let all = inventory(&[tainted], &[]);
    assert!(given(&all, &[json!({"requests": [exactly("r", json!({}))]})]).is_err());
    assert!(given(&all, &[json!({"requests": [exactly("r", tolerating)]})]).is_ok());

    let part = |name: &str, memory: &str| {
        json!({"name": name, "consumesCounters": [
            {"counterSet": "card", "counters": {"memory": {"value": memory}}}]})
    };
    let parts = json!([
        part("whole", "40Gi"),
        part("half-1", "20Gi"),
        part("half-2", "20Gi")
    ]);
    let sets =
        json!({"sharedCounters": [{"name": "card", "counters": {"memory": {"value": "40Gi"}}}]});
    let card = pool(parts, sets);
    let one = json!({"requests": [exactly("r", json!({}))]});
    let of = |busy: &[&str], claims: &[Value]| {
        given(&inventory(std::slice::from_ref(&card), busy), claims)
    };
    assert_eq!(of(&[], std::slice::from_ref(&one)).unwrap(), ["r=whole"]);
    assert_eq!(
        of(&["half-1"], std::slice::from_ref(&one)).unwrap(),
        ["r=half-2"]
    );
    assert!(of(&["whole"], std::slice::from_ref(&one)).is_err());
    assert_eq!(
        of(&[], &[one.clone(), one]).unwrap(),
        ["r=half-1", "r=half-2"]
    );
}

#[test]
fn the_result_tells_drivers_their_configuration_and_pods_their_node() {
    let here = node("n", json!({}), json!({}), &[]);
    let wish = claim(json!({"requests": [exactly("r", json!({}))], "config": [
        {"requests": ["r"], "opaque": {"driver": "gpu.example", "parameters": {"of": "claim"}}},
        {"requests": ["other"], "opaque": {"driver": "gpu.example", "parameters": {}}}]}));
    let all = inventory(&[four()], &[]);
    let result = allocate(&all, &[wish], &here).unwrap().remove(0);
    let told = serde_json::to_value(&result).unwrap();
    let config = told["devices"]["config"].as_array().unwrap();
    let sources: Vec<_> = config
        .iter()
        .map(|entry| entry["source"].as_str().unwrap())
        .collect();
    assert_eq!(sources, ["FromClass", "FromClaim"]);
    assert_eq!(config[1]["opaque"]["parameters"]["of"], "claim");
    let fields = &told["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0];
    assert_eq!(
        (&fields["key"], &fields["values"]),
        (&json!("metadata.name"), &json!(["n"]))
    );
}
