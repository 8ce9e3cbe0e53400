//! Reads property names and required properties from the sources of `k8s-openapi`.
//!
//! Each type's file holds its OpenAPI definition as a `json_schema!` literal, written by one generator with
//! fixed indentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::files_below;

/// Definitions by OpenAPI name, such as `io.k8s.api.core.v1.Pod`.
pub(super) type Definitions = BTreeMap<String, Definition>;

#[derive(Debug, Default)]
pub(super) struct Definition {
    pub(super) properties: BTreeSet<String>,
    pub(super) required: BTreeSet<String>,
}

pub(super) fn read(root: &Path) -> Result<Definitions> {
    let mut definitions = Definitions::new();
    for path in files_below(root, "rs")? {
        definitions.extend(parse(&fs::read_to_string(&path)?));
    }
    Ok(definitions)
}

fn parse(text: &str) -> Option<(String, Definition)> {
    let (_, text) = text.split_once("JsonSchema for ")?;
    let (_, rest) = text.split_once("\n        \"")?;
    let (name, rest) = rest.split_once("\".into()")?;
    let mut definition = Definition::default();
    let mut section = "";
    for line in rest.lines() {
        if let Some(line) = line.strip_prefix("            ") {
            if let Some(key) = line.strip_prefix('"') {
                section = key.split('"').next().unwrap_or_default();
            } else if let Some(key) = line.strip_prefix("    \"") {
                let key = key.split('"').next().unwrap_or_default().to_owned();
                match section {
                    "properties" => definition.properties.insert(key),
                    "required" => definition.required.insert(key),
                    _ => false,
                };
            }
        }
    }
    Some((name.to_owned(), definition))
}
