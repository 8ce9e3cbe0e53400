//! Which objects a list or watch is about: a scope in the key space, and selectors over a cached entry.

use windlass_api::resource::Resource;
use windlass_machinery::selector::{FieldOp, FieldSelector, LabelSelector};
use windlass_machinery::status::ApiError;

use super::Entry;

/// A field of each resource whose watchers are found through an index instead of being asked one by one.
const INDEXED: [(&str, &str, &str); 1] = [("", "pods", "spec.nodeName")];

/// The position, in its selectable fields, of the resource's indexed field.
pub(super) fn indexed_field(resource: &Resource) -> Option<usize> {
    let (_, _, field) = INDEXED
        .iter()
        .find(|(group, plural, _)| *group == resource.group && *plural == resource.plural)?;
    resource
        .strategy
        .selectable()
        .iter()
        .position(|name| name == field)
}

#[derive(Clone, Debug)]
pub struct Filter {
    /// `None`: all namespaces, or a cluster-scoped resource.
    pub namespace: Option<String>,
    labels: Option<LabelSelector>,
    fields: Vec<FieldCheck>,
}

#[derive(Clone, Debug)]
struct FieldCheck {
    target: Target,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Name,
    Namespace,
    Field(usize),
}

impl Filter {
    /// # Errors
    /// 400 when the resource has no such selectable field.
    pub fn new(
        resource: &Resource,
        namespace: Option<&str>,
        labels: Option<LabelSelector>,
        fields: Option<&FieldSelector>,
    ) -> Result<Self, ApiError> {
        let mut checks = Vec::new();
        for requirement in fields.map(FieldSelector::requirements).unwrap_or_default() {
            let field = requirement.field.as_str();
            let target = match field {
                "metadata.name" => Target::Name,
                "metadata.namespace" => Target::Namespace,
                _ => {
                    let selectable = resource.strategy.selectable();
                    let index = selectable.iter().position(|name| *name == field);
                    Target::Field(index.ok_or_else(|| unknown_field(selectable, field))?)
                }
            };
            let equal = matches!(requirement.op, FieldOp::Eq);
            checks.push(FieldCheck {
                target,
                equal,
                value: requirement.value.clone(),
            });
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            labels,
            fields: checks,
        })
    }

    /// Whether `entry` is selected.
    pub fn matches(&self, entry: &Entry) -> bool {
        if self
            .namespace
            .as_deref()
            .is_some_and(|namespace| namespace != entry.namespace())
        {
            return false;
        }
        let fields = self.fields.iter().all(|check| {
            let actual = match check.target {
                Target::Name => entry.name(),
                Target::Namespace => entry.namespace(),
                Target::Field(index) => entry.field(index),
            };
            (actual == check.value) == check.equal
        });
        fields
            && self
                .labels
                .as_ref()
                .is_none_or(|s| s.matches_with(|key| entry.label(key)))
    }

    /// Whether there are label or field selectors.
    pub fn selects(&self) -> bool {
        self.labels.is_some() || !self.fields.is_empty()
    }

    fn required(&self, target: Target) -> Option<&str> {
        let check = self
            .fields
            .iter()
            .find(|check| check.equal && check.target == target)?;
        Some(&check.value)
    }

    /// The one name that is selected.
    pub(super) fn name(&self) -> Option<&str> {
        self.required(Target::Name)
    }

    pub(super) fn field(&self, index: usize) -> Option<&str> {
        self.required(Target::Field(index))
    }
}

fn unknown_field(selectable: &[&str], field: &str) -> ApiError {
    ApiError::bad_request(if selectable.is_empty() {
        format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )
    } else {
        format!("field label not supported: {field}")
    })
}
