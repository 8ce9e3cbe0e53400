//! Conflicts between managers, in the words that kubectl's users know.

use std::collections::BTreeMap;

use super::managed::{Entry, Operation};
use super::set::Set;
use crate::status::{ApiError, Cause, Details};

/// Fields that others own and the config would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    conflicts: Vec<Conflict>,
    /// All of them as one set.
    pub(crate) set: Set,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Conflict {
    /// `"kubectl" using apps/v1`
    manager: String,
    path: String,
}

impl Conflicts {
    pub(crate) fn new(by_manager: Vec<(&Entry, Set)>) -> Option<Self> {
        let mut conflicts = Vec::new();
        let mut all = Set::default();
        for (entry, set) in by_manager {
            let manager = describe(entry);
            set.each_path(|path| {
                conflicts.push(Conflict {
                    manager: manager.clone(),
                    path: path.to_owned(),
                })
            });
            all.union(set);
        }
        if conflicts.is_empty() {
            None
        } else {
            Some(Self {
                conflicts,
                set: all,
            })
        }
    }

    /// The fields: `.spec.replicas`.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.conflicts.iter().map(|conflict| conflict.path.as_str())
    }

    fn message(&self) -> String {
        if let [only] = self.conflicts.as_slice() {
            return format!(
                "Apply failed with 1 conflict: conflict with {}: {}",
                only.manager, only.path
            );
        }
        let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for conflict in &self.conflicts {
            by_manager
                .entry(&conflict.manager)
                .or_default()
                .push(&conflict.path);
        }
        let mut lines = Vec::new();
        for (manager, paths) in by_manager {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(paths.iter().map(|path| format!("- {path}")));
        }
        format!(
            "Apply failed with {} conflicts: {}",
            self.conflicts.len(),
            lines.join("\n")
        )
    }
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{:?}", entry.manager);
    if !entry.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", entry.subresource));
    }
    if entry.operation == Operation::Update {
        text.push_str(&format!(" using {}", entry.api_version));
    }
    text
}

impl From<&Conflicts> for ApiError {
    fn from(conflicts: &Conflicts) -> Self {
        let causes = conflicts.conflicts.iter().map(|conflict| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {}", conflict.manager),
            field: conflict.path.clone(),
        });
        let mut error = Self::new(409, "Conflict", conflicts.message());
        error.details = Some(Box::new(Details {
            causes: causes.collect(),
            ..Details::default()
        }));
        error
    }
}
