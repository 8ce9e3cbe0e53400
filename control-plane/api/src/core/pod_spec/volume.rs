//! A pod's volumes: names, and exactly one source each.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::volume_source;
use crate::tree::Tree;
use crate::validate::named;

/// Volumes by name, for the mounts of containers.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

pub fn volumes<'a>(spec: &'a Value, path: &Path, errors: &mut Errors) -> Volumes<'a> {
    let path = path.child("volumes");
    let mut seen = Volumes::new();
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let path = path.index(i);
        source(volume, &path, errors);
        named(volume, "name", names::is_dns1123_label, &path, errors);
        let name = volume.text("name");
        if seen.contains_key(name) {
            errors.duplicate(&path.child("name"), name);
        } else if !name.is_empty() {
            seen.insert(name, volume);
        }
    }
    seen
}

fn source(volume: &Value, path: &Path, errors: &mut Errors) {
    let sources: Vec<_> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| *name != "name" && !value.is_null())
        .collect();
    if sources.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    // Which of two sources is the surplus one follows the order of Go's struct there, and of names here.
    for (name, _) in sources.iter().skip(1) {
        errors.forbidden(&path.child(name), "may not specify more than 1 volume type");
    }
    if let Some((name, source)) = sources.first() {
        volume_source::validate(name, source, &path.child(name), errors);
    }
}
