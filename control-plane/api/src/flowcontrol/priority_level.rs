//! PriorityLevelConfigurations.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::{mandatory, validate_conditions};
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};

pub struct PriorityLevelConfiguration;

const MAX_QUEUES: i64 = 10_000_000;
const MAX_HASH_BITS: u32 = 60;

impl Strategy for PriorityLevelConfiguration {
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

    fn default(&self, object: &mut Value) {
        match object.text("spec.type") {
            "Limited" => {
                // What is not there at all is for the validation to ask for.
                tree::fill_in(object, "spec.limited.nominalConcurrencyShares", 30);
                tree::fill_in(object, "spec.limited.lendablePercent", 0);
                if let Some(queuing) = tree::at_mut(object, "spec.limited.limitResponse.queuing") {
                    for (field, value) in
                        [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)]
                    {
                        tree::fill_zero(queuing, field, value);
                    }
                }
            }
            "Exempt" => {
                tree::fill(object, "spec.exempt.nominalConcurrencyShares", 0);
                tree::fill(object, "spec.exempt.lendablePercent", 0);
            }
            _ => {}
        }
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let (is_exempt, kind) = (object.text("metadata.name") == "exempt", spec.text("type"));
        if is_exempt != (kind == "Exempt") {
            let detail = "type must be 'Exempt' if and only if name is 'exempt'";
            errors.invalid(&path.child("type"), kind, detail);
        }
        match kind {
            "Exempt" => {
                if spec.has("limited") {
                    let detail = "must be nil if the type is not Limited";
                    errors.forbidden(&path.child("limited"), detail);
                }
                shares(spec.at("exempt"), 0, &path.child("exempt"), errors);
            }
            "Limited" => {
                if spec.has("exempt") {
                    let detail = "must be nil if the type is Limited";
                    errors.forbidden(&path.child("exempt"), detail);
                }
                if spec.has("limited") {
                    limited(spec.at("limited"), &path.child("limited"), errors);
                } else {
                    let detail = "must not be empty when type is Limited";
                    errors.required(&path.child("limited"), detail);
                }
            }
            other => errors.not_supported(&path.child("type"), other, &["Exempt", "Limited"]),
        }
        mandatory(object, "PriorityLevelConfiguration", errors);
        validate_conditions(object, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_conditions(new, errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let queuing = spec.at("limited.limitResponse.queuing");
        let shown = |holder: &Value, field: &str| match holder.at(field) {
            Value::Null => "<none>".into(),
            value => value.clone(),
        };
        cells![
            spec.text("type"),
            shown(spec.at("limited"), "nominalConcurrencyShares"),
            shown(queuing, "queues"),
            shown(queuing, "handSize"),
            shown(queuing, "queueLengthLimit"),
            age(object, now),
        ]
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

fn shares(holder: &Value, least: i64, path: &Path, errors: &mut Errors) {
    if let Some(shares) = holder
        .int("nominalConcurrencyShares")
        .filter(|n| *n < least)
    {
        let detail = "must be a non-negative integer";
        errors.invalid(&path.child("nominalConcurrencyShares"), shares, detail);
    }
    if let Some(percent) = holder
        .int("lendablePercent")
        .filter(|p| !(0..=100).contains(p))
    {
        let detail = "must be between 0 and 100, inclusive";
        errors.invalid(&path.child("lendablePercent"), percent, detail);
    }
}

fn limited(limited: &Value, path: &Path, errors: &mut Errors) {
    shares(limited, 0, path, errors);
    if let Some(percent) = limited.int("borrowingLimitPercent").filter(|p| *p < 0) {
        let detail = "if specified, must be a non-negative integer";
        errors.invalid(&path.child("borrowingLimitPercent"), percent, detail);
    }
    let response = limited.at("limitResponse");
    let path = path.child("limitResponse");
    match response.text("type") {
        "Reject" => {
            if response.has("queuing") {
                let detail = "must be nil if limited.limitResponse.type is not Limited";
                errors.forbidden(&path.child("queuing"), detail);
            }
        }
        "Queue" => queuing(response.at("queuing"), &path.child("queuing"), errors),
        other => errors.not_supported(&path.child("type"), other, &["Queue", "Reject"]),
    }
}

fn queuing(queuing: &Value, path: &Path, errors: &mut Errors) {
    if queuing.is_null() {
        let detail = "must not be empty if limited.limitResponse.type is Limited";
        return errors.required(path, detail);
    }
    let number = |field: &str| queuing.int(field).unwrap_or_default();
    let not_positive = |field: &str, errors: &mut Errors| {
        let is = number(field) <= 0;
        if is {
            errors.invalid(&path.child(field), number(field), "must be positive");
        }
        is
    };
    not_positive("queueLengthLimit", errors);
    let (queues, hand) = (number("queues"), number("handSize"));
    if !not_positive("queues", errors) && queues > MAX_QUEUES {
        let detail = format!("must not be greater than {MAX_QUEUES}");
        errors.invalid(&path.child("queues"), queues, detail);
    }
    if not_positive("handSize", errors) {
        return;
    }
    let path = path.child("handSize");
    if hand > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.invalid(&path, hand, detail);
    } else if entropy_bits(queues, hand) > f64::from(MAX_HASH_BITS) {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
        );
        errors.invalid(&path, hand, detail);
    }
}

/// How many bits of a hash it takes at most to deal a hand.
fn entropy_bits(queues: i64, hand: i64) -> f64 {
    (queues as f64).log2() * hand as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_limited_level_gets_its_queues() {
        let mut object = json!({"metadata": {"name": "x"}, "spec": {
            "type": "Limited",
            "limited": {"limitResponse": {"type": "Queue", "queuing": {}}},
        }});
        PriorityLevelConfiguration.default(&mut object);
        assert!(lines(|e| PriorityLevelConfiguration.validate(&object, None, e)).is_empty());
        assert_eq!(
            PriorityLevelConfiguration.row(&object, 0)[..5],
            [json!("Limited"), json!(30), json!(64), json!(8), json!(50)]
        );
    }
}
