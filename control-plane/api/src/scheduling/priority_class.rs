//! PriorityClasses.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::one_of;

pub struct PriorityClass;

/// Above this, priorities are the system's.
pub const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

const SYSTEM_PREFIX: &str = "system-";
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "preemptionPolicy", "PreemptLowerPriority");
        tree::fill(object, "value", 0);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let name = object.text("metadata.name");
        let value = object.int("value").unwrap_or_default();
        if name.starts_with(SYSTEM_PREFIX) {
            let is_known = SYSTEM.contains(&(name, value)) && !object.flag("globalDefault");
            if !is_known {
                let detail = "priority class names with 'system-' prefix are reserved for system use only. \
                              error: ";
                let why = match SYSTEM.iter().find(|(known, _)| *known == name) {
                    Some((_, known)) if *known != value => {
                        format!("value of {name} PriorityClass must be {known}")
                    }
                    Some(_) => format!("globalDefault of {name} PriorityClass must be false"),
                    None => format!("{name} is not a known system priority class"),
                };
                let path = Path::new("metadata").child("name");
                errors.forbidden(&path, format!("{detail}{why}"));
            }
        } else if value > HIGHEST_USER_PRIORITY {
            let detail = format!(
                "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            );
            errors.forbidden(&Path::new("value"), detail);
        }
        let policies = &["PreemptLowerPriority", "Never"];
        one_of(object, "preemptionPolicy", policies, &Path::root(), errors);
    }

    /// Upstream looks at no more of a class that is there.
    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if new.int("value") != old.int("value") {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        crate::validate::immutable(new, old, "preemptionPolicy", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![
            object.int("value").unwrap_or_default(),
            object.flag("globalDefault"),
            age(object, now),
            object.text("preemptionPolicy"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn users_stay_below_the_system() {
        let check = |name: &str, value: i64| {
            let mut object = json!({"metadata": {"name": name}, "value": value});
            PriorityClass.default(&mut object);
            lines(|e| PriorityClass.validate(&object, None, e)).len()
        };
        assert_eq!(check("high", HIGHEST_USER_PRIORITY), 0);
        assert_eq!(check("high", HIGHEST_USER_PRIORITY + 1), 1);
        assert_eq!(check("system-mine", 1), 1);
        assert_eq!(check("system-node-critical", 2_000_001_000), 0);
    }
}
