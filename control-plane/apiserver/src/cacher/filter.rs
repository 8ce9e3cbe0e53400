//! Which objects a list or watch is about: a scope in the key space, and selectors over a cached entry.

use std::sync::Arc;

use windlass_api::resource::{CustomVersion, Resource, Strategy};
use windlass_machinery::selector::{FieldOp, FieldSelector, LabelSelector};
use windlass_machinery::status::ApiError;

use super::Entry;
use super::converted::Converted;

/// A field of each resource whose watchers are found through an index instead of being asked one by one.
const INDEXED: [(&str, &str, &str); 1] = [("", "pods", "spec.nodeName")];

/// The fields that every resource has.
const GENERAL: [&str; 2] = ["metadata.name", "metadata.namespace"];

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
    /// What is left to be asked of the objects in another version than they are stored in.
    converted: Option<Converted>,
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
        let strategy = resource.strategy.as_ref();
        let mut checks = Vec::new();
        for requirement in fields.map(FieldSelector::requirements).unwrap_or_default() {
            let field = requirement.field.as_str();
            let target = match field {
                "metadata.name" => Target::Name,
                "metadata.namespace" if resource.namespaced || !strategy.lists_fields() => {
                    Target::Namespace
                }
                _ => {
                    let index = strategy.selectable().iter().position(|name| *name == field);
                    Target::Field(index.ok_or_else(|| unknown_field(strategy, field))?)
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
            converted: None,
        })
    }

    /// A filter over the objects of a custom resource in a version whose fields are not those of the index.
    ///
    /// # Errors
    /// 400 when the version has no such selectable field.
    pub fn converting(
        resource: &Resource,
        namespace: Option<&str>,
        labels: Option<LabelSelector>,
        fields: &FieldSelector,
        convert: Arc<dyn CustomVersion>,
    ) -> Result<Self, ApiError> {
        let (general, own) = fields.partition(|field| GENERAL.contains(&field));
        let selectable = convert.selectable();
        if let Some(unknown) = own
            .requirements()
            .iter()
            .find(|requirement| !selectable.contains(&requirement.field.as_str()))
        {
            return Err(unknown_field(resource.strategy.as_ref(), &unknown.field));
        }
        let filter = Self::new(resource, namespace, labels, Some(&general))?;
        Ok(Self {
            converted: (!own.is_empty()).then(|| Converted::new(convert, own)),
            ..filter
        })
    }

    /// Whether `entry` is selected, as far as its index tells.
    pub(super) fn matches(&self, entry: &Entry) -> bool {
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

    /// Whether `entry` is selected, for which it may have to be converted.
    ///
    /// # Errors
    /// When the conversion fails.
    pub(super) fn admits(&self, entry: &Arc<Entry>) -> Result<bool, ApiError> {
        match &self.converted {
            _ if !self.matches(entry) => Ok(false),
            Some(converted) => converted.matches(entry),
            None => Ok(true),
        }
    }

    /// What only converted objects can tell.
    pub(super) fn converted(&self) -> Option<&Converted> {
        self.converted.as_ref()
    }

    /// Whether there are label or field selectors.
    pub fn selects(&self) -> bool {
        self.labels.is_some() || !self.fields.is_empty() || self.converted.is_some()
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

fn unknown_field(strategy: &dyn Strategy, field: &str) -> ApiError {
    ApiError::bad_request(strategy.unselectable(field))
}
