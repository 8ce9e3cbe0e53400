//! Whether a charge fits into a quota, and the quota's usage with it. Pure.

use k8s_openapi::api::core::v1::ResourceQuotaSpec;
use serde::Deserialize as _;
use serde_json::{Map, Value};
use windlass_api::quota::{Subject, Usage, missing_requests};
use windlass_machinery::meta;
use windlass_machinery::quantity::Quantity;

/// Amounts of a quota's status. What holds is `status.hard`: a limit counts from when the controller has
/// counted what there is.
fn amounts(of: &Value) -> Usage {
    let entries = of.as_object().into_iter().flatten();
    entries
        .filter_map(|(name, amount)| {
            let amount = Quantity::parse(amount.as_str()?).ok()?;
            Some((name.clone(), amount))
        })
        .collect()
}

fn to_value(usage: &Usage) -> Value {
    let entries = usage.iter();
    let entries = entries.map(|(name, amount)| (name.clone(), Value::from(amount.to_string())));
    Value::Object(entries.collect::<Map<_, _>>())
}

/// `cpu=1,pods=2` of the named resources.
fn shown<'a>(usage: &Usage, names: impl Iterator<Item = &'a str>) -> String {
    let amount = |name| usage.get(name).copied().unwrap_or(Quantity::ZERO);
    let parts: Vec<_> = names
        .map(|name| format!("{name}={}", amount(name)))
        .collect();
    parts.join(",")
}

fn covered(quota: &Value, subject: &Subject) -> bool {
    // One that cannot be read limits nothing; the API's validation lets none in.
    ResourceQuotaSpec::deserialize(&quota["spec"]).is_ok_and(|spec| subject.in_scope(&spec))
}

/// Whether a quota limits anything that objects like this one use.
pub(super) fn concerns(quota: &Value, subject: &Subject) -> bool {
    let hard = amounts(&quota["status"]["hard"]);
    hard.keys().any(|name| subject.tracks(name)) && covered(quota, subject)
}

/// `status.used` with `delta`; `None` when the quota is not concerned.
///
/// # Errors
/// Why the object is refused, in upstream's words.
pub(super) fn charged(
    quota: &Value,
    subject: &Subject,
    delta: &Usage,
) -> Result<Option<Value>, String> {
    let hard = amounts(&quota["status"]["hard"]);
    let limited: Vec<_> = hard
        .keys()
        .map(String::as_str)
        .filter(|name| subject.tracks(name))
        .collect();
    if limited.is_empty() || !covered(quota, subject) {
        return Ok(None);
    }
    let name = meta::name(quota);
    if let Subject::Pod(pod) = subject
        && let Some(missing) = missing_requests(pod, limited.iter().copied())
    {
        return Err(format!("failed quota: {name}: {missing}"));
    }
    let mut used = amounts(&quota["status"]["used"]);
    if limited.iter().any(|resource| !used.contains_key(*resource)) {
        let resources = limited.join(",");
        return Err(format!(
            "status unknown for quota: {name}, resources: {resources}"
        ));
    }
    let before = used.clone();
    let mut exceeded = Vec::new();
    let mut changed = false;
    for (resource, amount) in delta {
        let Some(limit) = hard.get(resource) else {
            continue;
        };
        let have = before.get(resource).copied().unwrap_or(Quantity::ZERO);
        let sum = have.add(amount);
        // Using less is always allowed, also where the limit was lowered below what is used.
        if sum > *limit && !amount.is_negative() {
            exceeded.push(resource.as_str());
        }
        used.insert(resource.clone(), sum);
        changed = true;
    }
    if exceeded.is_empty() {
        return Ok(changed.then(|| to_value(&used)));
    }
    let of = |usage: &Usage| shown(usage, exceeded.iter().copied());
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        of(delta),
        of(&before),
        of(&hard)
    ))
}

/// `status.used` without `delta`; `None` when nothing of it is counted.
pub(super) fn given_back(quota: &Value, delta: &Usage) -> Option<Value> {
    let mut used = amounts(&quota["status"]["used"]);
    let mut changed = false;
    for (resource, amount) in delta {
        if let Some(have) = used.get_mut(resource) {
            // A count in between may have taken it off already.
            *have = have.sub(amount).max(Quantity::ZERO);
            changed = true;
        }
    }
    changed.then(|| to_value(&used))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn quota(spec: Value, hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}})
    }

    fn pod(requests: Value) -> Subject {
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        Subject::read("", "pods", &json!({"spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_is_charged_or_refused() {
        let cases = [
            (
                "the last place",
                quota(json!({}), json!({"pods": "5"}), json!({"pods": "4"})),
                json!({}),
                Ok(Some(json!({"pods": "5"}))),
            ),
            (
                "no place",
                quota(json!({}), json!({"pods": "5"}), json!({"pods": "5"})),
                json!({}),
                Err("exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"),
            ),
            (
                "two limits",
                quota(
                    json!({}),
                    json!({"pods": "1", "requests.cpu": "1"}),
                    json!({"pods": "1", "requests.cpu": "800m"}),
                ),
                json!({"cpu": "500m"}),
                Err(
                    "exceeded quota: q, requested: pods=1,requests.cpu=500m, used: \
                     pods=1,requests.cpu=800m, limited: pods=1,requests.cpu=1",
                ),
            ),
            (
                "nothing asked for",
                quota(json!({}), json!({"cpu": "1"}), json!({"cpu": "0"})),
                json!({}),
                Err("failed quota: q: must specify cpu for: c"),
            ),
            (
                "not counted yet",
                quota(json!({}), json!({"pods": "1"}), json!({})),
                json!({}),
                Err("status unknown for quota: q, resources: pods"),
            ),
            (
                "another kind's quota",
                quota(
                    json!({}),
                    json!({"services": "0"}),
                    json!({"services": "0"}),
                ),
                json!({}),
                Ok(None),
            ),
            (
                "out of scope",
                quota(
                    json!({"scopes": ["BestEffort"]}),
                    json!({"pods": "0"}),
                    json!({"pods": "0"}),
                ),
                json!({"cpu": "1"}),
                Ok(None),
            ),
            (
                "other amounts stay",
                quota(
                    json!({}),
                    json!({"memory": "2Gi", "secrets": "3"}),
                    json!({"memory": "512Mi", "secrets": "2"}),
                ),
                json!({"memory": "512Mi"}),
                Ok(Some(json!({"memory": "1Gi", "secrets": "2"}))),
            ),
        ];
        for (case, quota, requests, expected) in cases {
            let pod = pod(requests);
            let delta = pod.usage(Timestamp::UNIX_EPOCH);
            let found = charged(&quota, &pod, &delta);
            assert_eq!(found, expected.map_err(str::to_owned), "{case}");
        }
    }

    #[test]
    fn using_less_is_allowed_above_the_limit() {
        let quota = quota(
            json!({}),
            json!({"services.nodeports": "1"}),
            json!({"services.nodeports": "3"}),
        );
        let service = Subject::read("", "services", &json!({"spec": {}})).unwrap();
        let less = Usage::from([(
            "services.nodeports".to_owned(),
            Quantity::parse("-1").unwrap(),
        )]);
        assert_eq!(
            charged(&quota, &service, &less),
            Ok(Some(json!({"services.nodeports": "2"})))
        );
    }

    #[test]
    fn what_is_given_back_never_falls_below_nothing() {
        let quota = quota(
            json!({}),
            json!({"pods": "5"}),
            json!({"pods": "1", "cpu": "1"}),
        );
        let delta = Usage::from([
            ("pods".to_owned(), Quantity::parse("2").unwrap()),
            ("memory".to_owned(), Quantity::parse("1Gi").unwrap()),
        ]);
        assert_eq!(
            given_back(&quota, &delta),
            Some(json!({"cpu": "1", "pods": "0"}))
        );
        assert_eq!(given_back(&quota, &Usage::new()), None);
    }
}
