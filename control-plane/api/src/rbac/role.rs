//! Roles and ClusterRoles.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::created_at;
use crate::tree::Tree;
use crate::validate::labels::selector;

pub struct Role {
    pub namespaced: bool,
}

impl Strategy for Role {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        for (i, rule) in object.list("rules").iter().enumerate() {
            validate_rule(rule, self.namespaced, &Path::new("rules").index(i), errors);
        }
        if object.has("aggregationRule") {
            let selectors = object.list("aggregationRule.clusterRoleSelectors");
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            if selectors.is_empty() {
                errors.required(
                    &path,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                );
            }
            for (i, one) in selectors.iter().enumerate() {
                selector(one, &path.index(i), errors);
            }
        }
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        created_at(object)
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

fn validate_rule(rule: &Value, namespaced: bool, path: &Path, errors: &mut Errors) {
    if rule.list("verbs").is_empty() {
        errors.required(
            &path.child("verbs"),
            "verbs must contain at least one value",
        );
    }
    let urls = rule.list("nonResourceURLs");
    if !urls.is_empty() {
        let path = path.child("nonResourceURLs");
        let value = rule.at("nonResourceURLs").clone();
        if namespaced {
            errors.invalid(
                &path,
                value.clone(),
                "namespaced rules cannot apply to non-resource URLs",
            );
        }
        if ["apiGroups", "resources", "resourceNames"]
            .iter()
            .any(|field| !rule.list(field).is_empty())
        {
            errors.invalid(
                &path,
                value,
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        return;
    }
    if rule.list("apiGroups").is_empty() {
        let detail = "resource rules must supply at least one api group";
        errors.required(&path.child("apiGroups"), detail);
    }
    if rule.list("resources").is_empty() {
        let detail = "resource rules must supply at least one resource";
        errors.required(&path.child("resources"), detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn rules_name_verbs_and_what_they_apply_to() {
        let object = json!({"rules": [
            {},
            {"verbs": ["get"], "nonResourceURLs": ["/x"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
        ]});
        assert_eq!(
            lines(|e| Role { namespaced: true }.validate(&object, None, e)),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to \
                 non-resource URLs",
            ]
        );
    }
}
