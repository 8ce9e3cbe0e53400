//! Eviction: a deletion that asks the pod's PodDisruptionBudget first.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::status::{ApiError, Cause, Details};

use super::decode;
use crate::Body;
use crate::cacher::Filter;
use crate::catalog::Endpoint;
use crate::context::{Context, now_text};
use crate::options::{DeleteOptions, WriteOptions};
use crate::registry::{self, Part, Update};

/// Pods remembered in a budget's status before it must catch up, as upstream.
const MAX_DISRUPTED: usize = 2000;

pub(super) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let options =
        WriteOptions::parse(&context.query, "CreateOptions", context.user_agent(), false)?;
    let eviction = decode::builtin(
        context,
        "policy/v1",
        "Eviction",
        body,
        options.field_validation,
    )
    .await?;
    let given = meta::name(&eviction);
    if !given.is_empty() && given != info.name {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let mut delete = DeleteOptions::parse(
        &context.query,
        eviction.get("deleteOptions").filter(|o| o.is_object()),
    )?;
    delete.dry_run |= options.dry_run;

    let place = (info.namespace.as_str(), info.name.as_str());
    let pod = registry::read(context, endpoint, place.0, place.1).await?;
    if needs_budget(&pod.value) {
        ask_budget(context, &pod.value, &options).await?;
        // The budget was asked for this very pod.
        delete
            .uid
            .get_or_insert_with(|| meta::uid(&pod.value).to_owned());
    }
    mark(context, endpoint, place, delete.dry_run, &options).await?;
    registry::delete(context, endpoint, place, &delete).await?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(context.respond_plain(StatusCode::CREATED, status))
}

/// Pods that have ended, have not started or are being deleted disturb nobody.
/// Says on the pod that it is not to blame for its end: Jobs tell disruptions from failures by it (KEP-3329).
async fn mark(
    context: &Context,
    pods: &Endpoint,
    place: (&str, &str),
    dry_run: bool,
    options: &WriteOptions,
) -> Result<(), ApiError> {
    if dry_run {
        return Ok(());
    }
    let mut change = |pod: &Value| Ok(marked(pod, &now_text()));
    registry::update(context, pods, place, Part::Status, options, &mut change).await?;
    Ok(())
}

fn marked(pod: &Value, now: &str) -> Value {
    let mut marked = pod.clone();
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": now,
        "observedGeneration": meta::generation(pod),
    });
    let conditions = &mut marked["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else {
        return marked;
    };
    let known = conditions
        .iter()
        .position(|c| c["type"] == "DisruptionTarget");
    match known {
        Some(at) if conditions[at]["status"] == "True" => {}
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    marked
}

fn needs_budget(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed" | "Pending") && !meta::is_deleting(pod)
}

async fn ask_budget(
    context: &Context,
    pod: &Value,
    options: &WriteOptions,
) -> Result<(), ApiError> {
    let Some(budgets) = context
        .server
        .catalog
        .load()
        .preferred("policy", "poddisruptionbudgets")
    else {
        return Ok(());
    };
    context.server.caches.wait_current().await?;
    let cacher = budgets.cacher()?;
    let namespace = meta::namespace(pod);
    let filter = Filter::new(&cacher.resource, Some(namespace), None, None)?;
    let mut matching = Vec::new();
    for entry in cacher.entries(&filter) {
        let budget = entry.decode()?;
        let selector = LabelSelector::from_value(&budget["spec"]["selector"]);
        if selector.is_ok_and(|selector| selector.matches(meta::labels(pod))) {
            matching.push(entry.name().to_owned());
        }
    }
    match matching.as_slice() {
        [] => Ok(()),
        [name] => take_from(context, &budgets, namespace, name, pod, options).await,
        _ => Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )),
    }
}

async fn take_from(
    context: &Context,
    budgets: &Endpoint,
    namespace: &str,
    name: &str,
    pod: &Value,
    options: &WriteOptions,
) -> Result<(), ApiError> {
    let ready = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    let mut change = |budget: &Value| taken(budget, pod, ready);
    let update = registry::update(
        context,
        budgets,
        (namespace, name),
        Part::Status,
        options,
        &mut change,
    );
    match update.await? {
        // Deleted meanwhile: nothing protects the pod any more.
        Update::Absent | Update::Written(_) | Update::Deleted(_) => Ok(()),
    }
}

/// The budget with one disruption less.
fn taken(budget: &Value, pod: &Value, ready: bool) -> Result<Value, ApiError> {
    let name = meta::name(budget);
    let status = &budget["status"];
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    let healthy_enough = number(&status["currentHealthy"]) >= number(&status["desiredHealthy"])
        && number(&status["desiredHealthy"]) > 0;
    if !ready && (always || healthy_enough) {
        return Ok(budget.clone());
    }
    if number(&status["observedGeneration"]) < meta::generation(budget) {
        return Err(refused(
            name,
            "The disruption budget {} is still being processed by the server.",
            Some(10),
        ));
    }
    if status["disruptedPods"]
        .as_object()
        .is_some_and(|pods| pods.len() > MAX_DISRUPTED)
    {
        return Err(ApiError::forbidden(
            "policy",
            "poddisruptionbudget",
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    let allowed = number(&status["disruptionsAllowed"]);
    if allowed <= 0 {
        let needs = number(&status["desiredHealthy"]);
        let has = number(&status["currentHealthy"]);
        let why = format!(
            "The disruption budget {{}} needs {needs} healthy pods and has {has} currently"
        );
        return Err(refused(name, &why, None));
    }
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    let disrupted = &mut budget["status"]["disruptedPods"];
    if !disrupted.is_object() {
        *disrupted = json!({});
    }
    disrupted[meta::name(pod)] = now_text().into();
    Ok(budget)
}

fn refused(name: &str, why: &str, retry_after_seconds: Option<u32>) -> ApiError {
    let mut error = ApiError::new(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    error.details = Some(Box::new(Details {
        causes: vec![Cause {
            reason: "DisruptionBudget".to_owned(),
            message: why.replace("{}", name),
            field: String::new(),
        }],
        retry_after_seconds,
        ..Details::default()
    }));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evicted_pod_is_marked_once() {
        let pod =
            json!({"metadata": {"name": "p", "generation": 2}, "status": {"phase": "Running"}});
        let once = marked(&pod, "2026-01-01T00:00:00Z");
        let condition = &once["status"]["conditions"][0];
        assert_eq!(condition["type"], "DisruptionTarget");
        assert_eq!(condition["reason"], "EvictionByEvictionAPI");
        assert_eq!(condition["observedGeneration"], 2);
        assert_eq!(marked(&once, "2027-01-01T00:00:00Z"), once);
    }

    #[test]
    fn a_budget_gives_what_it_has_and_no_more() {
        let pod = json!({"metadata": {"name": "p"}});
        let mut budget = json!({"metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}});
        let after = taken(&budget, &pod, true).unwrap();
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert!(after["status"]["disruptedPods"]["p"].is_string());
        let error = taken(&after, &pod, true).unwrap_err();
        assert_eq!(error.code, 429);
        assert!(
            error.details.unwrap().causes[0]
                .message
                .contains("needs 2 healthy pods and has 3")
        );
        budget["metadata"]["generation"] = 2.into();
        assert_eq!(taken(&budget, &pod, true).unwrap_err().code, 429);
    }
}
