//! Describing a kind in a line: `core("Pod", "pods").short("po").all().columns("Ready, Status, …")`.

use std::sync::Arc;

use windlass_machinery::schema::{Schema, type_name};

use crate::resource::{
    Column, Conversion, NameRule, Resource, ScalePaths, Strategy, Subresource, Text, Verbs, Version,
};

/// The rules of a kind that has none of its own.
pub struct Plain;

impl Strategy for Plain {
    /// For kinds without a printer the one column is CREATED AT.
    fn row(&self, object: &serde_json::Value, _now: i64) -> Vec<serde_json::Value> {
        vec![object["metadata"]["creationTimestamp"].clone()]
    }
}

/// The columns of a kind without a printer upstream.
const DEFAULT_COLUMNS: &str = "@Created At";

fn builtin_version(group: &str, version: &'static str, kind: &str) -> Version {
    let schema = Schema::builtin();
    let name = type_name(group, version, kind);
    let type_id = schema
        .type_id(&name)
        .unwrap_or_else(|| panic!("the schema table has no type {name}"));
    Version {
        name: version.into(),
        schema,
        type_id,
        convert: None,
        served: true,
        deprecation: None,
        openapi: None,
    }
}

impl Resource {
    /// A namespaced built-in resource with one version, all verbs and upstream's usual key prefix.
    pub fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Self {
            group: group.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List").into(),
            plural: plural.into(),
            singular: kind.to_ascii_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            versions: vec![builtin_version(group, version, kind)],
            storage: 0,
            verbs: Verbs::All,
            subresources: Vec::new(),
            prefix: format!("/registry/{plural}").into(),
            columns: parse_columns(DEFAULT_COLUMNS),
            name_rule: NameRule::DnsSubdomain,
            ttl: None,
            strategy: Arc::new(Plain),
        }
    }

    #[must_use]
    pub fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    #[must_use]
    pub fn namespaced(mut self) -> Self {
        self.namespaced = true;
        self
    }

    #[must_use]
    pub fn short(mut self, name: &'static str) -> Self {
        self.short_names.push(name.into());
        self
    }

    #[must_use]
    pub fn category(mut self, name: &'static str) -> Self {
        self.categories.push(name.into());
        self
    }

    /// Listed by `kubectl get all`.
    #[must_use]
    pub fn all(self) -> Self {
        self.category("all")
    }

    #[must_use]
    pub fn verbs(mut self, verbs: Verbs) -> Self {
        self.verbs = verbs;
        self
    }

    #[must_use]
    pub fn with(mut self, subresource: Subresource) -> Self {
        self.subresources.push(subresource);
        self
    }

    #[must_use]
    pub fn status(self) -> Self {
        self.with(Subresource::Status)
    }

    /// `spec.replicas`, `status.replicas` and `spec.selector`, as all built-in scalable kinds have them.
    #[must_use]
    pub fn scale(self) -> Self {
        self.with(Subresource::Scale(ScalePaths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        }))
    }

    #[must_use]
    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix.into();
        self
    }

    #[must_use]
    pub fn names(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    #[must_use]
    pub fn ttl(mut self, ttl: std::time::Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    #[must_use]
    pub fn rules(mut self, strategy: impl Strategy) -> Self {
        self.strategy = Arc::new(strategy);
        self
    }

    /// The kind's columns after NAME, comma separated. `+` marks one that only `-o wide` shows, `#` an integer,
    /// `@` a date, `?` a boolean, `=` the object's name where it is not the first column.
    #[must_use]
    pub fn columns(mut self, columns: &'static str) -> Self {
        self.columns = parse_columns(columns);
        self
    }

    /// One more served version, less preferred than those before it.
    #[must_use]
    pub fn version(mut self, version: &'static str, convert: Conversion) -> Self {
        let mut version = builtin_version(&self.group, version, &self.kind);
        version.convert = Some(convert);
        self.versions.push(version);
        self
    }

    /// Requests for the preferred version are answered with this `Warning`.
    #[must_use]
    pub fn deprecated(mut self, warning: &'static str) -> Self {
        self.versions[0].deprecation = Some(warning.into());
        self
    }

    /// The only version is stored as another group's kind: events.k8s.io.
    #[must_use]
    pub fn converted(mut self, convert: Conversion) -> Self {
        self.versions[0].convert = Some(convert);
        self
    }
}

fn parse_columns(columns: &'static str) -> Vec<Column> {
    columns
        .split(',')
        .map(|column| parse_column(column.trim()))
        .collect()
}

fn parse_column(text: &'static str) -> Column {
    let (name, priority) = text.strip_prefix('+').map_or((text, 0), |rest| (rest, 1));
    let (kind, format) = match name.as_bytes().first() {
        Some(b'#') => ("integer", ""),
        Some(b'@') => ("date", ""),
        Some(b'?') => ("boolean", ""),
        Some(b'=') => ("string", "name"),
        _ => ("string", ""),
    };
    let name = name.trim_start_matches(['#', '@', '?', '=']);
    Column {
        name: Text::Borrowed(name),
        kind: kind.into(),
        format: format.into(),
        description: Text::Borrowed(""),
        priority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_carry_their_marks() {
        let columns = parse_columns("Ready, #Desired, +Node, +#Count, @Created At, +=Name");
        let shown: Vec<_> = columns
            .iter()
            .map(|c| {
                (
                    c.name.as_ref(),
                    c.kind.as_ref(),
                    c.format.as_ref(),
                    c.priority,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("Ready", "string", "", 0),
                ("Desired", "integer", "", 0),
                ("Node", "string", "", 1),
                ("Count", "integer", "", 1),
                ("Created At", "date", "", 0),
                ("Name", "string", "name", 1),
            ]
        );
    }
}
