//! Which names a definition gets, and the conditions that say so.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use windlass_api::apiextensions::approval;
use windlass_api::resource::Resource;
use windlass_machinery::meta;

use crate::context::now_text;

const REVIEWED: &str = "KubernetesAPIApprovalPolicyConformant";
const OWN_CONDITIONS: [&str; 4] = ["NamesAccepted", "Established", "Terminating", REVIEWED];

pub(super) fn established(definition: &Value) -> bool {
    condition(definition, "Established") == Some("True")
}

fn condition<'d>(definition: &'d Value, kind: &str) -> Option<&'d str> {
    let conditions = definition["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// The status that a definition should have, if it has another one.
pub(super) fn status(
    definition: &Value,
    all: &BTreeMap<String, Value>,
    builtin: &[Arc<Resource>],
) -> Option<Value> {
    let conflict = conflict(definition, all, builtin);
    let wanted = &definition["spec"]["names"];
    let mut accepted = wanted.clone();
    let (names, reason, message) = match &conflict {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => ("False", *reason, message.clone()),
    };
    if conflict.is_some() {
        accepted = definition["status"]["acceptedNames"].clone();
    }
    // Once established, a definition stays so: its instances exist.
    let (established, established_reason, established_message) =
        if conflict.is_none() || established(definition) {
            (
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
            )
        } else {
            ("False", "NotAccepted", "not all names are accepted")
        };
    let mut conditions = vec![
        entry(definition, "NamesAccepted", names, reason, &message),
        entry(
            definition,
            "Established",
            established,
            established_reason,
            established_message,
        ),
    ];
    if let Some((status, reason, message)) = approval::condition(definition) {
        conditions.push(entry(definition, REVIEWED, status, reason, &message));
    }
    if meta::is_deleting(definition) {
        let message = "CustomResource deletion is in progress";
        conditions.push(entry(
            definition,
            "Terminating",
            "True",
            "InstanceDeletionInProgress",
            message,
        ));
    }
    // Others may tell more about a definition; what they said stays.
    let told = definition["status"]["conditions"].as_array();
    for other in told.into_iter().flatten() {
        if !OWN_CONDITIONS.iter().any(|own| other["type"] == *own) {
            conditions.push(other.clone());
        }
    }
    let same = definition["status"]["conditions"] == Value::Array(conditions.clone())
        && definition["status"]["acceptedNames"] == accepted;
    (!same).then(|| json!({"conditions": conditions, "acceptedNames": accepted}))
}

/// A condition, with the old time of transition where it says the same as before.
fn entry(definition: &Value, kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let old = definition["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let old = old
        .into_iter()
        .find(|c| c["type"] == kind && c["status"] == status);
    let since = old
        .and_then(|c| c["lastTransitionTime"].as_str())
        .map(str::to_owned);
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since.unwrap_or_else(now_text),
    })
}

/// The first of a definition's names that something else of its group has.
fn conflict(
    definition: &Value,
    all: &BTreeMap<String, Value>,
    builtin: &[Arc<Resource>],
) -> Option<(&'static str, String)> {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let mut resources: Vec<&str> = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    let others = all.values().filter(|other| {
        meta::uid(other) != meta::uid(definition) && other["spec"]["group"] == group
    });
    for other in others {
        let accepted = &other["status"]["acceptedNames"];
        resources.extend(
            ["plural", "singular"]
                .iter()
                .filter_map(|key| accepted[*key].as_str()),
        );
        let short = accepted["shortNames"].as_array().into_iter().flatten();
        resources.extend(short.filter_map(Value::as_str));
        kinds.extend(
            ["kind", "listKind"]
                .iter()
                .filter_map(|key| accepted[*key].as_str()),
        );
    }
    for resource in builtin.iter().filter(|resource| resource.group == group) {
        resources.extend([&*resource.plural, &*resource.singular]);
        kinds.extend([&*resource.kind, &*resource.list_kind]);
    }
    let names = &definition["spec"]["names"];
    let taken = |value: &Value, by: &[&str]| {
        let name = value
            .as_str()
            .filter(|name| !name.is_empty() && by.contains(name))?;
        Some(format!("{name:?} is already in use"))
    };
    let found = |reason, text| Some((reason, text));
    if let Some(text) = taken(&names["plural"], &resources) {
        return found("PluralConflict", text);
    }
    if let Some(text) = taken(&names["singular"], &resources) {
        return found("SingularConflict", text);
    }
    for short in names["shortNames"].as_array().into_iter().flatten() {
        if let Some(text) = taken(short, &resources) {
            return found("ShortNamesConflict", text);
        }
    }
    if let Some(text) = taken(&names["kind"], &kinds) {
        return found("KindConflict", text);
    }
    taken(&names["listKind"], &kinds).map(|text| ("ListKindConflict", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(uid: &str, plural: &str, kind: &str) -> Value {
        json!({"metadata": {"name": format!("{plural}.example.com"), "uid": uid},
            "spec": {"group": "example.com", "names": {"plural": plural, "kind": kind}}})
    }

    #[test]
    fn free_names_are_accepted_and_taken_ones_are_named() {
        let mut first = definition("1", "widgets", "Widget");
        let mut all = BTreeMap::from([("a".to_owned(), first.clone())]);
        let accepted = status(&first, &all, &[]).unwrap();
        assert_eq!(accepted["conditions"][1]["status"], "True");
        first["status"] = accepted;
        assert!(
            established(&first) && status(&first, &all, &[]).is_none(),
            "nothing left to say"
        );

        all.insert("a".to_owned(), first);
        let second = definition("2", "gadgets", "Widget");
        let refused = status(&second, &all, &[]).unwrap();
        assert_eq!(refused["conditions"][0]["reason"], "KindConflict");
        assert_eq!(refused["conditions"][1]["status"], "False");
    }
}
