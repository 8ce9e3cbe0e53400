//! RuntimeClass: a pod takes its class's overhead, node selector and tolerations (KEPs 585 and 688).

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;

use super::{Attributes, Plugin};

const DIFFERS: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const WITHOUT: &str =
    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), ApiError> {
        if !attributes.creates_pod() {
            return Ok(());
        }
        if let Some(class) = class_of(attributes, pod).await? {
            apply(&class, &mut pod["spec"]).map_err(|why| attributes.forbidden(&why))?;
        }
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        pod: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(pod) = pod.filter(|_| attributes.creates_pod()) else {
            return Ok(());
        };
        let class = class_of(attributes, pod).await?;
        check(class.as_ref(), &pod["spec"]).map_err(|why| attributes.forbidden(why))
    }
}

async fn class_of(attributes: &Attributes<'_>, pod: &Value) -> Result<Option<Value>, ApiError> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else {
        return Ok(None);
    };
    let server = &attributes.context.server;
    match server.known("node.k8s.io", "runtimeclasses", name).await? {
        None => {
            Err(attributes.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")))
        }
        class => Ok(class),
    }
}

fn is_set(map: &Value) -> bool {
    map.as_object().is_some_and(|map| !map.is_empty())
}

fn apply(class: &Value, spec: &mut Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    if is_set(overhead) {
        if is_set(&spec["overhead"]) && spec["overhead"] != *overhead {
            return Err(DIFFERS.to_owned());
        }
        spec["overhead"] = overhead.clone();
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let present = &spec["nodeSelector"][key.as_str()];
        if !present.is_null() && present != value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; \
                 pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(present)
            ));
        }
        spec["nodeSelector"][key.as_str()] = value.clone();
    }
    let wanted = scheduling["tolerations"].as_array().into_iter().flatten();
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let before = tolerations.len();
    for toleration in wanted {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    if tolerations.len() > before {
        spec["tolerations"] = tolerations.into();
    }
    Ok(())
}

fn check(class: Option<&Value>, spec: &Value) -> Result<(), &'static str> {
    let overhead = class.map(|class| &class["overhead"]["podFixed"]);
    match overhead.filter(|overhead| is_set(overhead)) {
        Some(overhead) if spec["overhead"] != *overhead => Err(DIFFERS),
        None if is_set(&spec["overhead"]) => Err(WITHOUT),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_takes_what_its_class_says() {
        let class = json!({
            "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
        });
        let mut spec = json!({"nodeSelector": {"a": "b"}, "tolerations": [{"key": "x"}]});
        apply(&class, &mut spec).unwrap();
        let whole = json!({
            "overhead": {"cpu": "250m"},
            "nodeSelector": {"a": "b", "vm": "yes"},
            "tolerations": [{"key": "x"}, {"key": "vm", "operator": "Exists"}],
        });
        assert_eq!(spec, whole);
        apply(&class, &mut spec).unwrap();
        assert_eq!(spec, whole, "once is enough");
        let conflict = apply(&class, &mut json!({"nodeSelector": {"vm": "no"}}));
        assert_eq!(
            conflict.unwrap_err(),
            "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no"
        );
    }

    #[test]
    fn overhead_is_the_class_s_or_none() {
        let class = json!({"overhead": {"podFixed": {"cpu": "250m"}}});
        let table = [
            (Some(&class), json!({"overhead": {"cpu": "250m"}}), Ok(())),
            (
                Some(&class),
                json!({"overhead": {"cpu": "1"}}),
                Err(DIFFERS),
            ),
            (None, json!({"overhead": {"cpu": "1"}}), Err(WITHOUT)),
            (None, json!({}), Ok(())),
        ];
        for (class, spec, expected) in table {
            assert_eq!(check(class, &spec), expected, "{spec}");
        }
    }
}
