//! Priority: turns a pod's `priorityClassName` into its number.

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};
use crate::cacher::Filter;

/// The classes that exist without an object.
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];
const PREEMPT: &str = "PreemptLowerPriority";

pub(super) struct Priority;

struct Class {
    name: String,
    value: i64,
    preemption: String,
}

#[async_trait]
impl Plugin for Priority {
    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), ApiError> {
        let updates = attributes.is_of_pod(Operation::Update, "");
        if let Some(old) = attributes.old.filter(|_| updates) {
            keep(pod, old);
        }
        if !attributes.creates_pod() {
            return Ok(());
        }
        let spec = &mut pod["spec"];
        let wanted = spec["priorityClassName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let class = if wanted.is_empty() {
            default_class(attributes)?
        } else {
            Some(named_class(attributes, &wanted).await?)
        };
        let class = class.unwrap_or_else(|| Class {
            name: String::new(),
            value: 0,
            preemption: PREEMPT.to_owned(),
        });
        if let Some(given) = spec["priority"].as_i64()
            && given != class.value
        {
            return Err(attributes.forbidden(&format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority \
                 admission controller computed {} from the given PriorityClass name",
                class.value
            )));
        }
        if let Some(given) = spec["preemptionPolicy"].as_str()
            && given != class.preemption
        {
            return Err(attributes.forbidden(&format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority \
                 admission controller computed {} from the given PriorityClass name",
                class.preemption
            )));
        }
        if !class.name.is_empty() {
            spec["priorityClassName"] = class.name.into();
        }
        spec["priority"] = class.value.into();
        spec["preemptionPolicy"] = class.preemption.into();
        Ok(())
    }
}

/// What was filled in when the pod was made, for a manifest that replaces it without.
fn keep(pod: &mut Value, old: &Value) {
    for field in ["priority", "preemptionPolicy"] {
        let given = &old["spec"][field];
        if pod["spec"][field].is_null() && !given.is_null() {
            pod["spec"][field] = given.clone();
        }
    }
}

fn class_of(object: &Value) -> Class {
    Class {
        name: windlass_machinery::meta::name(object).to_owned(),
        value: object["value"].as_i64().unwrap_or(0),
        preemption: object["preemptionPolicy"]
            .as_str()
            .unwrap_or(PREEMPT)
            .to_owned(),
    }
}

async fn named_class(attributes: &Attributes<'_>, name: &str) -> Result<Class, ApiError> {
    if let Some((name, value)) = SYSTEM.iter().find(|(known, _)| *known == name) {
        return Ok(Class {
            name: (*name).to_owned(),
            value: *value,
            preemption: PREEMPT.to_owned(),
        });
    }
    let server = &attributes.context.server;
    match server
        .known("scheduling.k8s.io", "priorityclasses", name)
        .await?
    {
        Some(class) => Ok(class_of(&class)),
        None => Err(attributes.forbidden(&format!("no PriorityClass with name {name} was found"))),
    }
}

/// The class marked as the default; the lowest of several.
fn default_class(attributes: &Attributes<'_>) -> Result<Option<Class>, ApiError> {
    let Some(classes) = attributes
        .context
        .server
        .cacher("scheduling.k8s.io", "priorityclasses")
    else {
        return Ok(None);
    };
    let everything = Filter::new(&classes.resource, None, None, None)?;
    let mut found: Option<Class> = None;
    for entry in classes.entries(&everything) {
        let object = entry.decode()?;
        let class = class_of(&object);
        if object["globalDefault"] == true && found.as_ref().is_none_or(|f| class.value < f.value) {
            found = Some(class);
        }
    }
    Ok(found)
}
