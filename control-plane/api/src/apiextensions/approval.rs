//! Groups of the Kubernetes community want a review of what is defined in them (KEP-1111).

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;

const ANNOTATION: &str = "api-approved.kubernetes.io";
const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

pub(super) fn annotation(definition: &Value) -> Option<&str> {
    definition
        .at("metadata.annotations")
        .get(ANNOTATION)?
        .as_str()
}

fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"].iter().any(|of| {
        group
            .strip_suffix(of)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// What became of a definition's review.
#[derive(Clone, Copy)]
enum Review<'d> {
    Missing,
    Invalid(&'d str),
    /// Somebody says that there was none.
    Bypassed(&'d str),
    Approved(&'d str),
}

/// `None`: none is needed.
fn review(definition: &Value) -> Option<Review<'_>> {
    if !is_protected(definition.text("spec.group")) {
        return None;
    }
    let given = annotation(definition).unwrap_or_default();
    let is_address = given
        .split_once("://")
        .is_some_and(|(_, rest)| !rest.is_empty());
    Some(match given {
        "" => Review::Missing,
        given if given.starts_with("unapproved") => Review::Bypassed(given),
        given if is_address => Review::Approved(given),
        given => Review::Invalid(given),
    })
}

impl Review<'_> {
    /// In upstream's words.
    fn said(&self) -> String {
        let must = format!("protected groups must have approval annotation {ANNOTATION:?}");
        match self {
            Self::Missing => format!("{must}, {SEE}"),
            Self::Invalid(_) => {
                format!("{must} with either a URL or a reason starting with \"unapproved\", {SEE}")
            }
            Self::Bypassed(given) => format!("not approved: {given:?}"),
            Self::Approved(given) => format!("approved in {given}"),
        }
    }
}

pub(super) fn validate(definition: &Value, errors: &mut Errors) {
    let path = Path::new("metadata").child("annotations").key(ANNOTATION);
    match review(definition) {
        None | Some(Review::Bypassed(_) | Review::Approved(_)) => {}
        Some(review @ Review::Missing) => errors.required(&path, review.said()),
        Some(review @ Review::Invalid(given)) => errors.invalid(&path, given, review.said()),
    }
}

/// Status, reason and message of the condition `KubernetesAPIApprovalPolicyConformant`; `None` where it says nothing.
pub fn condition(definition: &Value) -> Option<(&'static str, &'static str, String)> {
    let review = review(definition)?;
    let (status, reason) = match review {
        Review::Missing => ("False", "MissingAnnotation"),
        Review::Invalid(_) => ("False", "InvalidAnnotation"),
        Review::Bypassed(_) => ("False", "UnapprovedAnnotation"),
        Review::Approved(_) => ("True", "ApprovedAnnotation"),
    };
    Some((status, reason, review.said()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn the_condition_says_what_became_of_the_review() {
        let said = |group: &str, annotation: &str| {
            let definition = json!({"metadata": {"annotations": {ANNOTATION: annotation}}, "spec": {"group": group}});
            condition(&definition).map(|(status, reason, _)| (status, reason))
        };
        assert_eq!(said("example.com", ""), None);
        assert_eq!(said("a.k8s.io", ""), Some(("False", "MissingAnnotation")));
        assert_eq!(
            said("a.k8s.io", "unapproved, a trial"),
            Some(("False", "UnapprovedAnnotation"))
        );
        assert_eq!(
            said("a.k8s.io", "https://example.com/1"),
            Some(("True", "ApprovedAnnotation"))
        );
    }

    #[test]
    fn the_communitys_groups_want_a_review() {
        let definition = |group: &str, annotation: Value| json!({"metadata": {"annotations": {ANNOTATION: annotation}}, "spec": {"group": group}});
        for (group, annotation, expected) in [
            ("example.com", json!(null), None),
            ("notk8s.io", json!(null), None),
            (
                "a.k8s.io",
                json!("https://github.com/kubernetes/kubernetes/pull/1"),
                None,
            ),
            ("k8s.io", json!("unapproved, a trial"), None),
            (
                "a.k8s.io",
                json!(null),
                Some("Required value: protected groups must have approval annotation"),
            ),
            (
                "kubernetes.io",
                json!("yes"),
                Some("Invalid value: \"yes\": protected groups must have"),
            ),
        ] {
            let found = lines(|errors| validate(&definition(group, annotation), errors));
            assert_eq!(
                found.len(),
                usize::from(expected.is_some()),
                "{group}: {found:?}"
            );
            if let Some(words) = expected {
                let start = format!("metadata.annotations[{ANNOTATION}]: {words}");
                assert!(found[0].starts_with(&start), "{found:?}");
            }
        }
    }
}
