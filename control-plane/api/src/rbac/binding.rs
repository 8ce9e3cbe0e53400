//! RoleBindings and ClusterRoleBindings.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::GROUP;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::{same, sentences};

pub struct Binding {
    pub namespaced: bool,
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        tree::fill_text(object, "roleRef.apiGroup", GROUP);
        for subject in each(object, "subjects") {
            let is_account = subject.text("kind") == "ServiceAccount";
            if !is_account {
                tree::fill_text(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("roleRef");
        let role = object.at("roleRef");
        if role.text("apiGroup") != GROUP {
            errors.not_supported(&path.child("apiGroup"), role.text("apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] = if self.namespaced {
            &["Role", "ClusterRole"]
        } else {
            &["ClusterRole"]
        };
        if !kinds.contains(&role.text("kind")) {
            errors.not_supported(&path.child("kind"), role.text("kind"), kinds);
        }
        match role.text("name") {
            "" => errors.required(&path.child("name"), ""),
            name => sentences(
                names::is_path_segment(name),
                &path.child("name"),
                name,
                errors,
            ),
        }
        for (i, subject) in object.list("subjects").iter().enumerate() {
            let path = Path::new("subjects").index(i);
            validate_subject(subject, self.namespaced, &path, errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let role = new.at("roleRef");
        if !same(role, old.at("roleRef")) {
            errors.invalid(&Path::new("roleRef"), role.clone(), "cannot change roleRef");
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let listed = |kind: &str| {
            object
                .list("subjects")
                .iter()
                .filter(|subject| subject.text("kind") == kind)
                .map(|subject| match (kind, subject.text("namespace")) {
                    ("ServiceAccount", namespace) => {
                        format!("{namespace}/{}", subject.text("name"))
                    }
                    _ => subject.text("name").to_owned(),
                })
                .collect::<Vec<_>>()
                .join(", ")
        };
        cells![
            format!(
                "{}/{}",
                object.text("roleRef.kind"),
                object.text("roleRef.name")
            ),
            age(object, now),
            listed("User"),
            listed("Group"),
            listed("ServiceAccount"),
        ]
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

/// In the namespace of a RoleBinding an account needs none of its own.
fn validate_subject(subject: &Value, namespaced: bool, path: &Path, errors: &mut Errors) {
    let name = subject.text("name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    let group = subject.text("apiGroup");
    match subject.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                sentences(
                    names::is_dns1123_subdomain(name),
                    &path.child("name"),
                    name,
                    errors,
                );
            }
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && subject.text("namespace").is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => errors.not_supported(
            &path.child("kind"),
            other,
            &["ServiceAccount", "User", "Group"],
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    const BINDING: Binding = Binding { namespaced: true };

    #[test]
    fn groups_are_filled_in_by_kind() {
        let mut object = json!({
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}],
        });
        BINDING.default(&mut object);
        assert_eq!(object["roleRef"]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][0]["apiGroup"], GROUP);
        assert!(object["subjects"][1].get("apiGroup").is_none());
        assert_eq!(lines(|e| BINDING.validate(&object, None, e)), [""; 0]);
        object["roleRef"]["kind"] = "ClusterRole".into();
        let of_cluster = Binding { namespaced: false };
        assert_eq!(
            lines(|e| of_cluster.validate(&object, None, e)),
            ["subjects[1].namespace: Required value"]
        );
    }

    #[test]
    fn the_role_of_a_binding_is_fixed() {
        let (old, new) = (
            json!({"roleRef": {"name": "a"}}),
            json!({"roleRef": {"name": "b"}}),
        );
        assert_eq!(
            lines(|e| BINDING.validate_update(&new, &old, e)),
            ["roleRef: Invalid value: {\"name\":\"b\"}: cannot change roleRef"]
        );
    }

    #[test]
    fn rows_list_subjects_by_kind() {
        let object = json!({
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [
                {"kind": "User", "name": "ann"},
                {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
            ],
        });
        let row = BINDING.row(&object, 0);
        assert_eq!(row[0], "ClusterRole/view");
        assert_eq!(row[2..], [json!("ann"), json!(""), json!("n/s")]);
    }
}
