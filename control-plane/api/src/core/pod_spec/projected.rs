//! Projected volumes: several sources in one directory.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::Context;
use super::volume_source::{downward_items, file_path, items, mode};
use crate::tree::Tree;
use crate::validate::numbers::token_seconds;
use crate::validate::required;

/// Those of v1.35 that are on; the others are dropped from what clients write.
const KINDS: &[&str] = &["secret", "configMap", "downwardAPI", "serviceAccountToken"];

/// The path of the sources of a spec's volume.
pub fn sources(spec: &Path, volume: usize) -> Path {
    let volume = spec.child("volumes").index(volume);
    volume.child("projected").child("sources")
}

pub fn projected(source: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    mode(source, "defaultMode", path, errors);
    let mut paths = HashSet::new();
    for (i, projection) in source.list("sources").iter().enumerate() {
        let source_path = path.child("sources").index(i);
        let mut count = 0;
        for kind in KINDS.iter().filter(|kind| projection.has(kind)) {
            count += 1;
            let (inner, inner_path) = (projection.at(kind), source_path.child(kind));
            match *kind {
                "secret" | "configMap" => {
                    required(inner, "name", &inner_path, errors);
                    items(inner, &inner_path, errors);
                    for item in inner.list("items") {
                        let shown = inner.text("name");
                        once(item.text("path"), shown, &mut paths, path, errors);
                    }
                }
                "downwardAPI" => {
                    downward_items(inner, &inner_path, errors);
                    for item in inner.list("items") {
                        let file = item.text("path");
                        once(file, file, &mut paths, path, errors);
                    }
                }
                _ => token(inner, context, &inner_path, path, errors),
            }
        }
        if count > 1 {
            let detail = "may not specify more than 1 volume type per source";
            errors.forbidden(&source_path, detail);
        }
    }
}

/// `path` is the volume's, as upstream has it.
fn once<'a>(
    file: &'a str,
    shown: &str,
    paths: &mut HashSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    if !file.is_empty() && !paths.insert(file) {
        errors.invalid(path, shown, "conflicting duplicate paths");
    }
}

fn token(
    source: &Value,
    context: &Context<'_>,
    path: &Path,
    volume_path: &Path,
    errors: &mut Errors,
) {
    let seconds = source.int("expirationSeconds").unwrap_or_default();
    token_seconds(seconds, &path.child("expirationSeconds"), errors);
    // Upstream's paths of these are the volume's.
    if let Some(file) = required(source, "path", volume_path, errors)
        && !context.kept.token_paths
    {
        file_path(file, &volume_path.child("path"), errors);
    }
}
